"""The error of every reader: it names the file, the line and what is wrong with it."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from sparse_xmc._progress import Meter


class DataError(ValueError):
    """A data file cannot be used; the message reads ``file:line: reason``."""

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


def numbered_lines(path: str | os.PathLike[str], *, progress: bool = False) -> Iterator[tuple[int, str]]:
    """Yields ``(line number from 1, line without its end)`` of a text file, gzip-compressed or not.

    Lines end with ``\\n`` or ``\\r\\n``. A byte order mark at the beginning is left out.

    Raises:
        DataError: the file is missing, is not UTF-8 or its compressed data are cut off.
    """
    with reading(path):
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        opener = gzip.open if compressed else open
        with opener(path, "rb") as lines:
            meter = Meter(f"reading {os.path.basename(path)}", "lines", shown=progress)
            for number, line in meter.over(enumerate(lines, start=1)):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(path, number, f"not UTF-8 text: {error}") from None
                yield number, text.rstrip("\r\n")
