"""Hosts on one machine: namespaces of their own for network, names and processes, joined by a switch whose cables can be cut.

A host has an address, a name that the others resolve, its own loopback and process numbers. Files are shared.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.distributed.processes import ROOT

_UNSHARED = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child"]


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """A host that runs commands; gone with everything that runs on it when it is killed."""

    def __init__(self, number: int, switch: int, folder: Path) -> None:
        self.name, self.address, self._switch, self._port = (
            f"host{number}",
            f"10.77.0.{number + 1}",
            switch,
            f"port{number}",
        )
        script = (
            f"mount -t proc proc /proc && mount --bind {folder}/hosts /etc/hosts && hostname {self.name} && echo up"
        )
        self._first = subprocess.Popen(
            [*_UNSHARED, "sh", "-c", f"{script} && exec sleep 600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            self._join()
        except BaseException:
            self.kill()
            raise

    def _join(self) -> None:
        """Waits until the host is there, and plugs its cable in."""
        assert self._first.stdout is not None and self._first.stderr is not None
        if self._first.stdout.readline() != b"up\n":
            raise OSError(self._first.stderr.read().decode())
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text()
        self._inside = children.split()[0]
        self._on_switch("add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self._inside)
        self._on_switch("set", self._port, "master", "switch", "up")
        for link in ("lo", "eth0"):
            self._enter("ip", "link", "set", link, "up")
        self._enter("ip", "address", "add", f"{self.address}/24", "dev", "eth0")

    def _on_switch(self, *command: str) -> None:
        _call("nsenter", "-t", str(self._switch), "-n", "ip", "link", *command)

    def _enter(self, *command: str) -> str:
        return _call("nsenter", "-t", self._inside, "-n", *command)

    def start(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts Python with these arguments; what it writes goes to ``log``."""
        enter = ["nsenter", "-t", self._inside, "-n", "-u", "-m", "-p", sys.executable]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
        with log.open("wb") as file:
            return subprocess.Popen([*enter, *arguments], env=environment, stdout=file, stderr=file)

    def sent_bytes(self) -> int:
        """Bytes that have left by the cable, headers included."""
        lines = self._enter("cat", "/proc/net/dev").splitlines()
        return int(next(line for line in lines if "eth0" in line).split(":")[1].split()[8])

    def cut(self) -> None:
        """Takes the cable out: nothing arrives and nobody is told."""
        self._on_switch("set", self._port, "down")

    def kill(self) -> None:
        """Ends all of its processes at once."""
        self._first.kill()
        self._first.wait()


@contextlib.contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """Hosts with the names ``host0``, ``host1``, ..."""
    lines = ["127.0.0.1 localhost", *(f"10.77.0.{number + 1} host{number}" for number in range(count))]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    switch = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up && exec sleep 600"], stdout=subprocess.PIPE)
    running: list[Host] = []
    try:
        assert switch.stdout is not None
        switch.stdout.readline()
        _call("nsenter", "-t", str(switch.pid), "-n", "ip", "link", "add", "switch", "type", "bridge")
        _call("nsenter", "-t", str(switch.pid), "-n", "ip", "link", "set", "switch", "up")
        for number in range(count):
            running.append(Host(number, switch.pid, folder))
        yield running
    finally:
        for host in running:
            host.kill()
        switch.kill()
        switch.wait()


@functools.cache
def missing() -> str | None:
    """Why this machine makes no hosts; None where it does."""
    try:
        with tempfile.TemporaryDirectory() as folder, hosts(1, Path(folder)):
            return None
    except (OSError, AssertionError) as error:
        return str(error)
