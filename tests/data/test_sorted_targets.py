"""Targets that are sorted while a batch is put together: what the loss would make of the matrix, to the bit."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc import ops
from sparse_xmc.app.trainer import Trainer
from sparse_xmc.data import DenseInputs, sorted_targets, to_torch_csr
from sparse_xmc.models import DenseLinear, FixedFanInLinear, XMCClassifier


def matrix(seed: int, rows: int = 7, labels: int = 11) -> sp.csr_matrix:
    """With empty rows, unordered labels and, as no reader makes them, repeated ones."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 4, rows) * (random.random(rows) < 0.8)
    indices = np.concatenate([random.integers(0, labels, count) for count in counts]).astype(np.int32)
    offsets = np.concatenate([[0], counts.cumsum()])
    return sp.csr_matrix((np.ones(len(indices), np.float32), indices, offsets), (rows, labels))


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_sorting_in_the_loss(seed: int) -> None:
    targets = matrix(seed)
    found, expected = sorted_targets(targets), ops.sort_targets(to_torch_csr(targets), 11)
    assert found[2:] == expected[2:] == (7, 11)
    assert torch.equal(found.labels, expected.labels) and torch.equal(found.rows, expected.rows)
    assert found.labels.dtype == torch.int64 and found.rows.dtype == torch.int32


def trainer(head: torch.nn.Module) -> Trainer:
    torch.manual_seed(0)
    inputs = DenseInputs(np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32))
    model = XMCClassifier(torch.nn.Identity(), head)
    return Trainer(model, inputs, matrix(1), [], epochs=1, batch_size=4)


def test_the_trainer_sorts_where_the_model_takes_it() -> None:
    """A fused head alone does; the loss and the gradients are the same bits."""
    gradients = []
    for prepare in (sorted_targets, to_torch_csr):
        own = trainer(FixedFanInLinear(6, 11, 3, seed=0))
        assert own.prepare_targets is sorted_targets
        own.prepare_targets = prepare
        own.train_step(0)
        gradients.append(own.model.head.weight.grad)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
    assert trainer(DenseLinear(6, 11)).prepare_targets is to_torch_csr
