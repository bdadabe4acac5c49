"""A trained model and how a command uses it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.device import choose_device


def load_bundle(run: str, options: dict[str, Any] | None = None) -> Bundle:
    """The model of a run folder with this command's ``device``, ``threads`` and ``progress``.

    Raises:
        ValueError: an option is wrong, before the work of reading.
        CheckpointError: there is no intact model.
    """
    options = options or {}
    device = TrainingConfig(**options).device
    choose_device(device)
    bundle = Bundle.load(run, device=device)
    bundle.config = dataclasses.replace(bundle.config, **options)
    if bundle.config.threads:
        torch.set_num_threads(bundle.config.threads)
    return bundle
