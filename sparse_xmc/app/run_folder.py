"""Whose a run's folder is: which options and data made what is in it, and whether a command may go on there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.bundle import MODEL_FOLDER
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.config_file import load_toml, to_toml
from sparse_xmc.app.options import spelled
from sparse_xmc.app.reports import REPORTS, changed, recorded
from sparse_xmc.app.stored import IDENTITY
from sparse_xmc.data import DenseInputs, Inputs, SparseInputs, TokenInputs
from sparse_xmc.storage.atomic import make_folder, write_json, write_text
from sparse_xmc.storage.checkpoint import CheckpointStore, is_unfinished
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.regular import read_json

CHECKPOINTS = "checkpoints"
CONFIG = "config.toml"
_MODELS = (MODEL_FOLDER, f"{MODEL_FOLDER}.old", f"{MODEL_FOLDER}.partial")
_FILES = ("metrics.jsonl", "metrics.json", "curves.png", REPORTS)
_PATHS = ("train", "train_labels", "valid", "valid_labels", "from_")  # whose digests are compared, wherever they lie
_ANEW = "choose another --out, or --overwrite to begin anew"
_ELSEWHERE = "choose another --out, or move it away"
_BLOCK = 1 << 20  # rows hashed at a time
_LATER = {"char_ngrams": [0, 0], "hashed": False}  # what runs of version 0.1 had without saying so
_EARLY = {"prepared_as": "0.1"}  # stands in the identity of runs that version 0.1 has begun and others go on with


def digest(inputs: Inputs, targets: sp.csr_matrix, names: list[Any], document: Any = None) -> str:
    """What tells one prepared split from another: rows, targets, labels in the model's order, features."""
    result = hashlib.blake2b(digest_size=16)
    result.update(json.dumps([len(inputs), names, _as_before(document)]).encode())
    for array in (targets.indptr, targets.indices, *_arrays(inputs)):
        result.update(f"{array.dtype} {array.shape}".encode())
        for start in range(0, len(array), _BLOCK):
            result.update(np.ascontiguousarray(array[start : start + _BLOCK]).reshape(-1).view(np.uint8).data)
    return result.hexdigest()


def _as_before(document: Any) -> Any:
    """A preparation without the options that came later and stand at what was done before, or that the features show."""
    if not isinstance(document, dict) or not isinstance(document.get("options"), dict):
        return document
    options = {k: v for k, v in document["options"].items() if k != "scripts" and (k not in _LATER or v != _LATER[k])}
    return {**document, "options": options}


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    if isinstance(inputs, TokenInputs):
        return [inputs.cache.offsets, inputs.cache.ids]
    assert isinstance(inputs, (SparseInputs, DenseInputs))
    features: Any = inputs.matrix if isinstance(inputs, SparseInputs) else inputs.array
    return [features.indptr, features.indices, features.data] if sp.issparse(features) else [features]


def check_resumable(
    config: TrainingConfig, data: Mapping[str, str] | None = None, num_features: int | None = None
) -> None:
    """Refuses a folder that holds another run, or something else; ``data`` are digests by what they are of.

    Data are the same wherever they lie.

    Raises:
        ValueError: the run there has other options or data.
        ArtefactError: what the folder says about its run is damaged or missing.
    """
    path = os.path.join(config.out, IDENTITY)
    if not os.path.lexists(path):
        there = [name for name in (CHECKPOINTS, *_MODELS, *_FILES) if os.path.lexists(os.path.join(config.out, name))]
        if any(os.path.isdir(os.path.join(config.out, name)) for name in there):
            raise ArtefactError(f"{config.out} holds a run without {IDENTITY}: {_ELSEWHERE}")
        if there:
            raise ArtefactError(f"{config.out} holds {there[0]}, which no run of this program wrote: {_ELSEWHERE}")
        return
    earlier = _read(path)
    for name, value in (data or {}).items():
        if name not in earlier:
            raise ValueError(f"the run in {config.out} does not tell which {name} it had: {_ANEW}")
        if earlier[name] != value:
            raise ValueError(f"the {name} have changed since the run in {config.out}: {_ANEW}")
    changed = [spelled(name) for name in config.changed_since(earlier, num_features) if name not in _PATHS]
    for name in ("valid", "from_"):
        if (getattr(config, name) is None) != (earlier.get(name) is None):
            changed.append(spelled(name))
    if changed:
        raise ValueError(f"{config.out} holds a run with other options ({', '.join(sorted(changed))}): {_ANEW}")


