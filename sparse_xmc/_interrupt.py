"""Ctrl-C ends the command line in one line whenever it comes: while packages are imported, files are written, at the end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

STATUS = 130  # of a command that was interrupted, as shells have it
_happened = False


def happened() -> bool:
    """Whether an interrupt has come: an import may turn it into an error of its own."""
    return _happened


def watch() -> None:
    """Notes every interrupt from now on. One that nobody could catch ends the process, with the line.

    Where interrupts are ignored (``nohup``), or something else takes them, nothing changes.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _usual():
        signal.signal(signal.SIGINT, _note)
        sys.unraisablehook = _unraisable


def unwatch() -> None:
    """The command is over: there is nothing more to interrupt."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _note:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _usual() -> Any:
    return signal.default_int_handler


def _note(number: int, frame: FrameType | None) -> None:
    global _happened
    _happened = True
    raise KeyboardInterrupt


def _unraisable(about: Any) -> None:
    """An interrupt that came while an object was finalised or C called back would be shown and forgotten."""
    if about.exc_type is not None and issubclass(about.exc_type, KeyboardInterrupt):
        print("sparse_xmc: interrupted", file=sys.stderr, flush=True)
        os._exit(STATUS)
    sys.__unraisablehook__(about)
