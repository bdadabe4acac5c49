"""A torch model that grows by the labels that are new in a run."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from sparse_xmc.app.beginning import Beginning
from sparse_xmc.app.build import CENTROID_ROWS, head_features, prior_bias
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.data import Inputs, SparseInputs, to_torch_csr
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.head_tail import DenseLinear, HeadTailLinear
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.sparse_input import SparseInputLinear


@torch.no_grad()
def grown_model(
    config: TrainingConfig, beginning: Beginning, inputs: Inputs, targets: sp.csr_matrix, device: torch.device
) -> XMCClassifier:
    """The model for training on, with rows for the new labels of ``targets [N, L]``: informed connections of weight 0."""
    torch.manual_seed(config.seed)
    model = beginning.bundle.module.to(device)
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
