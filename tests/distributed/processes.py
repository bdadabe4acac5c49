"""Ranks as processes of their own, started as ``torchrun`` would start them, each with its own command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FIRST_USE = "sparse_xmc: compiling kernels"  # said by whichever process is the first on a machine


class End(NamedTuple):
    """How a rank ended: status, the lines of an outcome that it wrote on stderr, everything else there, seconds it took."""

    status: int
    lines: list[str]
    rest: str
    seconds: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Rank:
    """A running rank."""

    def __init__(self, rank: int | str, size: int, port: int, arguments: list[str], log: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCH_CPP_LOG_LEVEL": "FATAL",
        }
        self.log, self.started = log, time.monotonic()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sparse_xmc", *arguments], env=environment, stdout=file, stderr=file
            )

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Waits until the rank has written this."""
        end = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < end, f"no {text!r}: {self.log.read_text(errors='replace')}"
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def end(self, seconds: float = 120) -> End:
        """Waits for the end of the rank."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {self.log.read_text(errors='replace')}") from None
        text = self.log.read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("sparse_xmc: ") and FIRST_USE not in line]
        return End(status, lines, text, time.monotonic() - self.started)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def start(
    folder: Path, *commands: list[str], ranks: list[int | str] | None = None, size: int | None = None
) -> list[Rank]:
    """A rank for each command."""
    port = free_port()
    numbers = list(range(len(commands))) if ranks is None else ranks
    return [
        Rank(number, size or len(commands), port, command, folder / f"log{i}")
        for i, (number, command) in enumerate(zip(numbers, commands, strict=True))
    ]
