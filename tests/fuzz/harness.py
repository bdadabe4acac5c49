"""Runs targets and says which input a failure came from."""

import faulthandler
import importlib
import pkgutil
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import tests.fuzz

Target = Callable[[random.Random, Path], object]
_OWN = ("harness", "__main__", "mutation")
_LONGEST = 60  # seconds that one input may take before the process says where it is, and ends
_FIRST = 600  # that the first may take, for which runs are made and kernels compiled


def targets() -> dict[str, Target]:
    """All targets of all files, by name."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(tests.fuzz.__path__):
        if module.name not in _OWN and not module.name.startswith("test_"):
            found |= importlib.import_module(f"tests.fuzz.{module.name}").TARGETS
    return found


class FuzzFailure(AssertionError):
    """An input for which something did not hold."""


def fuzz(
    name: str,
    target: Target,
    count: int,
    *,
    first: int = 0,
    seed: int = 0,
    seconds: float = float("inf"),
    outcomes: Counter[str] | None = None,
) -> int:
    """Tries inputs ``first`` to ``first + count - 1``, or as many as begin within ``seconds``; returns how many.

    ``outcomes`` counts what a target says that its inputs came to, where it says so.

    Raises:
        FuzzFailure: with the command that tries the input once more.
    """
    end = time.monotonic() + seconds
    for i in range(first, first + count):
        if time.monotonic() > end:
            return i - first
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            faulthandler.dump_traceback_later(_FIRST if i == first else _LONGEST, exit=True)
            try:
                outcome = target(random.Random(f"{seed} {name} {i}"), Path(folder))
                if outcomes is not None and isinstance(outcome, str):
                    outcomes[outcome] += 1
            except Exception as error:
                again = f"python -m tests.fuzz {name!r} --first {i} --count 1 --seed {seed}"
                raise FuzzFailure(f"{type(error).__name__}: {error}\n{again}") from error
            finally:
                faulthandler.cancel_dump_traceback_later()
    return count
