"""A training run: directly where the options leave that open, else by gradients."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.options import settled
from sparse_xmc.app.run import Report
from sparse_xmc.storage.atomic import check_place
from sparse_xmc.storage.lock import FolderLock


def train(config: TrainingConfig, *, overwrite: bool = False, report: Report = print) -> dict[str, Any]:
    """Trains, or goes on where a killed run stopped; evaluates on the test split.

    Returns:
        The test metrics (nothing where there is no test split).

    Raises:
        DataError, ArtefactError, ValueError: with one message that says what is wrong where.
    """
    if not config.train or not config.out:
        raise ValueError("a run needs train (a data file) and out (a folder)")
    check_place(config.out, folder=True)
    if os.environ.get("WORLD_SIZE", "1") == "1" and settled(config).solver == "direct":
        from sparse_xmc.app.direct.job import DirectRun

        with FolderLock(config.out) as lock:
            return DirectRun(settled(config), overwrite, report, lock).train()
    from sparse_xmc.app.device import choose_device
    from sparse_xmc.app.gradient_run import GradientRun
    from sparse_xmc.app.sharding import training_ranks

    with training_ranks(choose_device(config.device), config.timeout) as ranks:
        config = settled(config, ranks.ranks.size)
        ranks.check(config, overwrite)
        if not ranks.first:
            config, report = dataclasses.replace(config, progress=False), _silent
        lock = FolderLock(config.out)
        with lock if ranks.first else contextlib.nullcontext():
            return GradientRun(config, overwrite, report, lock, ranks).train()


def _silent(text: str) -> None:
    """Ranks other than the first report nothing."""
