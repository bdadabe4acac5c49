"""Tokenised texts in a memory-mapped cache: written once as a stream, read row by row, never wholly in memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]
_CHUNK = 1024  # texts handed to the tokeniser at a time


def cache_key(**parts: Any) -> str:
    """A name for a cache made from everything that its content depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def file_identity(path: str | os.PathLike[str]) -> list[Any]:
    """Path, size and modification time: what tells one version of a file from another."""
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while chunk := list(islice(stream, _CHUNK)):
        yield chunk


class TokenRows:
    """Token ids of ``N`` texts: a flat array of ids and ``N + 1`` offsets, in memory or mapped into it."""

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
    """Token ids of ``N`` texts: a memory-mapped flat array of ids and ``N + 1`` offsets.

    Raises:
        ValueError: the folder holds no cache, or a truncated or damaged one.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.fspath(folder)
        try:
            with open(os.path.join(self.folder, "tokens.json"), encoding="utf-8") as file:
                document = json.load(file)
            dtype, rows = np.dtype(document["dtype"]), document["rows"]
            self.offsets = np.load(os.path.join(self.folder, "offsets.npy"))
            if self.offsets.shape != (rows + 1,) or self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
                raise ValueError(f"offsets.npy does not hold the offsets of {rows} rows")
            path = os.path.join(self.folder, "ids.bin")
            size, total = os.path.getsize(path), int(self.offsets[-1])
            if size != total * dtype.itemsize:
                raise ValueError(f"ids.bin holds {size} bytes, expected {total * dtype.itemsize}")
        except Exception as error:  # a damaged header of an array raises errors of many kinds
            raise ValueError(f"{self.folder} holds no complete token cache: {error}") from error
        self.ids = np.memmap(path, dtype=dtype, mode="r") if total else np.empty(0, dtype)

    @classmethod
    def build(
        cls, folder: str | os.PathLike[str], texts: Iterable[str], tokenize: Tokenize, vocabulary_size: int
    ) -> TokenCache:
        """Tokenises a stream of texts. The folder appears only when it is complete."""
        folder = os.fspath(folder)
        dtype = _id_dtype(vocabulary_size)
        partial = f"{folder}.partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        try:
            offsets = [0]
            with open(os.path.join(partial, "ids.bin"), "wb") as file:
                for chunk in _chunks(texts):
                    for ids in tokenize(chunk):
                        file.write(np.asarray(ids, dtype=dtype).tobytes())
                        offsets.append(offsets[-1] + len(ids))
            np.save(os.path.join(partial, "offsets.npy"), np.asarray(offsets, dtype=np.int64))
            with open(os.path.join(partial, "tokens.json"), "w") as file:
                json.dump({"dtype": dtype.name, "rows": len(offsets) - 1}, file)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(folder)
