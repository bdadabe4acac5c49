"""Signs of life between ranks: a stopped process or a cut link ends the others in bounded time, however long a step takes.

Ranks count up in the store through which they found each other, from a thread of their own, so that a rank at work for an
hour is alive and one that is stopped is not. The first rank that fails leaves its reason there for the others.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from sparse_xmc.distributed.launcher import end_blocked_launcher

TIMEOUT = 120.0
_LINGER = 5.0  # seconds that a failed rank waits for the others to hear of it, and they for their own end


def give_up(text: str) -> None:
    """Ends the process from whichever thread: the main one may wait for a rank that never answers."""
    print(f"sparse_xmc: {text}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        end_blocked_launcher()
    os._exit(1)


class Heartbeat:
    """The signs of life of one rank and its watch over the others'.

    Args:
        store: of the ranks; this object takes a connection of its own to it.
        rank, size: of this process.
        timeout: seconds without a sign of life after which a rank counts as dead.
        where: address of the store, for messages.
        end: called once with a line that says who is missing.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: float = TIMEOUT,
        *,
        where: str = "the store",
        end: Callable[[str], None] = give_up,
    ) -> None:
        self.store, self.rank, self.size, self.timeout, self.where, self.end = store, rank, size, timeout, where, end
        self.interval = min(timeout / 8, 1 + size / 64)
        self._connection = _own_connection(store, timeout)
        self._answered = time.monotonic()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._over = threading.Event()
        self._watching = False
        self._beats = 0
        self._said = threading.Lock()
        self._beat()
        self._threads = [
            threading.Thread(target=target, daemon=True, name=f"sparse_xmc {target.__name__}")
            for target in (self._send, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def watch_others(self) -> None:
        """From here on others are watched: each has shown its first sign of life."""
        self._watching = True

    def _beat(self) -> None:
        self._beats += 1
        self._connection.set(f"alive/{self.rank}", str(self._beats))
        self._answered = time.monotonic()

    def _send(self) -> None:
        while not self._over.wait(self.interval):
            with contextlib.suppress(RuntimeError):  # no answer: the watch counts the time since the last one
                self._beat()
                if self._watching:
                    self._look()

    def _look(self) -> None:
        now = time.monotonic()
        for rank, value in enumerate(self._connection.multi_get([f"alive/{rank}" for rank in range(self.size)])):
            if self._seen.get(rank, (b"", 0.0))[0] != value:
                self._seen[rank] = value, now
        if self._connection.check(["cause"]):
            text = self._connection.get("cause").decode()
            if not self._over.wait(_LINGER):  # the main thread has had the time to end by itself
                self._give_up(text)

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.interval)):
            now = time.monotonic()
            missing = [
                rank
                for rank, (value, since) in list(self._seen.items())
                if rank != self.rank and value != b"done" and now - since > self.timeout
            ]
            if now - self._answered > self.timeout:
                self._give_up(
                    f"rank {self.rank} of {self.size}: {self.where} has not answered for {self.timeout:.0f} s: the link "
                    "is cut, or the process there is stopped"
                )
            elif missing:
                self._give_up(
                    f"rank {self.rank} of {self.size}: rank {missing[0]} has given no sign of life for "
                    f"{self.timeout:.0f} s: it is stopped, or the link to it is cut"
                )

    def _give_up(self, text: str) -> None:
        with self._said:
            if not self._over.is_set():
                self._over.set()
                self.end(text)

    def fail(self, error: BaseException) -> str | None:
        """Leaves this rank's failure for the others if it is the first; else tells the first one."""
        own = f"rank {self.rank} of {self.size}: {' '.join(str(error).split()) or type(error).__name__}"
        try:
            first = self.store.compare_set("cause", "", own).decode()
            self.store.set(f"heard/{self.rank}", "1")
        except RuntimeError:
            return None
        return None if first == own else first

    def linger(self) -> None:
        """Waits a moment for the others to hear of a failure: whoever started the ranks may end them all after one."""
        keys = [f"heard/{rank}" for rank in range(self.size)]
        end = time.monotonic() + _LINGER
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end and not self.store.check(keys):
                time.sleep(0.05)

    def close(self) -> None:
        """Ends the threads and says that this rank has come to its end: a thread that is in a call of the store when the
        interpreter ends aborts the process, and its sign of life would take the place of the last word."""
        self._over.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_LINGER)
        with contextlib.suppress(RuntimeError):
            self.store.set(f"alive/{self.rank}", "done")


def _own_connection(store: Any, timeout: float) -> Any:
    """A connection whose waiting keeps no other user of the store waiting."""
    own = store.clone() if hasattr(store, "clone") else dist.TCPStore(store.host, store.port, None, False)
    own.set_timeout(timedelta(seconds=timeout))
    return own
