"""Every head has the same interface: leading dimensions, pairs of targets, repeated labels, excluded labels."""

import pytest
import scipy.sparse as sp
import torch

from sparse_xmc import ops
from sparse_xmc.models import (
    DenseLinear,
    FixedFanInLinear,
    HeadTailLinear,
    QuantizedFixedFanInLinear,
    SparseInputLinear,
)

D, L, K = 16, 40, 4
HEADS = {
    "dense": lambda: DenseLinear(D, L, seed=1),
    "fixed": lambda: FixedFanInLinear(D, L, K, seed=1),
    "grouped": lambda: FixedFanInLinear(D, L, K, False, group_size=8, seed=1),
    "head_tail": lambda: HeadTailLinear(D, L, K, num_head=5, seed=1),
    "split": lambda: HeadTailLinear(D, L, K, num_head=33, split=6, seed=1),
    "terms": lambda: SparseInputLinear(D, L, K, seed=1),
    "quantized": lambda: QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(D, L, K, seed=1)),
}
each_head = pytest.mark.parametrize("name", HEADS)


def batch(*lead):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*lead, D, generator=generator)


def logits_of(name, head, x):
    rows = x.reshape(-1, D)
    return head(rows.to_sparse_csr() if name == "terms" else rows).detach().view(*x.shape[:-1], L)


def csr(lists):
    offsets = torch.tensor([0, *(len(each) for each in lists)]).cumsum(0)
    labels = torch.tensor([label for each in lists for label in each], dtype=torch.int64)
    return torch.sparse_csr_tensor(offsets, labels, torch.zeros(len(labels)), (len(lists), L))


@each_head
@pytest.mark.parametrize("k", [1, 7, L])
def test_topk_over_leading_dimensions(name, k):
    head = HEADS[name]()
    for lead in [(6,), *([] if name == "terms" else [(2, 3), (2, 1, 3), ()])]:
        x = batch(*lead)
        scores, labels = head.topk(x.to_sparse_csr() if name == "terms" else x, k)
        expected = logits_of(name, head, x).sort(dim=-1, descending=True, stable=True)
        assert scores.shape == labels.shape == (*lead, k)
        torch.testing.assert_close(scores, expected.values[..., :k])
        torch.testing.assert_close(logits_of(name, head, x).gather(-1, labels), scores)
        assert all(len(set(row)) == k for row in labels.reshape(-1, k).tolist())


def forms(lists):
    """The same labels in all forms of targets that are not CSR tensors."""
    matrix = csr(lists)
    ones = torch.ones(len(matrix.col_indices()))
    held = torch.sparse_csr_tensor(matrix.crow_indices(), matrix.col_indices(), ones, matrix.shape).to_dense() > 0
    arrays = matrix.crow_indices().numpy(), matrix.col_indices().numpy()
    return [
        lists,
        held,
        held.numpy(),
        held.float().to_sparse_coo(),
        held.float().to_sparse_csc(),
        sp.csr_matrix((ones.numpy(), arrays[1], arrays[0]), matrix.shape),
        sp.lil_matrix(held.numpy()),
        (matrix.crow_indices(), matrix.col_indices()),
        ops.sort_targets(lists, L),
    ]


@each_head
def test_topk_without_some_labels(name):
    head = HEADS[name]()
    x = batch(4)
    lists = [[], [3, 3, 7], list(range(6, L)), list(range(33))]
    scores, labels = head.topk(x.to_sparse_csr() if name == "terms" else x, 6, exclude=csr(lists))
    for row, left_out in enumerate(lists):
        expected = logits_of(name, head, x)[row].clone()
        expected[left_out] = -torch.inf
        torch.testing.assert_close(scores[row], expected.sort(descending=True).values[:6])
        assert not set(labels[row].tolist()) & set(left_out)
    for exclude in forms(lists):
        assert torch.equal(head.topk(x.to_sparse_csr() if name == "terms" else x, 6, exclude=exclude)[1], labels)
    with pytest.raises(ValueError, match="k must not exceed the labels that are left: k=8, row 2 has 6"):
        head.topk(x.to_sparse_csr() if name == "terms" else x, 8, exclude=csr(lists))
    with pytest.raises(ValueError, match=r"exclude must be \[4, 40\], got \[3, 40\]"):
        head.topk(x.to_sparse_csr() if name == "terms" else x, 2, exclude=csr(lists[:3]))
    for crow, columns, message in (
        ([0, 1, 1, 2, 2], [3, 40], r"exclude holds label 40, outside \[0, 40\)"),
        ([0, 2, 1, 2, 2], [3, 4], "the row offsets of exclude must ascend from 0 to the number of entries 2, got"),
        ([0, 1, 1, 2, 9], [3, 4], "the row offsets of exclude must ascend from 0 to the number of entries 2, got"),
    ):
        parts = torch.tensor(crow), torch.tensor(columns), torch.ones(2)
        broken = torch.sparse_csr_tensor(*parts, (4, L), check_invariants=False)
        with pytest.raises(ValueError, match=message):
            head.topk(x.to_sparse_csr() if name == "terms" else x, 2, exclude=broken)


@each_head
def test_errors_are_the_same(name):
    head = HEADS[name]()
    x = batch(2).to_sparse_csr() if name == "terms" else batch(2)
    for k, message in ((0, "k must be at least 1, got 0"), (L + 1, "k must not exceed the number of labels: k=41")):
        with pytest.raises(ValueError, match=message):
            head.topk(x, k)
    wrong = torch.randn(2, D + 1)
    wrong = wrong.to_sparse_csr() if name == "terms" else wrong
    with pytest.raises(ValueError, match=rf"x must be \[..., in_features={D}\]"):
        head.topk(wrong, 2)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "quantized"])
def test_losses_count_a_repeated_label_once_and_take_pairs(name):
    head = HEADS[name]()
    x = batch(3).to_sparse_csr() if name == "terms" else batch(3)
    once, repeated = csr([[2, 39], [], [5]]), csr([[2, 39, 39, 2], [], [5, 5]])
    pair = (repeated.crow_indices(), repeated.col_indices())
    logits = logits_of(name, head, batch(3)).double()
    dense = torch.zeros(3, L, dtype=torch.float64)
    dense[[0, 0, 2], [2, 39, 5]] = 1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, dense, reduction="sum")
    for targets in (once, repeated, pair):
        value = head.loss(x, targets, reduction="sum").double()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "fixed", "head_tail"])
def test_losses_over_leading_dimensions(name):
    head = HEADS[name]()
    x, targets = batch(2, 3), csr([[1], [2], [], [39], [0, 7], [5]])
    torch.testing.assert_close(head.loss(x, targets), head.loss(x.view(6, D), targets))
