"""Kernels over ranges of rows or labels, on all threads, with a bar that shows the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sparse_xmc.kernels import threads


def in_parts(kernel: Callable[..., None], size: int, step: int, *arguments: Any, progress: str | None = None) -> None:
    """Calls ``kernel(*arguments, start, stop)`` for ranges of at most ``step`` that cover ``size``."""
    tasks: Any = [(start, min(start + step, size)) for start in range(0, size, step)]
    if progress:
        tasks = _Shown(tasks, progress)
    threads.run(kernel, tasks, *arguments)


class _Shown:
    """Tasks that move a bar as they are taken."""

    def __init__(self, tasks: list[tuple[int, int]], name: str) -> None:
        self.tasks, self.name = tasks, name

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        from tqdm import tqdm

        return iter(_Locked(tqdm(self.tasks, desc=self.name, disable=None, leave=False)))


class _Locked:
    """One iterator for several threads (a generator may not be entered twice)."""

    def __init__(self, items: Iterable[Any]) -> None:
        import threading

        self.items, self.lock = iter(items), threading.Lock()

    def __iter__(self) -> _Locked:
        return self

    def __next__(self) -> Any:
        with self.lock:
            return next(self.items)
