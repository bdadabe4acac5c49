"""Where data come from: files, folders, standard input (``-``) and pipes, whose bytes are kept in a temporary file."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, Any

from sparse_xmc._progress import Meter
from sparse_xmc.data.errors import DataError, reading

STANDARD_INPUT = "-"
_HEAD = 1 << 16  # bytes that a format is told from
_GZIP = b"\x1f\x8b"


class Source:
    """A file that can be read more than once, whatever the user named.

    Args:
        path: a file, a folder, a pipe or ``-`` for standard input. Pipes are read to their end here.

    Attributes:
        name: what messages call it.
        local: path of a regular file or a folder with its bytes.

    Raises:
        DataError: there is no such file, it may not be read, or it is a device.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = self.local = os.fspath(path)
        if self.name == STANDARD_INPUT:
            self.name = "standard input"
            stream: Any = getattr(sys.stdin, "buffer", None)
            if stream is None:
                raise DataError(self.name, None, "is closed or holds no bytes")
            self._spool(stream)
            return
        with reading(self.name):
            mode = os.stat(self.local).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                with open(self.local, "rb") as pipe:
                    self._spool(pipe)
            elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise DataError(self.name, None, "is a device, expected a file, a folder, a pipe or '-'")

    def _spool(self, stream: IO[bytes]) -> None:
        handle, self.local = tempfile.mkstemp(prefix="sparse_xmc-")
        weakref.finalize(self, _remove, self.local)
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(stream, file)

    @property
    def is_folder(self) -> bool:
        return os.path.isdir(self.local)

    @property
    def ending(self) -> str:
        """The ending of the name in lower case, ``.gz`` left out."""
        return os.path.splitext(self.name.lower().removesuffix(".gz"))[1]

    @property
    def compressed(self) -> bool:
        with reading(self.name), open(self.local, "rb") as file:
            return file.read(2) == _GZIP

    def open(self) -> Any:
        """The bytes of the file, decompressed."""
        return gzip.open(self.local, "rb") if self.compressed else open(self.local, "rb")

    def head(self) -> bytes:
        """The first 65,536 bytes, decompressed."""
        with reading(self.name), self.open() as file:
            return file.read(_HEAD)

    def files(self) -> list[str]:
        """All files of it, for a folder those in there (not below)."""
        if not self.is_folder:
            return [self.local]
        with reading(self.name):
            return sorted(entry.path for entry in os.scandir(self.local) if entry.is_file())

    def digest(self) -> str:
        """SHA-256 of the content: of names and bytes where it is a folder."""
        result = hashlib.sha256()
        for path in self.files():
            if self.is_folder:
                result.update(f"{os.path.basename(path)} {os.path.getsize(path)}\n".encode("utf-8", "surrogateescape"))
            with reading(path), open(path, "rb") as file:
                while block := file.read(1 << 20):
                    result.update(block)
        return result.hexdigest()

    def lines(self, *, progress: bool = False) -> Iterator[tuple[int, str]]:
        """Yields ``(number from 1, line with its end)``; a byte order mark at the beginning is left out.

        Raises:
            DataError: the file is not UTF-8, or its compressed data are cut off.
        """
        with reading(self.name), self.open() as lines:
            meter = Meter(f"reading {os.path.basename(self.name)}", "lines", shown=progress)
            for number, line in meter.over(enumerate(lines, start=1)):
                if 0 in line:
                    raise DataError(
                        self.name, number, f"holds a NUL byte at column {line.index(0) + 1}: no text has one"
                    )
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(self.name, number, f"not UTF-8 text: {error}") from None


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)


def as_source(path: str | os.PathLike[str] | Source) -> Source:
    return path if isinstance(path, Source) else Source(path)


def exists(path: str) -> bool:
    """Whether there is something to read under a name that a user gave."""
    return path == STANDARD_INPUT or os.path.exists(path)


def numbered_lines(path: str | os.PathLike[str] | Source, *, progress: bool = False) -> Iterator[tuple[int, str]]:
    """Yields ``(line number from 1, line without its end)`` of a text file, gzip-compressed or not.

    Lines end with ``\\n`` or ``\\r\\n``. Errors as of ``Source`` and ``Source.lines``.
    """
    for number, line in as_source(path).lines(progress=progress):
        yield number, line.rstrip("\r\n")
