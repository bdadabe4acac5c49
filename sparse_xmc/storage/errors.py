"""The error of everything that this program writes for itself and reads again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class ArtefactError(RuntimeError):
    """A checkpoint, model, cache or log cannot be written or read, or is not what was written.

    Args:
        reason: what is wrong and, where there is something, what to do.
        path: the file or folder, which then begins the message; None where ``reason`` names it.
    """

    def __init__(self, reason: str, path: str | os.PathLike[str] | None = None) -> None:
        self.reason, self.path = reason, None if path is None else os.fspath(path)
        super().__init__(reason if path is None else f"{self.path} {reason}")

    @classmethod
    def not_written(cls, path: str, error: OSError, intact: str = "what stood there before is intact") -> ArtefactError:
        """What is said of a file or folder whose writing failed."""
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
        return cls(f"could not write {path}: {reason}; {intact}")


@contextmanager
def taking_apart(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turns whatever the content of an artefact brings about while it is used into an ``ArtefactError`` that names it.

    For what has the right checksums and the wrong content. Memory that runs out stays what it is.
    """
    try:
        yield
    except ArtefactError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
            raise
        text = " ".join(str(error).split())
        raise ArtefactError(f"is damaged: it is no {what} ({type(error).__name__}: {text:.300})", path) from error
