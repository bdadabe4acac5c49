"""Threads for the Numba kernels: plain Python threads that call kernels compiled with ``nogil=True``.

Numba's own ``parallel=True`` is not used. Its GNU OpenMP layer kills a process that forks (a DataLoader worker) and
then runs a kernel, and its worker threads spin beside torch's; its workqueue layer aborts when two Python threads enter
it; and the choice between them is one global setting that does not belong to a library. Python threads have none of
these problems, obey ``torch.set_num_threads`` call by call, and compile several times faster. The price is some 20 us
per call.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="sparse_xmc")


if hasattr(os, "register_at_fork"):  # not on Windows
    # A forked child inherits the executor object but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def num_threads() -> int:
    return torch.get_num_threads()


def run(kernel: Callable[..., None], tasks: Sequence[tuple], *arguments: object) -> None:
    """Calls ``kernel(*arguments, *task)`` for every task, on torch's number of threads, the caller's among them.

    Which thread runs which task is left open, so tasks must write disjoint memory.
    """
    workers = min(num_threads(), len(tasks))
    queue = iter(tasks)

    def work() -> None:
        # next() on the iterator of a list or tuple is atomic under the GIL and the kernel runs without it.
        for task in queue:
            kernel(*arguments, *task)

    if workers <= 1:
        work()
        return
    others = [_pool(workers - 1).submit(work) for _ in range(workers - 1)]
    try:
        work()
    finally:
        for other in others:
            other.result()


def split(size: int, parts: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Cuts ``range(size)`` into at most ``parts`` ranges whose starts are multiples of ``multiple``."""
    step = -(-size // (max(1, parts) * multiple)) * multiple
    return [(start, min(start + step, size)) for start in range(0, size, step)]
