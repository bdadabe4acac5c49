"""A run that begins from a model (``--from``): which of its labels stay, which are new, and a model that grows by them.

Labels of the model keep their numbers, as far as they stay; new ones come behind them. Features are the model's: its terms
keep their columns and weights (a head that was solved directly gets terms of the new texts behind them), embeddings and
transformers are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from sparse_xmc.app.build import CENTROID_ROWS, head_features, label_order, prior_bias
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.data import Inputs, LabelRows, LabelVocabulary, SparseInputs, to_torch_csr
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.head_tail import DenseLinear, HeadTailLinear
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.sparse_input import SparseInputLinear


@dataclass(frozen=True)
class Beginning:
    """A model that a run begins from.

    Args:
        bundle: the model, which the run makes its own.
        kept: numbers of its labels that stay, ascending.
        names: of the labels that are new, in the order of the columns behind those.
    """

    bundle: Bundle
    kept: np.ndarray
    names: list[object]

    @classmethod
    def of(cls, bundle: Bundle, config: TrainingConfig, inputs: Inputs, rows: LabelRows) -> Beginning:
        """With the labels of a training split.

        Raises:
            ValueError: all labels of the model would go.
        """
        split = LabelVocabulary.from_rows(rows)
        found = [bundle.vocabulary.index(name) for name in split.names]
        kept = np.arange(len(bundle.vocabulary))
        if config.drop_labels:
            kept = np.array(sorted({number for number in found if number is not None}), dtype=np.int64)
            if not len(kept):
                raise ValueError(f"drop_labels=True leaves no label of {config.from_}: {config.train} has none of them")
        fresh = LabelVocabulary([name for name, number in zip(split.names, found, strict=True) if number is None])
        if len(fresh) > 1 and config.group_size > 1 and config.grouping != "frequency":
            counted = LabelRows()
            for i in range(len(rows)):
                counted.append(name for name in rows.row(i) if fresh.index(name) is not None)
            fresh = fresh.reordered(label_order(config, inputs, fresh.encode(counted)))
        return cls(bundle, kept, fresh.names)

    @property
    def vocabulary(self) -> LabelVocabulary:
        """All labels of the run."""
        return LabelVocabulary([*(self.bundle.vocabulary.names[i] for i in self.kept), *self.names])

    @property
    def frequencies(self) -> np.ndarray:
        """Rows of each label that the model was trained on ``[L]``, 0 of new ones."""
        return np.concatenate([self.bundle.frequencies[self.kept], np.zeros(len(self.names), np.int64)])

    @property
    def gone(self) -> np.ndarray:
        """Numbers of the model's labels that leave it."""
        return np.setdiff1d(np.arange(len(self.bundle.vocabulary)), self.kept)

    def summary(self) -> str:
        """What comes and goes, in one line."""
        gone = f"{len(self.gone):,} of them leave, " if len(self.gone) else ""
        return f"begins from a model of {len(self.bundle.vocabulary):,} labels: {gone}{len(self.names):,} new ones"


@torch.no_grad()
def grown_model(
    config: TrainingConfig, beginning: Beginning, inputs: Inputs, targets: sp.csr_matrix, device: torch.device
) -> XMCClassifier:
    """The model for training on, with rows for the new labels of ``targets [N, L]``: informed connections of weight 0."""
    torch.manual_seed(config.seed)
    model = beginning.bundle.model.to(device)
    model.auxiliary = None
    heads = [(model.head, config.loss)] + ([(model.lexical, config.lexical_loss)] if model.lexical is not None else [])
    for head, _ in heads:
        if len(beginning.gone):
            head.remove_labels_(beginning.gone)
    new = len(beginning.names)
    if not new:
        return model
    own = targets[:, -new:].tocsr()
    counts = torch.from_numpy(np.asarray(own.sum(axis=0)).ravel())
    rows = _telling_rows(own, config.seed)
    for head, loss in heads:
        informed = (_read(model, head, inputs, rows), to_torch_csr(own[rows])) if config.topology == "informed" else ()
        head.add_labels_(new, *informed, seed=config.seed)
        last = head.tail if isinstance(head, HeadTailLinear) else head
        assert isinstance(last, (FixedFanInLinear, DenseLinear)) and last.bias is not None
        last.weight[-new:] = 0
        last.bias[-new:] = prior_bias(loss, counts, targets.shape[0]).to(last.bias)
    return model


def _telling_rows(targets: sp.csr_matrix, seed: int) -> np.ndarray:
    """Rows that connections are told from: those with a new label first, as many as are held in memory."""
    order = np.random.default_rng(seed).permutation(targets.shape[0])
    order = order[np.argsort(np.diff(targets.indptr)[order] == 0, kind="stable")]
    return np.sort(order[:CENTROID_ROWS])


def _read(model: XMCClassifier, head: object, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
    """What a head reads of these rows."""
    if isinstance(head, SparseInputLinear):
        assert isinstance(inputs, SparseInputs)
        return to_torch_csr(inputs.matrix[rows])
    return head_features(model, inputs, rows)
