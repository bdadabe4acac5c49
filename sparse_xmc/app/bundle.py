"""A trained model as a folder: weights, configuration, labels, features; everything that prediction needs."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.app.build import build_encoder, build_model
from sparse_xmc.app.calibration import Calibration
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.device import choose_device
from sparse_xmc.app.prepare import FILES, Preparation, batches, restore_preparation
from sparse_xmc.app.trainer import to_device
from sparse_xmc.data import Inputs, LabelVocabulary
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.storage.checkpoint import CheckpointError, read_folder, write_folder
from sparse_xmc.storage.tensor_file import ALONE, Shards

MODEL_FOLDER = "model"
_PREDICTION_ROWS = 512


@dataclasses.dataclass
class Bundle:
    """A model with all that surrounds it.

    Args:
        frequencies: training rows of each label ``[L]``, for propensities and bins.
        num_train: training rows.
    """

    config: TrainingConfig
    model: XMCClassifier
    preparation: Preparation
    vocabulary: LabelVocabulary
    frequencies: np.ndarray
    num_train: int
    num_features: int
    calibration: Calibration | None = None

    def predict(self, inputs: Inputs, k: int, *, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ``(scores, labels) [b, k]`` chunk by chunk, labels in the model's order."""
        k = min(k, len(self.vocabulary))
        device = next(self.model.parameters()).device
        self.model.eval()
        chunks: Any = list(batches(len(inputs), self._rows()))
        if progress:
            from tqdm import tqdm

            chunks = tqdm(chunks, desc="predicting", disable=None, leave=False)
        with torch.inference_mode():
            for rows in chunks:
                scores, labels = self.model.topk(to_device(inputs.batch(rows), device), k)
                yield scores.float().cpu(), labels.cpu()

    def all_scores(self, inputs: Inputs) -> Iterator[Tensor]:
        """Yields the model's own scores of all labels ``[b, L]`` chunk by chunk."""
        device = next(self.model.parameters()).device
        self.model.eval()
        with torch.inference_mode():
            for rows in batches(len(inputs), self._rows(64)):
                yield self.model(to_device(inputs.batch(rows), device)).float().cpu()

    def probabilities(self, scores: Tensor) -> np.ndarray:
        """Probabilities in ``[0, 1]``, float32, from the model's own scores of any shape."""
        estimates = self.estimates(scores)
        return estimates if self.calibration is None else self.calibration(estimates)

    def estimates(self, scores: Tensor) -> np.ndarray:
        """The model's own estimates of probabilities, as training left them, within ``[0, 1]``."""
        return self.model.as_probabilities(scores).clamp(0, 1).numpy()

    def _rows(self, most: int = _PREDICTION_ROWS) -> int:
        """Rows at a time."""
        return most if self.config.encoder != "transformer" else 32

    def save(self, folder: str, shards: Shards = ALONE) -> None:
        """Writes the model, atomically; all ranks of ``shards`` call it and the first one writes.

        Raises:
            CheckpointError: the disk is full or not writable; an older model there is untouched.
        """
        document, tensors = self.preparation.state()
        auxiliary = self.model.auxiliary
        spec = {
            "config": dataclasses.asdict(self.config),
            "num_train": self.num_train,
            "num_features": self.num_features,
            "auxiliary": auxiliary is not None,
        }
        if self.calibration is not None:
            spec["calibration"] = self.calibration.state()
        write_folder(
            folder,
            {
                "model": self.model.state_dict(),
                "preparation": {**tensors, "frequencies": torch.from_numpy(self.frequencies.astype(np.int64))},
            },
            {"spec": spec, "preparation": document, "labels": self.vocabulary.names},
            shards,
        )

    @classmethod
    def load(cls, run: str | os.PathLike[str], *, device: str = "auto") -> Bundle:
        """The model of a run folder.

        Raises:
            CheckpointError: there is no model, or a file of it is truncated or damaged.
        """
        folder = os.path.join(os.fspath(run), MODEL_FOLDER)
        if not os.path.isdir(folder) and not os.path.isdir(f"{folder}.old"):
            raise CheckpointError(f"{os.fspath(run)} holds no trained model ({folder} is missing)")
        tensors, documents = read_folder(folder)
        spec = documents["spec"]
        config = TrainingConfig.stored({**spec["config"], **_connections(tensors["model"])})
        vocabulary = LabelVocabulary(documents["labels"])
        encoder = _restore_encoder(config, spec["num_features"], tensors["preparation"])
        clusters = tensors["model"]["auxiliary.clusters"] if spec["auxiliary"] else None
        model = build_model(config, encoder, len(vocabulary), clusters)
        model.load_state_dict(tensors["model"])
        preparation = restore_preparation(
            documents["preparation"],
            tensors["preparation"],
            encoder=encoder,
        )
        return cls(
            config,
            model.to(choose_device(device)),
            preparation,
            vocabulary,
            tensors["preparation"]["frequencies"].numpy(),
            spec["num_train"],
            spec["num_features"],
            Calibration.from_state(spec.get("calibration")),
        )


def _connections(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Connections per label as they are in a model, which once were cut to what its inputs have without a word."""
    found = {}
    for option, layers in (("fan_in", ("head", "head.tail")), ("lexical_fan_in", ("lexical",))):
        for layer in layers:
            if f"{layer}.indices" in tensors:
                found[option] = tensors[f"{layer}.indices"].shape[1]
    return found


def _restore_encoder(config: TrainingConfig, num_features: int, tensors: dict[str, Tensor]) -> Any:
    """The encoder without its weights, a transformer from the files that were saved with the model."""
    files = {name.removeprefix(FILES): t.numpy().tobytes() for name, t in tensors.items() if name.startswith(FILES)}
    if not files:
        return build_encoder(config, num_features, load_weights=False)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        here = dataclasses.replace(config, transformer=folder)
        encoder: Any = build_encoder(here, num_features, load_weights=False)
    encoder.name, encoder.files = config.transformer, files
    return encoder
