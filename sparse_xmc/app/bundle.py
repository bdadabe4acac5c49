"""A trained model as a folder: weights, configuration, labels, features; everything that prediction needs."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_xmc._progress import Meter
from sparse_xmc.app.build import build_encoder, build_model
from sparse_xmc.app.calibration import Calibration
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.device import choose_device
from sparse_xmc.app.direct.model import restored_model
from sparse_xmc.app.prepare import FILES, Preparation, batches, restore_preparation
from sparse_xmc.app.stored import (
    as_json,
    check_depth,
    check_shapes,
    check_term_options,
    checked_count,
    checked_frequencies,
    checked_labels,
    from_json,
    run_of,
)
from sparse_xmc.app.trainer import to_device
from sparse_xmc.data import Inputs, LabelVocabulary
from sparse_xmc.distributed.layout import Layout
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.term_blocks import TermBlocks
from sparse_xmc.solver.settings import Settings
from sparse_xmc.storage.atomic import existing_folder
from sparse_xmc.storage.checkpoint import read_folder, read_manifest, write_folder
from sparse_xmc.storage.errors import ArtefactError, taking_apart
from sparse_xmc.storage.regular import data_name
from sparse_xmc.storage.tensor_file import ALONE, Shards

MODEL_FOLDER = "model"
_KINDS = {"bow": "terms", "features": "precomputed", "transformer": "tokens"}  # of preparation, by encoder
_PREDICTION_ROWS = 512


@dataclasses.dataclass
class Bundle:
    """A model with all that surrounds it.

    Args:
        frequencies: training rows of each label ``[L]``, for propensities and bins.
        num_train: training rows.
        calibration: of scores, where rows were held out for it.
        settings: of the direct solver.
        digest: of the folder that it was loaded from.
    """

    config: TrainingConfig
    model: XMCClassifier
    preparation: Preparation
    vocabulary: LabelVocabulary
    frequencies: np.ndarray
    num_train: int
    num_features: int
    calibration: Calibration | None = None
    settings: Settings | None = None
    digest: str = ""

    def predict(self, inputs: Inputs, k: int, *, progress: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields ``(scores, labels) [b, k]`` chunk by chunk, labels in the model's order."""
        k = min(k, len(self.vocabulary))
        device = next(itertools.chain(self.model.parameters(), self.model.buffers())).device
        self.model.eval()
        meter = Meter("predicting", "rows", len(inputs), shown=progress)
        with torch.inference_mode():
            for rows in batches(len(inputs), self._rows()):
                scores, labels = self.model.topk(to_device(inputs.batch(rows), device), k)
                yield scores.float().cpu(), labels.cpu()
                meter.update(len(rows))
        meter.close()

    def all_scores(self, inputs: Inputs) -> Iterator[Tensor]:
        """Yields the model's own scores of all labels ``[b, L]`` chunk by chunk."""
        device = next(itertools.chain(self.model.parameters(), self.model.buffers())).device
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

    def save(self, folder: str, shards: Shards = ALONE, *, run: str | None = None) -> None:
        """Writes the model of run ``run``, atomically; all ranks of ``shards`` call it and the first one writes.

        Raises:
            ArtefactError: the disk is full or not writable; an older model there is untouched.
            FloatingPointError: a weight is NaN or infinite; likewise.
        """
        document, tensors = self.preparation.state()
        auxiliary = self.model.auxiliary
        spec = {
            "config": {name: as_json(value) for name, value in dataclasses.asdict(self.config).items()},
            "num_train": self.num_train,
            "num_features": self.num_features,
            "auxiliary": auxiliary is not None,
        }
        if self.calibration is not None:
            spec["calibration"] = self.calibration.state()
        if self.settings is not None:
            spec["settings"] = self.settings.state()
        write_folder(
            folder,
            {
                "model": Layout(self.model).whole_state(),
                "preparation": {**tensors, "frequencies": torch.from_numpy(self.frequencies.astype(np.int64))},
            },
            {"spec": spec, "preparation": document, "labels": self.vocabulary.names},
            shards,
            run=run,
        )

    @classmethod
    def load(cls, run: str | os.PathLike[str], *, device: str = "auto") -> Bundle:
        """The model of a run folder. It is data: whatever it holds, no code of it runs and no other file is touched.

        Raises:
            ArtefactError: there is no model, or a file of it is truncated, damaged or of another run.
        """
        folder = os.path.join(os.fspath(run), MODEL_FOLDER)
        if not os.path.isdir(folder) and not os.path.isdir(f"{folder}.old"):
            raise ArtefactError(f"{os.fspath(run)} holds no trained model ({folder} is missing)")
        tensors, documents = read_folder(folder, run=run_of(os.fspath(run)))
        with taking_apart(folder, "model"):
            bundle = cls._from_parts(tensors, documents)
        bundle.model.to(choose_device(device))
        bundle.digest = f"{read_manifest(existing_folder(folder)).digest:08x}"
        return bundle

    @classmethod
    def _from_parts(cls, tensors: dict[str, dict[str, Tensor]], documents: dict[str, Any]) -> Bundle:
        spec, weights, prepared = documents["spec"], tensors["model"], tensors["preparation"]
        options = {name: from_json(name, value) for name, value in spec["config"].items()}
        config = TrainingConfig.stored({**options, **_connections(weights)})
        vocabulary = LabelVocabulary(checked_labels(documents["labels"]))
        frequencies = checked_frequencies(prepared["frequencies"], len(vocabulary))
        if documents["preparation"]["kind"] != _KINDS[config.encoder]:
            raise ValueError(
                f"encoder {config.encoder!r} reads {_KINDS[config.encoder]!r}, not {documents['preparation']!r:.80}"
            )
        check_term_options(documents["preparation"].get("options", {}))
        if config.encoder == "transformer":
            check_depth(prepared[f"{FILES}config.json"].numpy().tobytes(), len(weights))
        num_train, num_features = (checked_count(name, spec[name]) for name in ("num_train", "num_features"))
        clusters = weights["auxiliary.clusters"] if spec["auxiliary"] is True else None
        with torch.device("meta"):  # whatever sizes the spec tells, nothing is allocated before they are compared
            check_shapes(_build(config, num_features, prepared, len(vocabulary), clusters, weights), weights)
        model = _build(config, num_features, prepared, len(vocabulary), clusters, weights)
        model.load_state_dict(weights)
        if isinstance(model.head, TermBlocks):
            model.head.validate()
        preparation = restore_preparation(documents["preparation"], prepared, encoder=model.encoder)
        calibration = Calibration.from_state(spec.get("calibration"))
        settings = Settings.from_state(spec.get("settings"))
        return cls(config, model, preparation, vocabulary, frequencies, num_train, num_features, calibration, settings)


def _build(
    config: TrainingConfig,
    num_features: int,
    tensors: dict[str, Tensor],
    num_labels: int,
    clusters: Tensor | None,
    weights: dict[str, Tensor],
) -> XMCClassifier:
    if config.solver == "direct":
        return restored_model(num_features, num_labels, weights)
    num_head = weights["head.head.weight"].shape[0] if config.head == "head_tail" else None
    encoder = _restore_encoder(config, num_features, tensors)
    return build_model(config, encoder, num_labels, clusters, num_head=num_head)


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
    if config.encoder != "transformer":
        return build_encoder(config, num_features, load_weights=False)
    files = {
        data_name(name.removeprefix(FILES), MODEL_FOLDER): t.numpy().tobytes()
        for name, t in tensors.items()
        if name.startswith(FILES)
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        here = dataclasses.replace(config, transformer=folder)
        encoder: Any = build_encoder(here, num_features, load_weights=False)
    encoder.name, encoder.files = config.transformer, files
    return encoder
