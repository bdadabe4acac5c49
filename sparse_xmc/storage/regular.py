"""Files of an artefact as they may come from a stranger: plain names, regular files, bounded and strictly parsed JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from typing import Any, BinaryIO

from sparse_xmc.storage.errors import ArtefactError

MOST_DOCUMENT_BYTES = 1 << 32  # of a JSON document whose size a manifest tells: labels and terms
MOST_RECORD_BYTES = 1 << 26  # of a manifest, an identity, a line of a log
_MOST_NESTING = 64
_PLAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9_-])?")
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt")


def plain_name(name: object, where: str) -> str:
    """``name`` if it is the base name of a file, without any folder and of ordinary characters.

    Raises:
        ArtefactError: it is something else, for which ``where`` is told as the place that it stands in.
    """
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise ArtefactError(f"names a file {name!r:.80}, which is no plain file name", where)
    return name


def data_name(name: object, where: str) -> str:
    """``plain_name`` of a file that holds data: not of one that an interpreter or a loader of pickles would run."""
    plain = plain_name(name, where)
    if plain.lower().endswith(_CODE):
        raise ArtefactError(f"holds a file {plain!r}: a model folder is data and brings no code or pickles", where)
    return plain


def open_regular(path: str) -> BinaryIO:
    """Opens a file for reading that is no link, device or pipe.

    Raises:
        ArtefactError: it is missing or something else.
    """
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise ArtefactError("is missing", path) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ArtefactError("is a link or no regular file: files of an artefact are regular files", path) from None
        raise ArtefactError(f"cannot be read: {error.strerror}", path) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ArtefactError("is no regular file", path)
    return os.fdopen(handle, "rb")


def read_bytes(path: str, most: int = MOST_RECORD_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        ArtefactError: it is no such file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # ``read`` makes room for all that it is asked for
        content = file.read(min(most, size) + 1)
    if len(content) > most:
        raise ArtefactError(f"is longer than the {most:,} bytes that it may have", path)
    return content


def parse_json(content: bytes | str, path: str, where: str = "") -> Any:
    """A JSON document in UTF-8, its nesting bounded, without NaN and without a key that stands twice in an object.

    Args:
        path, where: named in errors, ``where`` as the place within the file.

    Raises:
        ArtefactError: it is no such JSON, or nested too deep.
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
        document = json.loads(text, object_pairs_hook=_distinct, parse_constant=_number)
    except RecursionError:
        raise ArtefactError(f"is damaged{where}: nested more than {_MOST_NESTING} deep", path) from None
    except ValueError as error:
        raise ArtefactError(f"is damaged{where}: no JSON: {error}", path) from None
    _check_nesting(document, content, path, where)
    return document


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys mean the same to every reader."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r:.80} stands twice")
    return found


def _number(name: str) -> float:
    """Infinity, which version 0.1 wrote where an option has no limit."""
    if name == "NaN":
        raise ValueError("NaN is no number of JSON")
    return float(name)


def _check_nesting(document: Any, content: bytes | str, path: str, where: str) -> None:
    text = content.encode() if isinstance(content, str) else content
    if text.count(b"[") + text.count(b"{") <= _MOST_NESTING:
        return
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > _MOST_NESTING:
            raise ArtefactError(f"is damaged{where}: nested more than {_MOST_NESTING} deep", path)
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [item for part in parts for item in part if isinstance(item, (dict, list))]


def read_json(path: str, most: int = MOST_RECORD_BYTES) -> Any:
    """A JSON file.

    Raises:
        ArtefactError: it is missing, no regular file, too long, no JSON or nested too deep.
    """
    return parse_json(read_bytes(path, most), path)


def to_json(document: Any, path: str, **options: Any) -> str:
    """A document as JSON text.

    Raises:
        FloatingPointError: it holds NaN or infinity, which JSON has no words for.
    """
    try:
        return json.dumps(document, allow_nan=False, **options)
    except ValueError as error:
        if "JSON compliant" not in str(error):
            raise
        raise FloatingPointError(f"{path} is not written: a number in it is NaN or infinite ({error})") from None
