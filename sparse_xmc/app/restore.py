"""A torch model from what its folder holds."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.app.build import build_encoder, build_model
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.prepare import FILES
from sparse_xmc.app.stored import check_depth
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.storage.regular import data_name


def restored_model(
    config: TrainingConfig,
    num_features: int,
    num_labels: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    folder: str,
    *,
    auxiliary: bool,
) -> XMCClassifier:
    """The model of a configuration with stored weights.

    Args:
        tensors: "model" and "preparation".
        auxiliary: whether it has an auxiliary objective.

    Raises:
        ValueError: they are of another model.
    """
    weights, prepared = tensors["model"], tensors["preparation"]
    if config.encoder == "transformer":
        check_depth(prepared[f"{FILES}config.json"].numpy().tobytes(), len(weights))
    clusters = weights["auxiliary.clusters"] if auxiliary else None

    def build() -> XMCClassifier:
        encoder = _encoder(config, num_features, prepared, folder)
        num_head = weights["head.head.weight"].shape[0] if config.head == "head_tail" else None
        return build_model(config, encoder, num_labels, clusters, num_head=num_head)

    with torch.device("meta"):  # whatever sizes the spec tells, nothing is allocated before they are compared
        model = build()
    _check_shapes(model, weights)
    if config.encoder == "transformer":  # has buffers that are computed, not stored
        model = build()
    model.load_state_dict(dict(weights), assign=config.encoder != "transformer")
    return model


def _encoder(config: TrainingConfig, num_features: int, tensors: Mapping[str, Tensor], folder: str) -> Any:
    """The encoder without its weights, a transformer from the files that were saved with the model."""
    if config.encoder != "transformer":
        return build_encoder(config, num_features, load_weights=False)
    files = {
        data_name(name.removeprefix(FILES), folder): t.numpy().tobytes()
        for name, t in tensors.items()
        if name.startswith(FILES)
    }
    with tempfile.TemporaryDirectory() as place:
        for name, content in files.items():
            Path(place, name).write_bytes(content)
        here = dataclasses.replace(config, transformer=place)
        encoder: Any = build_encoder(here, num_features, load_weights=False)
    encoder.name, encoder.files = config.transformer, files
    return encoder


def _check_shapes(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        found = weights.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            got = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(f"{name} must be {tensor.dtype} {list(tensor.shape)}, is {got}")
