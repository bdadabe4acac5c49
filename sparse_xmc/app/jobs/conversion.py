"""The weights of a model as files for NumPy and SciPy: what another program needs to score rows itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.direct.model import TermModel
from sparse_xmc.storage.atomic import check_place


def convert(run: str, out: str, *, form: str = "csr", report: Callable[[str], None] = print) -> None:
    """Writes the heads (``head``, ``lexical``) of a run's model into a new folder, labels in ``labels.json``.

    ``form`` "csr": ``head.npz`` for ``scipy.sparse.load_npz``; "dense": ``head.npy``; both ``[L, D]`` float32. Beside them
    ``head.bias.npy [L]`` and the other weights under their names (``encoder.weight.npy``). A head with clusters in front has
    theirs in ``clusters_0`` and so on, the cluster of each label in ``clusters_0.of.npy``: with z the score of its cluster a
    label gains ``-clusters_0.share[l] * max(0, 1 - z) ** 2``.

    Raises:
        ValueError: ``form`` is another one, or ``out`` exists.
        CheckpointError: there is no intact model.
    """
    if form not in ("csr", "dense"):
        raise ValueError(f"form must be 'csr' or 'dense', got {form!r}")
    if os.path.lexists(out):
        raise ValueError(f"{out} is there already: name a folder to make")
    check_place(out, folder=True)
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
    for name, matrix, bias in _heads(bundle.model):
        if form == "csr":
            sp.save_npz(os.path.join(folder, f"{name}.npz"), matrix)
        else:
            np.save(os.path.join(folder, f"{name}.npy"), matrix.toarray())
        np.save(os.path.join(folder, f"{name}.bias.npy"), bias)
    if isinstance(bundle.model, TermModel):
        for i, level in enumerate(bundle.model.levels):
            np.save(os.path.join(folder, f"clusters_{i}.of.npy"), level.of)
            np.save(os.path.join(folder, f"clusters_{i}.share.npy"), level.share)
    weights: dict[str, Any] = bundle.model.state_dict()
    for name, tensor in weights.items():
        if not name.startswith(("head.", "lexical.", "auxiliary.")):
            np.save(os.path.join(folder, f"{name}.npy"), tensor.float().numpy())
    with open(os.path.join(folder, "labels.json"), "w", encoding="utf-8") as file:
        json.dump(bundle.vocabulary.names, file)
    document, tensors = bundle.preparation.state()
    if document.get("terms") is not None:
        with open(os.path.join(folder, "terms.json"), "w", encoding="utf-8") as file:
            json.dump(document["terms"], file)
    if "idf" in tensors:
        np.save(os.path.join(folder, "idf.npy"), tensors["idf"])


def _heads(model: Any) -> Iterator[tuple[str, sp.csr_matrix, np.ndarray]]:
    """Name, weights ``[L, D]`` and bias ``[L]`` of each head."""
    if isinstance(model, TermModel):
        yield "head", model.matrix(), model.bias
        for i, level in enumerate(model.levels):
            yield f"clusters_{i}", level.matrix(model.in_features), level.bias
        return
    from sparse_xmc.app.module_heads import bias_of, matrix_of

    for name in ("head", "lexical"):
        head = getattr(model, name)
        if head is not None:
            yield name, matrix_of(head), bias_of(head)
