"""A word on what the first use of a kernel waits for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

_ONCE = "sparse_xmc: compiling kernels, once on this machine (sparse-xmc warmup does it ahead of time) ..."


@contextlib.contextmanager
def announcing_compilation(announce: Callable[[], None] | None = None) -> Iterator[None]:
    """Calls ``announce`` before each CPU kernel of the package that is compiled rather than found in Numba's cache;
    None: one line on standard error before the first."""
    try:
        from numba.core import event
    except ModuleNotFoundError:  # the kernels say so themselves
        yield
        return
    listener = _listener(event, announce or _one_line())
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)


def _one_line() -> Callable[[], None]:
    said = False

    def announce() -> None:
        nonlocal said
        if not said:
            print(_ONCE, file=sys.stderr, flush=True)
        said = True

    return announce


def _listener(event: Any, announce: Callable[[], None]) -> Any:
    class Listener(event.Listener):
        def on_start(self, happened: Any) -> None:
            if happened.data["dispatcher"].py_func.__module__.startswith("sparse_xmc."):
                announce()

        def on_end(self, happened: Any) -> None:
            pass

    return Listener()
