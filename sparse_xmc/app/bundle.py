"""A trained model as a folder: weights, configuration, labels, features; everything that prediction needs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sparse_xmc._progress import Meter
from sparse_xmc.app.calibration import Calibration
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.model import TermModel
from sparse_xmc.app.prepare import Preparation, batches, restore_preparation
from sparse_xmc.app.stored import (
    as_json,
    check_term_options,
    checked_count,
    checked_frequencies,
    checked_labels,
    from_json,
    run_of,
)
from sparse_xmc.data import Inputs, LabelVocabulary
from sparse_xmc.solver.settings import Settings
from sparse_xmc.storage.atomic import existing_folder
from sparse_xmc.storage.checkpoint import read_arrays, read_folder, read_manifest, write_folder
from sparse_xmc.storage.errors import ArtefactError, taking_apart
from sparse_xmc.storage.regular import read_json
from sparse_xmc.storage.tensor_file import ALONE, Shards

if TYPE_CHECKING:
    from sparse_xmc.models.classifier import XMCClassifier

MODEL_FOLDER = "model"
_KINDS = {"bow": "terms", "features": "precomputed", "transformer": "tokens"}  # of preparation, by encoder
_PREDICTION_ROWS = 512


class Scorer(Protocol):
    """What a bundle predicts with."""

    def topk(self, inputs: Inputs, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]: ...

    def scores(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray: ...

    def estimates(self, scores: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass
class Bundle:
    """A model with all that surrounds it. That of a direct run needs no torch.

    Args:
        frequencies: training rows of each label ``[L]``, for propensities and bins.
        num_train: training rows.
        calibration: of scores, where rows were held out for it.
        settings: of the direct solver.
        digest: of the folder that it was loaded from.
    """

    config: TrainingConfig
    model: XMCClassifier | TermModel
    preparation: Preparation
    vocabulary: LabelVocabulary
    frequencies: np.ndarray
    num_train: int
    num_features: int
    calibration: Calibration | None = None
    settings: Settings | None = None
    digest: str = ""

    def predict(self, inputs: Inputs, k: int, *, progress: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ``(scores, labels) [b, k]`` chunk by chunk, labels in the model's order."""
        k, scorer = min(k, len(self.vocabulary)), self._scorer()
        meter = Meter("predicting", "rows", len(inputs), shown=progress)
        for rows in batches(len(inputs), self._rows()):
            yield scorer.topk(inputs, rows, k)
            meter.update(len(rows))
        meter.close()

    def all_scores(self, inputs: Inputs) -> Iterator[np.ndarray]:
        """Yields the model's own scores of all labels ``[b, L]`` chunk by chunk."""
        scorer = self._scorer()
        for rows in batches(len(inputs), self._rows(64)):
            yield scorer.scores(inputs, rows)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities in ``[0, 1]``, float32, from the model's own scores of any shape."""
        estimates = self.estimates(scores)
        return estimates if self.calibration is None else self.calibration(estimates)

    def estimates(self, scores: np.ndarray) -> np.ndarray:
        """The model's own estimates of probabilities, as training left them, within ``[0, 1]``."""
        return self._scorer().estimates(scores)

    @property
    def module(self) -> XMCClassifier:
        """The model of a run by gradients."""
        assert not isinstance(self.model, TermModel)
        return self.model

    @property
    def device(self) -> str:
        """Where the model computes."""
        if isinstance(self.model, TermModel):
            return "cpu"
        from sparse_xmc.app.module_scores import device_of

        return str(device_of(self.module))

    def _scorer(self) -> Scorer:
        if isinstance(self.model, TermModel):
            return self.model
        from sparse_xmc.app.module_scores import ModuleScores

        return ModuleScores(self.module)

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
        spec = {
            "config": {name: as_json(value) for name, value in dataclasses.asdict(self.config).items()},
            "num_train": self.num_train,
            "num_features": self.num_features,
            "auxiliary": getattr(self.model, "auxiliary", None) is not None,
        }
        if self.calibration is not None:
            spec["calibration"] = self.calibration.state()
        if self.settings is not None:
            spec["settings"] = self.settings.state()
        write_folder(
            folder,
            {
                "model": self._whole_state(),
                "preparation": {**tensors, "frequencies": self.frequencies.astype(np.int64)},
            },
            {"spec": spec, "preparation": document, "labels": self.vocabulary.names},
            shards,
            run=run,
        )

    def _whole_state(self) -> dict[str, Any]:
        if isinstance(self.model, TermModel):
            return dict(self.model.state_dict())
        from sparse_xmc.distributed.layout import Layout

        return Layout(self.model).whole_state()

    @classmethod
    def load(cls, run: str | os.PathLike[str], *, device: str = "auto") -> Bundle:
        """The model of a run folder. It is data: whatever it holds, no code of it runs and no other file is touched.

        Raises:
            ArtefactError: there is no model, or a file of it is truncated, damaged or of another run.
        """
        folder = os.path.join(os.fspath(run), MODEL_FOLDER)
        if not os.path.isdir(folder) and not os.path.isdir(f"{folder}.old"):
            raise ArtefactError(f"{os.fspath(run)} holds no trained model ({folder} is missing)")
        read: Any = read_arrays if _is_direct(folder) else read_folder
        tensors, documents = read(folder, run=run_of(os.fspath(run)))
        with taking_apart(folder, "model"):
            bundle = cls._from_parts(tensors, documents)
        if isinstance(bundle.model, TermModel):
            if device not in ("auto", "cpu"):
                raise ValueError(f"the model of a direct run computes on a CPU, got device={device!r}")
        else:
            from sparse_xmc.app.device import choose_device

            bundle.model.to(choose_device(device))
        bundle.digest = f"{read_manifest(existing_folder(folder)).digest:08x}"
        return bundle

    @classmethod
    def _from_parts(cls, tensors: dict[str, dict[str, Any]], documents: dict[str, Any]) -> Bundle:
        spec, prepared = documents["spec"], tensors["preparation"]
        options = {name: from_json(name, value) for name, value in spec["config"].items()}
        config = TrainingConfig.stored({**options, **_connections(tensors["model"])})
        vocabulary = LabelVocabulary(checked_labels(documents["labels"]))
        frequencies = checked_frequencies(prepared["frequencies"], len(vocabulary))
        if documents["preparation"]["kind"] != _KINDS[config.encoder]:
            raise ValueError(
                f"encoder {config.encoder!r} reads {_KINDS[config.encoder]!r}, not {documents['preparation']!r:.80}"
            )
        check_term_options(documents["preparation"].get("options", {}))
        num_train, num_features = (checked_count(name, spec[name]) for name in ("num_train", "num_features"))
        model: Any
        if config.solver == "direct":
            model = TermModel.from_weights(num_features, len(vocabulary), tensors["model"])
        else:
            from sparse_xmc.app.restore import restored_model

            auxiliary = spec["auxiliary"] is True
            model = restored_model(config, num_features, len(vocabulary), tensors, MODEL_FOLDER, auxiliary=auxiliary)
        encoder = getattr(model, "encoder", None)
        preparation = restore_preparation(documents["preparation"], prepared, encoder=encoder)
        calibration = Calibration.from_state(spec.get("calibration"))
        settings = Settings.from_state(spec.get("settings"))
        return cls(config, model, preparation, vocabulary, frequencies, num_train, num_features, calibration, settings)


def _is_direct(folder: str) -> bool:
    """Whether a folder says that it holds the model of a direct run; what it holds is looked at when it is read."""
    try:
        spec = read_json(os.path.join(existing_folder(folder), "spec.json"))
        return bool(spec["config"].get("solver") == "direct")
    except (ArtefactError, KeyError, TypeError, AttributeError):
        return False


def _connections(tensors: dict[str, Any]) -> dict[str, int]:
    """Connections per label as they are in a model, which once were cut to what its inputs have without a word."""
    found = {}
    for option, layers in (("fan_in", ("head", "head.tail")), ("lexical_fan_in", ("lexical",))):
        for layer in layers:
            if f"{layer}.indices" in tensors:
                found[option] = tensors[f"{layer}.indices"].shape[1]
    return found
