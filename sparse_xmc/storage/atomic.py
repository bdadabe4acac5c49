"""Files and folders that are on disk before they take the place of older ones; everything that must not be torn comes
through here."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.regular import to_json


def flush(path: str) -> None:
    """Has a file or folder written to disk. Windows flushes only files that are open for writing, and no folders."""
    windows = os.name == "nt"
    if windows and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # which tells only of a number
    finally:
        os.close(handle)


def make_folder(path: str) -> None:
    """Makes a folder with those above it, and has the entry of each new one written to disk."""
    missing = []
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(folder)
        flush(os.path.dirname(folder))


def check_place(path: str, *, folder: bool) -> None:
    """Refuses a place where nothing could be written, before the work whose result is to go there.

    Raises:
        ArtefactError: a file is where a folder is to be or the other way round, there is no folder for a file, or nothing
            may be written there.
    """
    if os.path.exists(path) and os.path.isdir(path) != folder:
        raise ArtefactError(f"is a {'file' if folder else 'folder'}: name another place to write to", path)
    above = path if folder and os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
    while folder and not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise ArtefactError(f"cannot be written: {above} is no folder", path)
    if not os.access(above, os.W_OK | os.X_OK) and not _written_through(path):
        raise ArtefactError(f"cannot be written: no permission to write in {above}", path)


def replace_folder(partial: str, folder: str) -> None:
    """Puts a complete folder in place of an older one; at any moment ``existing_folder`` finds one of the two."""
    old = f"{folder}.old"
    if os.path.isdir(folder):
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(partial, folder)
    flush(os.path.dirname(os.path.abspath(folder)))
    shutil.rmtree(old, ignore_errors=True)


def existing_folder(folder: str) -> str:
    """``folder``, or the older one that was being replaced when the program ended."""
    return f"{folder}.old" if not os.path.isdir(folder) and os.path.isdir(f"{folder}.old") else folder


@contextmanager
def complete_file(path: str, mode: str = "w") -> Iterator[Any]:
    """A file to write, which appears under its name when it is complete.

    A link is followed: its target is replaced and the link stays. A device, pipe or descriptor (``/dev/stdout``) is
    written through as the content comes. What UTF-8 may not hold (half of a surrogate pair in a label) becomes an
    escape.

    Args:
        mode: "w" for text, "wb" for bytes.

    Raises:
        ArtefactError: the disk is full, or the place cannot be written; what stood there before is untouched.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    partial = None
    try:
        if _written_through(path):
            with open(path, mode, **text) as file:
                yield file
            return
        target = os.path.realpath(path)
        partial = f"{target}.{os.getpid()}.partial"
        permissions = _permissions(target)
        with open(partial, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:
            os.chmod(partial, permissions)
        os.replace(partial, target)
        flush(os.path.dirname(target))
    except OSError as error:
        raise ArtefactError.not_written(path, error) from error
    finally:
        if partial is not None:
            with suppress(OSError):
                os.remove(partial)


def _written_through(path: str) -> bool:
    """Whether ``path`` leads to something that is no regular file, or to an open one by its descriptor."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    descriptor = folder == "/dev" or folder.startswith("/proc/")
    linked = os.path.islink(path) and os.readlink(path).startswith(("/proc/", "/dev/"))
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or descriptor or linked


def _permissions(target: str) -> int | None:
    """Permissions of a file that is to be replaced, None where there is none.

    Raises:
        OSError: it is a folder, or protected from writing.
    """
    if not os.path.exists(target):
        return None
    with open(target, "ab"):
        pass
    return stat.S_IMODE(os.stat(target).st_mode)


def write_text(path: str, text: str) -> None:
    """Writes a small file; see ``complete_file``."""
    with complete_file(path) as file:
        file.write(text)


def write_json(path: str, document: Any, **options: Any) -> None:
    """Writes a document as JSON and a line end.

    Raises:
        ArtefactError: as ``complete_file``.
        FloatingPointError: a number is NaN or infinite; nothing is written.
    """
    write_text(path, to_json(document, path, **options) + "\n")
