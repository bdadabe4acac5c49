"""What runs by gradients and direct ones have in common: their folder, its lock, and how data become its identity."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparse_xmc.app.bundle import MODEL_FOLDER, Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.jobs.evaluation import publish, score
from sparse_xmc.app.run_folder import check_removable, check_resumable, claim, clear, sweep
from sparse_xmc.app.splits import check_paths, prepared_split
from sparse_xmc.data import DataError, Inputs, LabelRows
from sparse_xmc.data.split import check_format
from sparse_xmc.storage.atomic import make_folder
from sparse_xmc.storage.lock import FolderLock

Report = Callable[[str], None]


@dataclass
class Run:
    """One run in its folder; ``lock`` is taken once the folder is this run's.

    Args:
        overwrite: whether it begins anew in a folder that holds a run.
    """

    config: TrainingConfig
    overwrite: bool
    report: Report
    lock: FolderLock

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.model_folder = os.path.join(self.config.out, MODEL_FOLDER)

    def check_folder(self) -> None:
        """Refuses a folder that holds another run, and files that are not there, before the work of reading data."""
        config = self.config
        if config.from_ is not None and os.path.realpath(config.from_) == os.path.realpath(config.out):
            raise ValueError(f"from and out are the same folder ({config.out}): choose another --out")
        if self.overwrite:
            check_removable(config.out)
        else:
            check_resumable(config)
        check_paths(config.test_labels, config.test_filter)
        if config.test is not None:
            texts, label = config.text_field or None, config.label_field  # what is wrong is told before the training
            check_format(config.test, config.test_labels, text_fields=texts, label_field=label)

    def check_rows(self, rows: LabelRows) -> None:
        """Raises:
        DataError: there is nothing to learn.
        """
        if len(rows) == 0 or len(rows.ids) == 0:
            raise DataError(self.config.train, None, "no rows with labels to train on")

    def check_data(self, config: TrainingConfig, digests: Mapping[str, str], num_features: int) -> None:
        """Refuses a folder that holds a run of other data."""
        if not self.overwrite:
            check_resumable(config, digests, num_features)

    def claim(self, config: TrainingConfig, digests: Mapping[str, str], num_features: int) -> str:
        """Makes the folder this run's, and no other program's meanwhile."""
        make_folder(config.out)
        self.lock.acquire()
        if self.overwrite:
            clear(config.out)
        else:
            self.check_data(config, digests, num_features)  # a run may have come there since
        run = claim(config, digests, self.report)
        sweep(config.out)
        return run

    def said_trained(self) -> None:
        self.report(f"trained in {time.monotonic() - self.began:.0f} s, model in {self.model_folder}")

    def test_split(self, bundle: Bundle) -> tuple[Inputs, LabelRows]:
        config = self.config
        assert config.test
        return prepared_split(
            config, bundle.preparation, config.test, config.test_labels, purpose="evaluate", report=self.report
        )

    def evaluate(self, bundle: Bundle, inputs: Inputs, rows: LabelRows) -> dict[str, Any]:
        return score(bundle, inputs, rows, self.config.test_filter)

    def publish(self, metrics: dict[str, Any]) -> None:
        """Reports metrics and keeps them in the folder, where there are any."""
        if metrics:
            publish(metrics, os.path.join(self.config.out, "metrics.json"), self.report)
