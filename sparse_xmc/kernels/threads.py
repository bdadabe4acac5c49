"""Threads for the Numba kernels: plain Python threads that call kernels compiled with ``nogil=True``.

Numba's own ``parallel=True`` is not used. Its GNU OpenMP layer kills a process that forks (a DataLoader worker) and
then runs a kernel, and its worker threads spin beside torch's; its workqueue layer aborts when two Python threads enter
it; and the choice between them is one global setting that does not belong to a library. Python threads have none of
these problems, obey ``torch.set_num_threads`` call by call, and compile several times faster. The price is some 20 us
per call.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_chosen: list[int] = []  # by set_num_threads, for as long as torch is not loaded


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="sparse_xmc")


if hasattr(os, "register_at_fork"):  # not on Windows
    # A forked child inherits the executor object but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _torch() -> Any:
    """torch where it is loaded, which nothing here does."""
    module = sys.modules.get("torch")
    return module if hasattr(module, "get_num_threads") else None


def num_threads() -> int:
    """torch's number of threads where torch is loaded; else the one set, ``OMP_NUM_THREADS``, or the cores there are."""
    torch = _torch()
    if torch is not None:
        return torch.get_num_threads()
    return _chosen[-1] if _chosen else _default()


def _default() -> int:
    wish = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wish.isdecimal() and int(wish):
        return int(wish)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_num_threads(count: int) -> None:
    """Sets the number of threads, torch's where it is loaded."""
    _chosen[:] = [count]
    torch = _torch()
    if torch is not None:
        torch.set_num_threads(count)


def run(kernel: Callable[..., None], tasks: Sequence[tuple], *arguments: object) -> None:
    """Calls ``kernel(*arguments, *task)`` for every task, on ``num_threads()`` threads, the caller's among them.

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
