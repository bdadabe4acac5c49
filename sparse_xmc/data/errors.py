"""The error of every reader: it names the file, the line and what is wrong with it."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """A data file cannot be used; the message reads ``file:line: reason``.

    Examples:
        >>> from sparse_xmc.data import DataError
        >>> str(DataError("train.jsonl", 7, "a label is no string"))
        'train.jsonl:7: a label is no string'
    """

    def __init__(self, path: str | os.PathLike[str], line: int | None, reason: str) -> None:
        self.path, self.line, self.reason = os.fspath(path), line, reason
        super().__init__(f"{self.path}:{line}: {reason}" if line is not None else f"{self.path}: {reason}")


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what goes wrong while a file is read into a ``DataError`` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(path, None, "no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(path, None, f"truncated or corrupt gzip data ({error})") from None
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, DataError) or "null byte" not in str(error):
            raise
        raise DataError(path, None, "no such file") from None
