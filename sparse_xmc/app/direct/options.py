"""Which solver a run has: what is only for gradients decides where that is left open."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from sparse_xmc.app.options import entries

if TYPE_CHECKING:
    from sparse_xmc.app.config import TrainingConfig

_IDENTITY = "identity.json"
GRADIENT = (
    "embedding_dim", "svd_init", "lexical_fan_in", "lexical_loss", "input_dropout", "dropout", "head", "group_size",
    "grouping", "topology", "head_share", "intermediate", "auxiliary_weight", "auxiliary_cutoff",
    "auxiliary_clusters", "loss", "epochs", "batch_size", "accumulate", "head_lr", "lexical_lr", "encoder_lr",
    "embedding_lr", "head_schedule", "encoder_schedule", "warmup", "rewire_fraction", "rewire_interval",
    "rewire_until", "fused", "amp", "patience", "valid", "valid_labels", "log_every", "checkpoint_seconds",
    "keep_checkpoints",
)  # fmt: skip


def _changed(config: Any) -> list[tuple[str, Any]]:
    return [
        (entry.name, getattr(config, entry.name))
        for entry in entries(config)
        if entry.name in GRADIENT and getattr(config, entry.name) != entry.default
    ]


def refuse_gradient_options(config: Any) -> None:
    """Raises:
    ValueError: the solver is direct and an option is set that only gradients have, or a device that it does not run on.
    """
    if config.solver == "direct":
        if str(config.device).startswith("cuda"):
            raise ValueError(f"solver='direct' runs on a CPU, got device={config.device!r}")
        for name, value in _changed(config):
            raise ValueError(f"{name}={value!r} has no effect with solver='direct'")


def looks_direct(config: Any) -> bool:
    """Whether the options leave the direct solver as the one to take."""
    direct = config.encoder == "bow" and config.solver != "gradient" and not str(config.device).startswith("cuda")
    return direct and (config.solver == "direct" or not _changed(config))


def settled(config: TrainingConfig, num_ranks: int = 1) -> TrainingConfig:
    """With the solver decided; a run that was begun by gradients goes on so, and so do several ranks.

    Raises:
        ValueError: several ranks were asked to solve directly, or to begin from a model.
    """
    if num_ranks > 1 and config.from_ is not None:
        raise ValueError(f"a run that begins from a model runs in one process, got {num_ranks} ranks")
    if num_ranks > 1 and config.solver == "direct":
        raise ValueError(f"solver='direct' runs in one process, got {num_ranks} ranks")
    begun = _solver_of(config.out)
    direct = looks_direct(config) and num_ranks == 1 and (config.solver == "direct" or begun != "gradient")
    if direct:
        return dataclasses.replace(config, solver="direct")
    return dataclasses.replace(config, solver="gradient") if config.encoder == "bow" else config


def _solver_of(out: str) -> str | None:
    """The solver of the run that a folder holds, None where it holds none that can be told."""
    try:
        with open(os.path.join(out, _IDENTITY), encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError):
        return None
    return str(document.get("solver", "gradient")) if isinstance(document, dict) else None
