"""Sharded checkpoints of version 0.1, which torch.distributed.checkpoint wrote: an index as a pickle, tensors beside it.

The index is read by an unpickler that can make nothing but records without behaviour, and the tensors by torch's
``weights_only`` reader: no code of a checkpoint runs. There are no checksums in it, so damage that leaves the format sound
is not seen: load such a checkpoint once and save it anew.
"""

from __future__ import annotations

import io
import os
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.storage.errors import ArtefactError, taking_apart
from sparse_xmc.storage.regular import open_regular, parse_json, plain_name, read_bytes
from sparse_xmc.storage.tensor_file import Shards, all_finite

_INDEX, _DOCUMENT = ".metadata", "run.json"
_MOST_INDEX_BYTES = 1 << 28


class _Record:
    """What stands in for every class: attributes, or the arguments that it was made of."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict) and all(isinstance(name, str) and name.isidentifier() for name in state):
            self.__dict__.update(state)


_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _RECORDS.get(module, ()):
            return _Record
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")


def is_one(folder: str) -> bool:
    """Whether a folder looks like a checkpoint of this kind."""
    return os.path.lexists(os.path.join(folder, _INDEX))


class Reader:
    """An index that was read.

    Raises:
        ArtefactError: the index or the document is damaged, or a file that they name is missing or too short.

    Attributes:
        document: ``extra`` and parameter groups.
        digest: of index and document.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        path = os.path.join(folder, _INDEX)
        index = read_bytes(path, _MOST_INDEX_BYTES)
        content = read_bytes(os.path.join(folder, _DOCUMENT))
        self.document = parse_json(content, os.path.join(folder, _DOCUMENT))
        if not isinstance(self.document, dict) or not {"extra", "param_groups"} <= self.document.keys():
            raise ArtefactError("is damaged: it does not hold extra and param_groups", os.path.join(folder, _DOCUMENT))
        self.digest = zlib.crc32(content, zlib.crc32(index))
        try:
            with taking_apart(path, "index of a checkpoint"):
                self._take(_IndexUnpickler(io.BytesIO(index)).load())
        except (pickle.UnpicklingError, EOFError, ImportError, MemoryError, UnicodeError) as error:
            raise ArtefactError(f"is damaged: it is no index of a checkpoint ({error})", path) from None

    def _take(self, index: Any) -> None:
        self.sizes: dict[str, list[int]] = {}
        self.pieces: dict[str, list[tuple[list[int], str, int, int]]] = {}
        for name, entry in index.state_dict_metadata.items():
            self.sizes[name] = [int(size) for size in entry.size]
        for key, place in index.storage_data.items():
            file = plain_name(place.relative_path, self.folder)
            start, length = int(place.offset), int(place.length)
            path = os.path.join(self.folder, file)
            if start < 0 or length < 0 or not os.path.isfile(path) or os.path.getsize(path) < start + length:
                raise ArtefactError("is missing or truncated", path)
            first = [int(number) for number in (key.offset or ())]
            self.pieces.setdefault(key.fqn, []).append((first, file, start, length))

    def read(self, shards: Shards, finite: Callable[[str, str], bool]) -> dict[str, Tensor]:
        """The tensors, of spread ones this rank's block."""
        tensors = {}
        for name, size in self.sizes.items():
            with taking_apart(os.path.join(self.folder, _INDEX), f"index of {name}"):
                tensors[name] = self._tensor(name, size, shards)
            if finite("model", name) and not all_finite(tensors[name]):
                raise ArtefactError(f"is damaged: {name} holds NaN or infinity", self.folder)
        return tensors

    def _tensor(self, name: str, size: list[int], shards: Shards) -> Tensor:
        block = shards.wanted(name, size)
        rows = range(size[0] if size else 0) if block is None else block.rows
        parts = []
        at = rows.start
        for first, file, start, length in sorted(self.pieces[name]):
            with open_regular(os.path.join(self.folder, file)) as source:
                source.seek(start)
                content = source.read(length)
            try:
                part = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, EOFError, OSError) as error:
                raise ArtefactError(f"is damaged: {name}: {str(error).partition(chr(10))[0]:.120}", file) from None
            if not isinstance(part, Tensor):
                raise ValueError(f"{name} is {type(part).__name__}, no tensor")
            if not size:
                return part
            begin = first[0] if first else 0
            if begin <= at < begin + len(part) and list(part.shape[1:]) == size[1:]:
                parts.append(part[at - begin : rows.stop - begin])
                at += len(parts[-1])
        if at != max(rows.stop, rows.start) or (size and not parts and len(rows)):
            raise ValueError(f"{name} has {at - rows.start} rows of {len(rows)}")
        return torch.cat(parts) if parts else torch.empty(0, *size[1:])
