"""Remembered winners of searches: one small json file per GPU model, readable and safe to write concurrently.

Files of the same form that ``python -m bench tune`` measured are shipped in ``tuned/`` beside this module.
"""

import contextlib
import fcntl
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent / "tuned"


def directory() -> Path:
    """``$SPARSE_XMC_CACHE_DIR``, else ``sparse_xmc`` in the user's cache directory."""
    chosen = os.environ.get("SPARSE_XMC_CACHE_DIR")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparse_xmc"


def file_name(gpu: str) -> str:
    """Of the entries of a GPU model."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", gpu) + ".json"


def path(gpu: str) -> Path:
    """The file that this user's searches write for a GPU model."""
    return directory() / file_name(gpu)


@functools.cache
def read(gpu: str) -> dict[str, dict[str, Any]]:
    """All entries of a GPU model, read once per process; a missing or broken file counts as empty."""
    return _load(path(gpu))


@functools.cache
def shipped(gpu: str) -> dict[str, dict[str, Any]]:
    """The entries that came with the package for a GPU model, read once per process."""
    return _load(SHIPPED / file_name(gpu))


def write(gpu: str, key: str, entry: dict[str, Any]) -> None:
    """Adds or replaces one entry, keeping what other processes have written meanwhile.

    A directory that can't be written to costs the memory of the search, not the run.
    """
    read(gpu)[key] = entry
    file = path(gpu)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = json.dumps({**_load(file), key: entry}, indent=1, sort_keys=True)
            new = file.with_suffix(".tmp")
            try:
                new.write_text(text)
                os.replace(new, file)
            finally:
                new.unlink(missing_ok=True)


def _load(file: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
