"""A folder that one program at a time works in."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from sparse_xmc.storage.errors import ArtefactError


class FolderLock:
    """Keeps two programs out of one folder; gone with the process that holds it, however that ends.

    The folder itself is locked, so nothing is written. Where a file system cannot do that (NFS), a file ``.lock`` in it
    is locked instead; Windows has neither and only the check of this process.

    Args:
        folder: need not be there yet: ``acquire`` is then for later.
    """

    _held: set[str] = set()  # by this process, to which a second lock would not always be refused

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._handle: int | None = None
        self._name = ""

    def acquire(self) -> None:
        """Locks the folder, if it is there and not locked by this object yet.

        Raises:
            ArtefactError: another program, or another thread of this one, works there.
        """
        if self._name or not os.path.isdir(self.folder):
            return
        name = os.path.realpath(self.folder)
        if name in self._held or not self._lock():
            raise ArtefactError("is in use by another run: wait for its end, or choose another --out", self.folder)
        self._name = name
        self._held.add(name)

    def _lock(self) -> bool:
        try:
            import fcntl
        except ImportError:
            return True
        files = [(self.folder, os.O_RDONLY), (os.path.join(self.folder, ".lock"), os.O_RDWR | os.O_CREAT)]
        for path, flags in files:
            handle = os.open(path, flags, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            except OSError:
                os.close(handle)
                continue
            self._handle = handle
            return True
        raise ArtefactError("cannot be locked: its file system has no locks; choose another --out", self.folder)

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._held.discard(self._name)
        self._handle, self._name = None, ""

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.suppress(OSError):
            self.release()
