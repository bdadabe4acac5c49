"""A command under a hard limit of memory, watched: what its whole tree of processes holds over time.

The limit is one of address space (``RLIMIT_AS``), which every process of the tree inherits: an allocation beyond it fails, be
it used or not. It is stricter than a limit of resident memory, as it counts libraries, files that are mapped and stacks of
threads that nobody touches. What several processes hold together is added up as it is sampled and ends the command.
"""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_EVERY = 0.2  # seconds between samples
_TAIL = 2**16  # bytes of output that are looked at


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit status, seconds, CPU seconds of all its processes, resident MiB over time, last lines."""

    status: int
    seconds: float
    cpu_seconds: float
    samples: list[tuple[float, float]]
    output: list[str]

    @property
    def peak(self) -> float:
        """MiB, 0 where it ended before the first sample."""
        return max((mib for _, mib in self.samples), default=0.0)


def run_limited(
    command: Sequence[str], limit: int, *, seconds: float = 3600.0, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Runs a command with at most ``limit`` bytes of memory and that many seconds; what exceeds either is ended."""
    import psutil

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    samples: list[tuple[float, float]] = []
    with tempfile.TemporaryFile() as said:  # a pipe that nobody empties would hold up who says much
        with subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            preexec_fn=confine,
        ) as process:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                held, passed = _tree_bytes(root), time.monotonic() - began
                samples.append((round(passed, 1), round(held / 2**20, 1)))
                if held > limit or passed > seconds:
                    for one in [*root.children(recursive=True), root]:
                        one.kill()
                time.sleep(_EVERY)
        said.seek(max(0, said.seek(0, os.SEEK_END) - _TAIL))
        output = said.read().decode(errors="replace").splitlines()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Outcome(process.returncode, time.monotonic() - began, cpu, samples, output[-60:])


def _tree_bytes(root: object) -> int:
    """Resident bytes of a process and its children; what they share counts for each."""
    import psutil

    assert isinstance(root, psutil.Process)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # gone since
            continue
    return total
