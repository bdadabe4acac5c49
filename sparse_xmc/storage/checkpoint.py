"""Atomic checkpoints: a folder appears complete or not at all, and a damaged one is recognised.

A checkpoint is a folder of safetensors and JSON files with a manifest of sizes and CRC-32 sums. It is written under a
temporary name, flushed to disk and renamed; only then are older ones removed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.storage.atomic import existing_folder, flush, replace_folder
from sparse_xmc.storage.tensor_file import ALONE, Shards, load_tensors, save_tensors

_MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{10})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and what to do."""


def _crc(path: str) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def flatten_tensors(state: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested state as JSON-ready structure, with tensors replaced by references, and the tensors by name."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"__tensor__": name}
        if isinstance(value, Mapping):
            return {"__dict__": [[key, walk(item, f"{name}.{key}")] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return [walk(item, f"{name}.{i}") for i, item in enumerate(value)]
        return value

    return walk(state, prefix), tensors


def restore_tensors(structure: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``flatten_tensors`` (tuples come back as lists)."""
    if isinstance(structure, dict):
        if "__tensor__" in structure:
            return tensors[structure["__tensor__"]]
        return {key: restore_tensors(item, tensors) for key, item in structure["__dict__"]}
    if isinstance(structure, list):
        return [restore_tensors(item, tensors) for item in structure]
    return structure


def write_folder(
    folder: str, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any], shards: Shards = ALONE
) -> None:
    """Writes ``{name}.safetensors`` and ``{name}.json`` files and their manifest as one atomic folder.

    All ranks of ``shards`` call it, with the same names; the first writes whole tensors and its own documents.

    Raises:
        CheckpointError: the disk is full or not writable; what stood there before is untouched.
    """
    partial = f"{folder}.partial"
    if not shards.first:
        for name, group in tensors.items():
            save_tensors(os.path.join(partial, f"{name}.safetensors"), group, shards)
        return
    try:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        for name, group in tensors.items():
            save_tensors(os.path.join(partial, f"{name}.safetensors"), group, shards)
        for name, document in documents.items():
            with open(os.path.join(partial, f"{name}.json"), "w", encoding="utf-8") as file:
                json.dump(document, file)
        names = sorted(os.listdir(partial))
        manifest = {n: [os.path.getsize(os.path.join(partial, n)), _crc(os.path.join(partial, n))] for n in names}
        with open(os.path.join(partial, _MANIFEST), "w", encoding="utf-8") as file:
            json.dump(manifest, file)
        for name in [*names, _MANIFEST]:
            flush(os.path.join(partial, name))
        flush(partial)
        replace_folder(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else str(error)
        raise CheckpointError(f"could not write {folder}: {reason}; checkpoints written before are intact") from error


def read_folder(folder: str, shards: Shards = ALONE) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors and documents of a checkpoint by file name, after comparing every file with the manifest.

    Of tensors that ``shards`` spreads each rank reads its own block.

    Raises:
        CheckpointError: a file is missing, truncated or damaged.
    """
    folder = existing_folder(folder)
    manifest = _manifest(folder)
    tensors: dict[str, dict[str, Tensor]] = {}
    documents: dict[str, Any] = {}
    for name, (size, crc) in manifest.items():
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            raise CheckpointError(f"{path} is missing")
        if os.path.getsize(path) != size:
            raise CheckpointError(f"{path} is truncated: {os.path.getsize(path)} bytes of {size}")
        if _crc(path) != crc:
            raise CheckpointError(f"{path} is damaged: its checksum differs from the one in {_MANIFEST}")
        stem, ending = os.path.splitext(name)
        if ending == ".json":
            with open(path, encoding="utf-8") as file:
                documents[stem] = json.load(file)
        else:
            tensors[stem] = load_tensors(path, shards)
    return tensors, documents


def _manifest(folder: str) -> dict[str, list[int]]:
    """Size and checksum of every file of a checkpoint."""
    try:
        with open(os.path.join(folder, _MANIFEST), encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no readable checkpoint: {_MANIFEST}: {error}") from None
    written = {name for name in os.listdir(folder) if name.endswith((".json", ".safetensors"))} - {_MANIFEST}
    sound = isinstance(manifest, dict) and all(
        isinstance(entry, list) and [type(number) for number in entry] == [int, int] for entry in manifest.values()
    )
    if not sound or not manifest or not written <= manifest.keys():
        raise CheckpointError(f"{folder} is no readable checkpoint: {_MANIFEST} does not list its files")
    return manifest


class CheckpointStore:
    """The checkpoints of one run: ``folder/step-0000000123``; the newest ``keep`` stay.

    Args:
        folder: made when the first checkpoint is written.
        keep: how many stay, so that a damaged newest one costs little.

    Raises:
        ValueError: ``keep`` is below 1.

    Attributes:
        shards: how the tensors are spread where several ranks save and load, all at once.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self.keep = os.fspath(folder), keep
        self.shards = ALONE

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        if not os.path.isdir(self.folder):
            return []
        matches = (_NAME.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(match[1]) for match in matches if match)

    def _path(self, step: int) -> str:
        return os.path.join(self.folder, f"step-{step:010d}")

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> None:
        """Writes the checkpoint of ``step``, then removes all but the ``keep`` newest.

        Later ones are of a run that went on from this one or an older one, as they were damaged: removed too.
        """
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"could not make {self.folder}: {error}") from error
        write_folder(self._path(step), tensors, documents, self.shards)
        steps = self.steps() if self.shards.first else []
        kept = [other for other in steps if other <= step][-self.keep :]
        for other in steps:
            if other not in kept:
                shutil.rmtree(self._path(other), ignore_errors=True)

    def load_latest(self, report: Any = print) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The newest intact checkpoint, None where there is none at all.

        A damaged one is reported and passed over for the one before it.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                tensors, documents = read_folder(self._path(step), self.shards)
                return step, tensors, documents
            except CheckpointError as error:
                reasons.append(str(error))
                report(f"checkpoint of step {step} passed over: {error}")
        if reasons:
            raise CheckpointError(
                f"no intact checkpoint in {self.folder} ({'; '.join(reasons)}); remove the folder to start anew"
            )
        return None


def random_state() -> dict[str, Any]:
    """State of torch's generators: the CPU's, and the current GPU's where there is one."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"].to(torch.uint8))
    if state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
