"""Tokenised texts in a memory-mapped cache: written once as a stream, read row by row, never wholly in memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from sparse_xmc.storage.atomic import flush, make_folder, replace_folder
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.lock import FolderLock

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
_CHUNK = 1024  # texts handed to the tokeniser at a time
_IDS, _OFFSETS, _DOCUMENT = "ids.bin", "offsets.bin", "tokens.json"
_PARTIAL = ".partial-"


def cache_key(**parts: Any) -> str:
    """A name for a cache made from everything that its content depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while chunk := list(islice(stream, _CHUNK)):
        yield chunk


class TokenRows:
    """Token ids of ``N`` texts: a flat array of ids and ``N + 1`` offsets, in memory or mapped into it.

    Examples:
        >>> from sparse_xmc.data import TokenRows
        >>> rows = TokenRows.from_texts(["a b", "c"], lambda texts: [[ord(w) for w in t.split()] for t in texts], 128)
        >>> rows.ids.tolist(), rows.offsets.tolist()
        ([97, 98, 99], [0, 2, 3])
    """

    def __init__(self, offsets: np.ndarray, ids: np.ndarray) -> None:
        self.offsets, self.ids = offsets, ids

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @classmethod
    def from_texts(cls, texts: Iterable[str], tokenize: Tokenize, vocabulary_size: int) -> TokenRows:
        """Tokenises a stream of texts in memory."""
        parts = [np.asarray(ids, _id_dtype(vocabulary_size)) for chunk in _chunks(texts) for ids in tokenize(chunk)]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]).astype(np.int64)
        return cls(offsets, np.concatenate([np.empty(0, _id_dtype(vocabulary_size)), *parts]))


def _id_dtype(vocabulary_size: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


class TokenCache(TokenRows):
    """Token ids of ``N`` texts: a memory-mapped flat array of ids and ``N + 1`` offsets, both with their checksums.

    Raises:
        ValueError: the folder holds no cache, or a truncated or damaged one.

    Examples:
        >>> from sparse_xmc.data import TokenCache
        >>> cache = TokenCache.build("tokens", ["a b", "c"], lambda texts: [[ord(w) for w in t.split()] for t in texts], 128)
        >>> len(TokenCache("tokens"))
        2
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        ids, offsets = (os.path.join(self.folder, name) for name in (_IDS, _OFFSETS))
        try:
            with open(os.path.join(self.folder, _DOCUMENT), encoding="utf-8") as file:
                document = json.load(file)
            for path in (ids, offsets):
                if _digest(path) != document["sha256"][os.path.basename(path)]:
                    raise ValueError(f"{os.path.basename(path)} has another checksum than it was written with")
            dtypes: dict[str, np.dtype[Any]] = {"uint16": np.dtype(np.uint16), "uint32": np.dtype(np.uint32)}
            dtype = dtypes[document["dtype"]]
            self.offsets = np.fromfile(offsets, dtype=np.int64)
            self.ids = np.memmap(ids, dtype=dtype, mode="r") if os.path.getsize(ids) else np.empty(0, dtype)
            if len(self) != document["rows"] or self.offsets[-1] != len(self.ids):
                raise ValueError(f"it holds {len(self)} rows of {len(self.ids)} tokens in all")
        except Exception as error:  # whatever damage brings about
            raise ValueError(f"{self.folder} holds no complete token cache: {error}") from error

    @classmethod
    def build(
        cls, folder: str | os.PathLike[str], texts: Iterable[str], tokenize: Tokenize, vocabulary_size: int
    ) -> TokenCache:
        """Tokenises a stream of texts. The folder appears when it is complete; remains of dead processes beside it go.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = os.fspath(folder)
        make_folder(os.path.dirname(os.path.abspath(folder)))
        sweep_partial_caches(os.path.dirname(os.path.abspath(folder)))
        partial = f"{folder}{_PARTIAL}{os.getpid()}-{threading.get_ident()}"
        os.mkdir(partial)
        try:
            with FolderLock(partial):
                _write(partial, texts, tokenize, _id_dtype(vocabulary_size))
                replace_folder(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(folder)


def sweep_partial_caches(folder: str) -> None:
    """Removes caches in ``folder`` that processes began and did not live to complete; those of living ones are locked."""
    for entry in list(os.scandir(folder)):
        if _PARTIAL in entry.name and entry.is_dir(follow_symlinks=False):
            with suppress(ArtefactError, OSError), FolderLock(entry.path):
                shutil.rmtree(entry.path, ignore_errors=True)


def _write(folder: str, texts: Iterable[str], tokenize: Tokenize, dtype: np.dtype[Any]) -> None:
    ids_path, offsets_path, document_path = (os.path.join(folder, name) for name in (_IDS, _OFFSETS, _DOCUMENT))
    offsets = array("q", [0])
    with open(ids_path, "wb") as file:
        for chunk in _chunks(texts):
            for ids in tokenize(chunk):
                file.write(np.asarray(ids, dtype=dtype).tobytes())
                offsets.append(offsets[-1] + len(ids))
    with open(offsets_path, "wb") as file:
        offsets.tofile(file)
    sums = {os.path.basename(path): _digest(path) for path in (ids_path, offsets_path)}
    with open(document_path, "w", encoding="utf-8") as document:
        json.dump({"dtype": dtype.name, "rows": len(offsets) - 1, "sha256": sums}, document)
    for path in (ids_path, offsets_path, document_path, folder):
        flush(path)


def _digest(path: str) -> str:
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()
