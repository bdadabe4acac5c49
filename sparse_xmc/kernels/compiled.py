"""How kernels are compiled and kept on disk."""

import functools
import hashlib
import os
import pathlib
import sys

from numba import njit

FASTMATH = {"contract", "reassoc", "nsz"}  # NaN and infinity keep their meaning


@functools.cache
def _sources(folder: str) -> str:
    """Digest of the sources in a folder of kernels and of this one, whose functions kernels inline."""
    digest = hashlib.sha256()
    for place in dict.fromkeys((folder, os.path.dirname(__file__))):
        for path in sorted(pathlib.Path(place).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def kernel(function):
    """Compiles a kernel for any thread: no GIL, cached on disk, one signature per combination of dtypes in use.

    Numba takes a cached kernel for current if the kernel's own file did not change. These kernels inline functions of
    other files, so all that lie beside it go into the stamp that it compares.
    """
    options = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy", "boundscheck": False}
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError as error:  # there is no folder that Numba could write to
        _tell_once(error)
        return njit(**options)(function)
    cache = getattr(compiled, "_cache", None)  # neither exists with NUMBA_DISABLE_JIT
    file = getattr(cache, "_cache_file", None)
    if file is not None:
        folder = os.path.dirname(function.__code__.co_filename)
        file._source_stamp = (file._source_stamp, _sources(folder))
        cache.save_overload = _forgiving(cache.save_overload)
        cache.load_overload = _forgiving(cache.load_overload)
    return compiled


def _forgiving(access):
    """An access to the cache that may fail (a full disk, a folder that became read-only): it costs time, not a result."""

    @functools.wraps(access)
    def attempt(*arguments):
        try:
            return access(*arguments)
        except OSError as error:
            _tell_once(error)
            return None

    return attempt


@functools.cache
def _told() -> list[str]:
    return []


def _tell_once(error: Exception) -> None:
    if not _told():
        reason = " ".join(str(error).split())
        _told().append(reason)
        print(
            f"sparse_xmc: compiled kernels cannot be kept, so each start compiles them anew ({reason:.200}): set "
            "NUMBA_CACHE_DIR to a folder that can be written",
            file=sys.stderr,
        )
