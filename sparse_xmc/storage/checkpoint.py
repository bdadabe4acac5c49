"""Atomic checkpoints: a folder appears complete or not at all, and a damaged one is recognised.

A checkpoint is a folder of safetensors and JSON files with a manifest of sizes and CRC-32 sums. It is written under a
temporary name, flushed to disk and renamed; only then are older ones removed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sparse_xmc.storage.atomic import existing_folder, flush, make_folder, replace_folder
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.flusher import Flusher
from sparse_xmc.storage.regular import MOST_DOCUMENT_BYTES, parse_json, plain_name, read_bytes, to_json
from sparse_xmc.storage.tensor_file import (
    ALONE,
    Shards,
    all_finite,
    check_tensors,
    load_arrays,
    load_tensors,
    save_tensors,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sparse_xmc.storage.tensor_file import Numbers

CheckpointError = ArtefactError  # its name up to version 0.1
Finite = Callable[[str, str], bool]

_MANIFEST = "manifest.json"
_FORMAT = 2
_NAME = re.compile(r"step-(\d{10})")
_ENDINGS = (".json", ".safetensors")


def _weights(stem: str, name: str) -> bool:
    """Which tensors of a run's files may hold neither NaN nor infinity."""
    return stem in ("model", "preparation")


def flatten_tensors(state: Any, prefix: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A nested state as JSON-ready structure, with tensors replaced by references, and the tensors by name."""
    from torch import Tensor

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
    folder: str,
    tensors: Mapping[str, Mapping[str, Numbers]],
    documents: Mapping[str, Any],
    shards: Shards = ALONE,
    *,
    run: str | None = None,
    finite: Finite = _weights,
) -> None:
    """Writes ``{name}.safetensors`` and ``{name}.json`` files and their manifest as one atomic folder.

    All ranks of ``shards`` call it, with the same names; the first writes whole tensors and its own documents. It reads
    back what it has written before that takes its name, and what fails on one rank is raised on all.

    Args:
        tensors: of torch, or arrays of NumPy.
        run: identity of the run that this is a part of; None: of none.
        finite: tells by file and name whether a tensor may hold neither NaN nor infinity.

    Raises:
        ArtefactError: the disk is full or not writable; what stood there before is untouched.
        FloatingPointError: a number is NaN or infinite where that is not allowed.
    """
    names = sorted(f"{stem} {name}" for stem, group in tensors.items() for name in group)
    said = shards.exchange(zlib.crc32("\n".join(names).encode()))
    if any(one != said[0] for one in said):
        raise ArtefactError(f"{folder} is not written: the ranks hold tensors of different names")
    wrong = [
        f"{n}" for stem, group in tensors.items() for n, t in group.items() if finite(stem, n) and not all_finite(t)
    ]
    shards.raise_together(
        FloatingPointError(f"{folder} is not written: {wrong[0]} holds NaN or infinity") if wrong else None
    )
    unfinished = f"{folder}.partial"
    failure: Exception | None = None
    if shards.first:
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            make_folder(unfinished)
        except OSError as error:
            failure = error
    with Flusher() as flusher:
        for name, group in tensors.items():
            try:
                failed = save_tensors(os.path.join(unfinished, f"{name}.safetensors"), group, shards, flusher=flusher)
            except OSError as error:
                failed = error
            except ArtefactError:  # of all ranks
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            failure = failure or failed
        if shards.first:
            try:
                if failure is None:
                    _complete(unfinished, documents, run, flusher)
                    replace_folder(unfinished, folder)
            except (OSError, ArtefactError, FloatingPointError) as error:
                failure = error
            if failure is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
    if isinstance(failure, OSError):
        failure = ArtefactError.not_written(folder, failure, "checkpoints written before are intact")
    shards.raise_together(failure)


def _complete(unfinished: str, documents: Mapping[str, Any], run: str | None, flusher: Flusher) -> None:
    """Adds documents and manifest, reads everything back and has it written to disk meanwhile."""
    for name, document in documents.items():
        path = os.path.join(unfinished, f"{name}.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write(to_json(document, path))
    names = sorted(os.listdir(unfinished))
    for name in names:
        flusher.begin(os.path.join(unfinished, name))
    files = {}
    for name in names:
        path = os.path.join(unfinished, plain_name(name, unfinished))
        crc = (
            check_tensors(path) if name.endswith(".safetensors") else zlib.crc32(read_bytes(path, MOST_DOCUMENT_BYTES))
        )
        files[name] = [os.path.getsize(path), crc]
    path = os.path.join(unfinished, _MANIFEST)
    with open(path, "w", encoding="utf-8") as file:
        file.write(to_json(manifest_document(files, run), path))
    flusher.begin(path)
    flusher.finish()
    flush(unfinished)


def read_folder(
    folder: str, shards: Shards = ALONE, *, run: str | None = None, finite: Finite = _weights, mapped: bool = False
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors and documents of a checkpoint by file name, after comparing every file with the manifest.

    Of tensors that ``shards`` spreads each rank reads its own block. Nothing outside the folder is opened.

    Args:
        run: identity of the run that the folder must be a part of, if it tells; None: of any.
        finite: as in ``write_folder``.
        mapped: as in ``load_tensors``.

    Raises:
        ArtefactError: a file is missing, truncated, damaged or of another run.
    """

    def load(path: str, stem: str) -> tuple[dict[str, Tensor], int]:
        return load_tensors(path, shards, finite=partial(finite, stem), mapped=mapped)

    return _read(folder, run, load)


def read_arrays(
    folder: str, *, run: str | None = None, finite: Finite = _weights
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """As ``read_folder``, for NumPy and without torch.

    Raises:
        ArtefactError: likewise, or NumPy lacks the dtype of a tensor.
    """
    return _read(folder, run, lambda path, stem: load_arrays(path, finite=partial(finite, stem)))


def _read(
    folder: str, run: str | None, load: Callable[[str, str], tuple[dict[str, Any], int]]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    folder = existing_folder(folder)
    manifest = read_manifest(folder)
    if run is not None and manifest.run not in (None, run):
        raise ArtefactError(f"is of another run ({manifest.run}, not {run})", folder)
    tensors: dict[str, dict[str, Any]] = {}
    documents: dict[str, Any] = {}
    for name, (size, crc) in manifest.files.items():
        path = os.path.join(folder, name)
        found = _size(path)
        if found != size:
            raise ArtefactError(f"is truncated: {found} bytes of {size}", path)
        stem, ending = os.path.splitext(name)
        if ending == ".json":
            content = read_bytes(path, size)
            found_crc = zlib.crc32(content)
        else:
            tensors[stem], found_crc = load(path, stem)
        if found_crc != crc:
            raise ArtefactError(f"is damaged: its checksum differs from the one in {_MANIFEST}", path)
        if ending == ".json":
            documents[stem] = parse_json(content, path)
    return tensors, documents


def check_folder(folder: str) -> None:
    """Compares every file of a checkpoint with its manifest, without keeping any in memory.

    Raises:
        ArtefactError: a file is missing, truncated or damaged.
    """
    for name, (size, crc) in read_manifest(folder).files.items():
        path = os.path.join(folder, name)
        if _size(path) != size:
            raise ArtefactError(f"is truncated: {_size(path)} bytes of {size}", path)
        if (check_tensors(path) if name.endswith(".safetensors") else zlib.crc32(read_bytes(path, size))) != crc:
            raise ArtefactError(f"is damaged: its checksum differs from the one in {_MANIFEST}", path)


def _size(path: str) -> int:
    try:
        found = os.lstat(path)
    except OSError:
        raise ArtefactError("is missing", path) from None
    if not stat.S_ISREG(found.st_mode):
        raise ArtefactError("is a link or no regular file: files of an artefact are regular files", path)
    return found.st_size


class Manifest(NamedTuple):
    """What an artefact says of itself.

    Args:
        files: size and CRC-32 of each file by its name.
        run: identity of the run that wrote it; None: it does not tell.
        digest: of the manifest, and so of everything.
    """

    files: dict[str, tuple[int, int]]
    run: str | None
    digest: int


def manifest_document(files: Mapping[str, list[int]], run: str | None) -> dict[str, Any]:
    """What a manifest holds, its own checksum included."""
    document = {"format": _FORMAT, "run": run, "files": dict(files)}
    return {**document, "crc": zlib.crc32(to_json(document, _MANIFEST, sort_keys=True).encode())}


def read_manifest(folder: str) -> Manifest:
    """The manifest of an artefact's folder.

    Raises:
        ArtefactError: there is none, or one that does not describe the files that are there.
    """
    path = os.path.join(folder, _MANIFEST)
    try:
        content = read_bytes(path)
        document = parse_json(content, path)
    except ArtefactError as error:
        raise ArtefactError(f"is no readable checkpoint: {error}", folder) from None
    run = None
    if isinstance(document, dict) and "files" in document:
        run, files = document.get("run"), document["files"]
        if document.get("format") != _FORMAT:
            raise ArtefactError(f"has format {document.get('format')!r:.40}, this version reads up to {_FORMAT}", path)
    else:
        files = document  # up to version 0.1
    sound = isinstance(files, dict) and isinstance(run, (str, type(None))) and bool(files)
    if not sound or not all(map(_is_entry, files.values())) or not _written(folder) <= files.keys():
        raise ArtefactError(f"is no readable checkpoint: {_MANIFEST} does not list its files", folder)
    if files is not document and document != manifest_document(files, run):
        raise ArtefactError("is damaged: its checksum differs from its content", path)
    for name in files:
        if not plain_name(name, path).endswith(_ENDINGS) or name == _MANIFEST:
            raise ArtefactError(f"is damaged: it lists {name!r:.80}", path)
    return Manifest({name: (size, crc) for name, (size, crc) in files.items()}, run, zlib.crc32(content))


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(number) for number in entry] == [int, int] and min(entry) >= 0


def _written(folder: str) -> set[str]:
    return {name for name in os.listdir(folder) if name.endswith(_ENDINGS)} - {_MANIFEST}


def is_unfinished(folder: str) -> bool:
    """Whether a folder holds nothing but what a writer of checkpoints may leave when it is killed."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return False
    return all(
        entry.name.endswith(_ENDINGS) and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
        for entry in os.scandir(folder)
    )


class CheckpointStore:
    """The checkpoints of one run: ``folder/step-0000000123``; the newest ``keep`` stay.

    Args:
        folder: made when the first checkpoint is written.
        keep: how many stay, so that a damaged newest one costs little.

    Raises:
        ValueError: ``keep`` is below 1.

    Attributes:
        shards: how the tensors are spread where several ranks save and load, all at once.
        run: identity of the run; checkpoints of another one are passed over. None: not compared.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self.keep = os.fspath(folder), keep
        self.shards = ALONE
        self.run: str | None = None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        if not os.path.isdir(self.folder):
            return []
        matches = (_NAME.fullmatch(name.removesuffix(".old")) for name in os.listdir(self.folder))
        return sorted({int(match[1]) for match in matches if match})

    @staticmethod
    def is_ours(path: str) -> bool:
        """Whether a path is named as a checkpoint is, or one that is being written or replaced."""
        return bool(_NAME.fullmatch(os.path.basename(path).removesuffix(".partial").removesuffix(".old")))

    def path(self, step: int) -> str:
        """The folder of a step's checkpoint."""
        return os.path.join(self.folder, f"step-{step:010d}")

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]) -> None:
        """Writes the checkpoint of ``step``, then removes all but the ``keep`` newest.

        Later ones are of a run that went on from this one or an older one, as they were damaged: removed too.
        """
        write_folder(self.path(step), tensors, documents, self.shards, run=self.run)
        steps = self.steps() if self.shards.first else []
        kept = [other for other in steps if other <= step][-self.keep :]
        for other in steps:
            if other not in kept:
                shutil.rmtree(self.path(other), ignore_errors=True)

    def sweep(self) -> None:
        """Removes what writers that were killed have left. Only for the one program that writes here."""
        for name in os.listdir(self.folder) if os.path.isdir(self.folder) else []:
            path = os.path.join(self.folder, name)
            replaced = name.endswith(".old") and os.path.isdir(path.removesuffix(".old"))
            if (replaced or name.endswith(".partial")) and self.is_ours(path) and is_unfinished(path):
                shutil.rmtree(path, ignore_errors=True)

    def load_latest(
        self, report: Callable[[str], object] = print
    ) -> tuple[int, dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The newest checkpoint that is intact on all ranks, None where there is none at all.

        A damaged one is reported and passed over for the one before it, on all ranks alike.

        Raises:
            ArtefactError: there are checkpoints and every one is damaged.
        """
        reasons = []
        seen = {step for steps in self.shards.exchange(self.steps()) for step in steps}
        for step in sorted(seen, reverse=True):
            found, reason = None, None
            try:
                found = read_folder(self.path(step), self.shards, run=self.run, mapped=True)
                state = read_manifest(existing_folder(self.path(step))).digest
            except ArtefactError as error:
                state, reason = -1, str(error)
            said = self.shards.exchange([state, reason])
            wrong = [f"rank {rank}: {text}" if len(said) > 1 else text for rank, (_, text) in enumerate(said) if text]
            if not wrong and any(one != said[0] for one in said):
                wrong = [f"the ranks see different files in {self.path(step)}"]
            if not wrong and found is not None:
                return step, *found
            reasons.append("; ".join(wrong))
            report(f"checkpoint of step {step} passed over: {reasons[-1]}")
        if reasons:
            raise ArtefactError(
                f"no intact checkpoint in {self.folder} ({'; '.join(reasons)}); remove the folder to start anew"
            )
        return None


def random_state() -> dict[str, Any]:
    """State of torch's generators: the CPU's, and the current GPU's where there is one."""
    import torch

    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    import torch

    torch.set_rng_state(state["cpu"].to(torch.uint8))
    if state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
