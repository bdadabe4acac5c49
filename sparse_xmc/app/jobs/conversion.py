"""The weights of a model as files for NumPy and SciPy: what another program needs to score rows itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.models.head_tail import DenseLinear, HeadTailLinear
from sparse_xmc.models.linear import FixedFanInLinear


def convert(run: str, out: str, *, form: str = "csr", report: Callable[[str], None] = print) -> None:
    """Writes the heads (``head``, ``lexical``) of a run's model into a new folder, labels in ``labels.json``.

    ``form`` "csr": ``head.npz`` for ``scipy.sparse.load_npz``; "dense": ``head.npy``; both ``[L, D]`` float32. Beside them
    ``head.bias.npy [L]`` and the other weights under their names (``encoder.weight.npy``).

    Raises:
        ValueError: ``form`` is another one, or ``out`` exists.
        CheckpointError: there is no intact model.
    """
    if form not in ("csr", "dense"):
        raise ValueError(f"form must be 'csr' or 'dense', got {form!r}")
    if os.path.lexists(out):
        raise ValueError(f"{out} is there already: name a folder to make")
    bundle = Bundle.load(run, device="cpu")
    partial = f"{out}.partial-{os.getpid()}"
    os.makedirs(partial)
    try:
        _write(bundle, partial, form)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(f"{len(os.listdir(out))} files written to {out}")


def _write(bundle: Bundle, folder: str, form: str) -> None:
    model = bundle.model
    heads = {"head": model.head, "lexical": model.lexical}
    for name, head in heads.items():
        if head is None:
            continue
        matrix = _matrix(head)
        if form == "csr":
            sp.save_npz(os.path.join(folder, f"{name}.npz"), matrix)
        else:
            np.save(os.path.join(folder, f"{name}.npy"), matrix.toarray())
        np.save(os.path.join(folder, f"{name}.bias.npy"), _bias(head))
    for name, tensor in model.state_dict().items():
        if not name.startswith(("head.", "lexical.", "auxiliary.")):
            np.save(os.path.join(folder, f"{name}.npy"), tensor.float().numpy())
    with open(os.path.join(folder, "labels.json"), "w", encoding="utf-8") as file:
        json.dump(bundle.vocabulary.names, file)
    document, tensors = bundle.preparation.state()
    if document.get("terms") is not None:
        with open(os.path.join(folder, "terms.json"), "w", encoding="utf-8") as file:
            json.dump(document["terms"], file)
    if "idf" in tensors:
        np.save(os.path.join(folder, "idf.npy"), tensors["idf"].numpy())


def _parts(head: nn.Module) -> list[Any]:
    return [head.head, head.tail] if isinstance(head, HeadTailLinear) else [head]


@torch.no_grad()
def _matrix(head: nn.Module) -> sp.csr_matrix:
    return sp.vstack([_part_matrix(part) for part in _parts(head)], format="csr", dtype=np.float32)


def _part_matrix(part: Any) -> sp.csr_matrix:
    if isinstance(part, DenseLinear):
        return sp.csr_matrix(part.weight.float().numpy())
    assert isinstance(part, FixedFanInLinear)
    weight = part.weight.float().numpy()
    columns = np.repeat(part.indices.to(torch.int64).numpy(), part.group_size, axis=0)[: len(weight)]
    offsets = np.arange(len(weight) + 1, dtype=np.int64) * weight.shape[1]
    matrix = sp.csr_matrix((weight.ravel(), columns.ravel(), offsets), shape=(len(weight), part.in_features))
    matrix.sort_indices()
    return matrix


@torch.no_grad()
def _bias(head: nn.Module) -> np.ndarray:
    return np.concatenate([part.bias.float().numpy() for part in _parts(head)])
