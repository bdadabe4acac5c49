"""A few gloo processes that run one function after another, so that a test costs no process start."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

TIMEOUT = 600.0  # of what hangs: compiling kernels on a busy machine takes minutes


def _serve(rank: int, size: int, store: str, pipe: Any, timeout: float) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    while (call := pipe.recv()) is not None:
        function, args = call
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class RankPool:
    """``size`` gloo ranks. ``run`` calls a module-level function on all of them and returns their results in order."""

    def __init__(self, size: int, timeout: float = TIMEOUT) -> None:
        os.environ.setdefault("NUMBA_NUM_THREADS", "2")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed.checkpoint", "sparse_xmc.distributed"])
        self.broken = False
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self._processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            store = os.path.join(self._folder.name, "store")
            process = context.Process(target=_serve, args=(rank, size, store, there, timeout), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[tuple[bool, Any]]:
        """For each rank whether the function returned, and its result or traceback; (False, "died") for a dead rank."""
        for pipe in self._pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(TIMEOUT):
                self.broken = True
                raise TimeoutError(f"rank {rank} did not answer within {TIMEOUT} s")
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append((False, "died"))
        return answers

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        answers = self.outcomes(function, *args)
        self.broken = not all(ok for ok, _ in answers)
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(answers) if not ok]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                with contextlib.suppress(BrokenPipeError):
                    pipe.send(None)
        for process in self._processes:
            process.join(0 if self.broken else 10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()
