"""A trained model and how a command uses it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.kernels.threads import set_num_threads


def load_bundle(run: str, options: dict[str, Any] | None = None) -> Bundle:
    """The model of a run folder with this command's ``device``, ``threads`` and ``progress``.

    Raises:
        ValueError: an option is wrong, before the work of reading.
        CheckpointError: there is no intact model.
    """
    options = options or {}
    device = TrainingConfig(**options).device
    if device not in ("auto", "cpu"):
        from sparse_xmc.app.device import choose_device

        choose_device(device)
    bundle = Bundle.load(run, device=device)
    bundle.config = dataclasses.replace(bundle.config, **options)
    if bundle.config.threads:
        set_num_threads(bundle.config.threads)
    return bundle


def check_ranking(k: int, threshold: float | None) -> None:
    """Raises:
    ValueError: ``k`` is below 1, or ``threshold`` outside [0, 1].
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise TypeError(f"k must be an integer, got {k!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