def _read(path: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ArtefactError as error:
        raise ArtefactError(f"{error}: {_ELSEWHERE}") from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} is damaged (it holds {content!r:.40}): {_ELSEWHERE}")
    return content


def begun_early(out: str) -> bool:
    """Whether the run there was begun by version 0.1, which wrote no identity of the run: features are made as then."""
    path = os.path.join(out, IDENTITY)
    if not os.path.lexists(path):
        return False
    earlier = _read(path)
    return "run" not in earlier or _EARLY.items() <= earlier.items()


def claim(config: TrainingConfig, data: Mapping[str, str], report: Callable[[str], object] = print) -> str:
    """Makes the folder this run's, once its model is built; writes the effective configuration.

    Returns:
        The identity of the run, which all that it writes carries: that of the run that goes on, else a new one.
    """
    make_folder(config.out)
    path = os.path.join(config.out, IDENTITY)
    earlier = _read(path).get("run") if os.path.lexists(path) else None
    run = earlier if isinstance(earlier, str) else uuid.uuid4().hex
    early = _EARLY if begun_early(config.out) else {}
    write_json(path, {**config.identity(), **data, **early, "run": run})
    options = os.path.join(config.out, CONFIG)
    if changed(options):
        report(f"{options} has been changed since a run wrote it: left as it is")
    elif not os.path.lexists(options) or _is_generated(options):
        with recorded(options):
            write_text(options, to_toml(config))
    else:
        report(f"{options} was not written by this program: left as it is")
    return run


def _is_generated(path: str) -> bool:
    """Whether a configuration is as ``to_toml`` writes it: without any comment or table, an option a line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        rendered = set(to_toml(dataclasses.replace(TrainingConfig(), **load_toml(path))).splitlines())
    except (OSError, ValueError):
        return False
    return bool(lines) and set(lines) <= rendered


def clear(out: str) -> None:
    """Removes the run in a folder and nothing else; last of all what says whose it is.

    Raises:
        ArtefactError: there is something that no run wrote where a run writes; nothing is removed then.
    """
    for path in check_removable(out):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.remove(path)


def check_removable(out: str) -> list[str]:
    """Files and folders of the run in a folder, in the order in which they may go.

    Raises:
        ArtefactError: as ``clear``.
    """
    found = [name for name in (*_MODELS, *_FILES, IDENTITY) if os.path.lexists(os.path.join(out, name))]
    store = os.path.join(out, CHECKPOINTS)
    if not found and not os.path.lexists(store):
        return []
    identity = _read(os.path.join(out, IDENTITY)) if IDENTITY in found else {}
    if not {"seed", "epochs", "batch_size"} <= identity.keys():
        raise ArtefactError(f"{out} holds no run of this program, of which {IDENTITY} would tell: nothing is removed")
    checkpoints = [os.path.join(store, name) for name in sorted(os.listdir(store))] if os.path.isdir(store) else []
    foreign = [path for path in checkpoints if not (CheckpointStore.is_ours(path) and is_unfinished(path))]
    paths = [os.path.join(out, name) for name in found]
    foreign += [path for path in paths if not (_is_file(path) or is_unfinished(path))]
    if foreign:
        raise ArtefactError(f"{foreign[0]} is or holds what no run wrote: nothing is removed; {_ELSEWHERE}")
    return [*checkpoints, *paths]


def _is_file(path: str) -> bool:
    return os.path.basename(path) in (*_FILES, IDENTITY) and os.path.isfile(path) and not os.path.islink(path)


def sweep(out: str) -> None:
    """Removes what killed commands have left in a run's folder, which this one has locked."""
    CheckpointStore(os.path.join(out, CHECKPOINTS)).sweep()
    model = os.path.join(out, MODEL_FOLDER)
    for path in (f"{model}.partial", *([f"{model}.old"] if os.path.isdir(model) else [])):
        if is_unfinished(path):
            shutil.rmtree(path, ignore_errors=True)
    for name in os.listdir(out):
        whole, _, process = name.removesuffix(".partial").rpartition(".")
        if name.endswith(".partial") and process.isdigit() and whole in (IDENTITY, CONFIG, *_FILES):
            os.remove(os.path.join(out, name))
