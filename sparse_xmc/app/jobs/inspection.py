"""What a run folder holds, in lines to read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from sparse_xmc.app.bundle import MODEL_FOLDER, Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.model import TermModel
from sparse_xmc.app.jobs.evaluation import table
from sparse_xmc.app.options import entries, shown, without_effect
from sparse_xmc.app.reports import changed
from sparse_xmc.app.run_folder import CHECKPOINTS, CONFIG
from sparse_xmc.app.stored import IDENTITY
from sparse_xmc.storage.checkpoint import CheckpointError, CheckpointStore

_UNTOLD = {"train", "valid", "test", "out", "progress", "threads"}


def inspect(run: str, *, report: Callable[[str], None] = print) -> None:
    """Says what a run is: model, bytes, labels, metrics; of an unfinished one how far it is.

    Raises:
        CheckpointError: the folder holds no run, or a damaged one.
    """
    checkpoints = CheckpointStore(os.path.join(run, CHECKPOINTS)).steps()
    if os.path.isdir(os.path.join(run, MODEL_FOLDER)) or not checkpoints:
        for line in _model_lines(Bundle.load(run, device="cpu"), os.path.join(run, MODEL_FOLDER)):
            report(line)
    else:
        report("no model yet: the training has not come to its first validation or its end")
    if checkpoints:
        report(f"checkpoints: {len(checkpoints)}, the newest of step {checkpoints[-1]}")
    if changed(os.path.join(run, CONFIG)):
        report(f"{CONFIG} has been changed since the run wrote it, which has the options of {IDENTITY}")
    for line in _metric_lines(os.path.join(run, "metrics.json")):
        report(line)


def _model_lines(bundle: Bundle, folder: str) -> list[str]:
    config, names = bundle.config, bundle.vocabulary.names
    reads = "texts" if bundle.preparation.reads_texts else "features"
    width = f", {bundle.num_features:,} {'terms' if reads == 'texts' else 'features'}" if bundle.num_features else ""
    if isinstance(bundle.model, TermModel):
        sizes = [f"{len(indices):,} labels with {indices.shape[1]} connections" for indices, _ in bundle.model.blocks]
        clusters = [f"{len(level.bias)} clusters with {level.indices.shape[1]}" for level in bundle.model.levels]
        heads = f"head of {' and '.join(sizes)}" + (f" behind {' and '.join(clusters)}" if clusters else "")
    else:
        heads = f"head {config.head}" + f" of {config.fan_in} connections per label" * (config.head != "dense")
    if config.lexical_fan_in and getattr(bundle.model, "lexical", None) is not None:
        heads += f", and one of {config.lexical_fan_in} connections to terms"
    first = ", ".join(repr(name)[:40] for name in names[:3])
    size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
    return [
        f"model: encoder {config.encoder}, {heads}",
        f"reads {reads}{width}",
        f"labels: {len(names):,} ({first}{', ...' if len(names) > 3 else ''})",
        f"trained on {bundle.num_train:,} rows" + _other_options(config),
        f"bytes: {size:,} on disk; " + ", ".join(f"{name} {count:,}" for name, count in _bytes(bundle.model).items()),
        "scores are " + ("calibrated probabilities" if bundle.calibration else "estimates without calibration"),
    ]


def _other_options(config: TrainingConfig) -> str:
    changed = [
        (entry.name, getattr(config, entry.name))
        for entry in entries(config)
        if entry.name not in _UNTOLD and getattr(config, entry.name) != entry.default
        if not without_effect(config, entry)
    ]
    return f" with {shown(changed)}".replace(" and ", ", ") if changed else ""


def _bytes(model: Any) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name, tensor in model.state_dict().items():
        part = name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + tensor.nbytes
    return sizes


def _metric_lines(path: str) -> list[str]:
    if not os.path.exists(path):
        return ["metrics: none yet"]
    if changed(path):
        return ["metrics: not shown, as metrics.json has been changed since it was written: evaluate the model anew"]
    try:
        with open(path, encoding="utf-8") as file:
            metrics: Any = json.load(file)
        return ["metrics:", *table(metrics)]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
