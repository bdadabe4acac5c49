"""Whose a run's folder is: which options and data made what is in it, and whether a command may go on there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.bundle import MODEL_FOLDER
from sparse_xmc.app.config import TrainingConfig, to_toml
from sparse_xmc.data import DenseInputs, Inputs, SparseInputs, TokenInputs
from sparse_xmc.storage.atomic import flush
from sparse_xmc.storage.checkpoint import CheckpointError

CHECKPOINTS = "checkpoints"
_IDENTITY = "identity.json"
_MODELS = (MODEL_FOLDER, f"{MODEL_FOLDER}.old", f"{MODEL_FOLDER}.partial")
_ANEW = "choose another --out, or --overwrite to begin anew"
_BLOCK = 1 << 20  # rows hashed at a time


def digest(inputs: Inputs, targets: sp.csr_matrix, names: list[Any], document: Any = None) -> str:
    """What tells one prepared split from another: rows, targets, labels in the model's order, features."""
    result = hashlib.blake2b(digest_size=16)
    result.update(json.dumps([len(inputs), names, document]).encode())
    for array in (targets.indptr, targets.indices, *_arrays(inputs)):
        result.update(f"{array.dtype} {array.shape}".encode())
        for start in range(0, len(array), _BLOCK):
            result.update(np.ascontiguousarray(array[start : start + _BLOCK]).reshape(-1).view(np.uint8).data)
    return result.hexdigest()


def _arrays(inputs: Inputs) -> list[np.ndarray]:
    if isinstance(inputs, TokenInputs):
        return [inputs.cache.offsets, inputs.cache.ids]
    assert isinstance(inputs, (SparseInputs, DenseInputs))
    features: Any = inputs.matrix if isinstance(inputs, SparseInputs) else inputs.array
    return [features.indptr, features.indices, features.data] if sp.issparse(features) else [features]


def check_resumable(
    config: TrainingConfig, data: Mapping[str, str] | None = None, num_features: int | None = None
) -> None:
    """Refuses a folder that holds another run; ``data`` are digests by what they are of ("training data").

    Raises:
        ValueError: the run there has other options or data.
        CheckpointError: what the folder says about its run is damaged or missing.
    """
    path = os.path.join(config.out, _IDENTITY)
    if not os.path.exists(path):
        if any(os.path.isdir(os.path.join(config.out, name)) for name in (CHECKPOINTS, *_MODELS)):
            raise CheckpointError(f"{config.out} holds a run without {_IDENTITY}: {_ANEW}")
        return
    earlier = _read(path)
    for name, value in (data or {}).items():
        if name not in earlier:
            raise ValueError(f"the run in {config.out} does not tell which {name} it had: {_ANEW}")
        if earlier[name] != value:
            raise ValueError(f"the {name} have changed since the run in {config.out}: {_ANEW}")
    changed = config.changed_since(earlier, num_features)
    if changed:
        raise ValueError(f"{config.out} holds a run with other options ({', '.join(changed)}): {_ANEW}")


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): {_ANEW}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged (it holds {content!r:.40}): {_ANEW}")
    return content


def claim(config: TrainingConfig, data: Mapping[str, str]) -> None:
    """Makes the folder this run's, once its model is built; writes the effective configuration."""
    os.makedirs(config.out, exist_ok=True)
    write_text(os.path.join(config.out, _IDENTITY), json.dumps({**config.identity(), **data}))
    write_text(os.path.join(config.out, "config.toml"), to_toml(config))


def clear(out: str) -> None:
    """Removes the run in a folder; last of all what says whose it is."""
    for name in (CHECKPOINTS, *_MODELS, "metrics.jsonl", "metrics.json", _IDENTITY):
        path = os.path.join(out, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)


def write_text(path: str, text: str) -> None:
    """Writes a small file atomically; errors as of ``complete_file``."""
    with complete_file(path) as file:
        file.write(text)


@contextmanager
def complete_file(path: str) -> Iterator[TextIO]:
    """A text file to write, which appears under its name when it is complete.

    What UTF-8 may not hold (half of a surrogate pair in a label or a path) becomes an escape.

    Raises:
        CheckpointError: the disk is full or not writable; what stood there before is untouched.
    """
    partial = f"{path}.partial"
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        flush(partial)
        os.replace(partial, path)
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)
