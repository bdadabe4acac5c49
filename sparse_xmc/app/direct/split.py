"""The training split of a direct run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.beginning import Beginning
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.calibration import Calibration
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.model import TermModel
from sparse_xmc.app.hold_out import Split
from sparse_xmc.app.prepare import Terms
from sparse_xmc.data import LabelVocabulary, SparseInputs
from sparse_xmc.data.survey import Survey, frequent_labels
from sparse_xmc.solver.plan import FREQUENT
from sparse_xmc.solver.settings import Settings


@dataclass
class TermSplit:
    """The training split as the solver takes it, and rows held out to calibrate on, where that is wanted."""

    preparation: Terms
    inputs: SparseInputs
    vocabulary: LabelVocabulary
    targets: sp.csr_matrix
    held_out: Split | None
    beginning: Beginning | None

    @property
    def num_features(self) -> int:
        return self.inputs.matrix.shape[1]

    @property
    def counts(self) -> np.ndarray:
        """Rows of each label ``[L]``."""
        return np.bincount(self.targets.indices, minlength=self.targets.shape[1])

    @property
    def frequencies(self) -> np.ndarray:
        """Training rows of each label ``[L]``, at least those that a model which the run begins from has seen."""
        return self.counts if self.beginning is None else np.maximum(self.counts, self.beginning.frequencies)

    def sizes(self) -> Survey:
        x, targets = self.inputs.matrix, self.targets
        often = frequent_labels(targets.indices, 1.0, FREQUENT)
        return Survey(x.shape[0], x.nnz, x.shape[1], targets.shape[1], targets.nnz, 8.0, *often)

    @property
    def num_train(self) -> int:
        """Training rows, likewise."""
        return len(self.inputs) if self.beginning is None else max(len(self.inputs), self.beginning.bundle.num_train)

    def bundle(
        self, config: TrainingConfig, model: TermModel, calibration: Calibration | None, settings: Settings
    ) -> Bundle:
        """A model of this split with all that surrounds it."""
        return Bundle(
            config,
            model,
            self.preparation,
            self.vocabulary,
            self.frequencies,
            self.num_train,
            self.num_features,
            calibration,
            settings,
        )
