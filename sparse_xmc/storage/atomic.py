"""Files and folders that are on disk before they take the place of older ones."""

from __future__ import annotations

import os
import shutil


def flush(path: str) -> None:
    """Has a file or folder written to disk. Windows flushes only files that are open for writing, and no folders."""
    windows = os.name == "nt"
    if windows and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
