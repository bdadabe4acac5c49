"""Old names of functions, which work for one more release."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed(old: str, function: Callable[P, T]) -> Callable[P, T]:
    """``function`` under its ``old`` name: a call warns."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        warnings.warn(f"{old} is called {function.__name__} now", DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    call.__name__, call.__doc__ = old, None
    return call
