"""Checksums of what a run reports beside its model (``metrics.json``, ``config.toml``), in ``reports.json``.

These files are for people, who may edit them; who did, or what damaged them, is then told instead of being believed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sparse_xmc.storage.atomic import write_json
from sparse_xmc.storage.checkpoint import manifest_document
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.regular import plain_name, read_bytes, read_json

REPORTS = "reports.json"


@contextmanager
def recorded(path: str) -> Iterator[None]:
    """Around the writing of a report: from then on ``changed`` knows its content. Killed meanwhile, it knows nothing of it."""
    out, name = os.path.split(path)
    listed = os.path.join(out, REPORTS)
    files = _files(out)
    if files.pop(name, None) is not None:
        write_json(listed, manifest_document(files, None))
    yield
    with suppress(ArtefactError):  # its name or kind is none that is read back: a link, a device
        plain_name(name, out)
        files[name] = _entry(path)
        write_json(listed, manifest_document(files, None))


def changed(path: str) -> bool:
    """Whether a report is another one than a run or a command wrote. Of older versions' nothing is known: False."""
    out, name = os.path.split(path)
    entry = _files(out).get(name)
    if entry is None:
        return False
    try:
        return _entry(path) != entry
    except ArtefactError:
        return True


def _entry(path: str) -> list[int]:
    content = read_bytes(path)
    return [len(content), zlib.crc32(content)]


def _files(out: str) -> dict[str, Any]:
    """What is recorded in a folder: nothing where the record is missing or damaged."""
    try:
        document = read_json(os.path.join(out, REPORTS))
        files = document["files"]
        return dict(files) if document == manifest_document(files, None) else {}
    except (ArtefactError, AttributeError, LookupError, TypeError, ValueError):
        return {}
