"""Encoders, auxiliary objective, head/tail and the whole classifier against plain dense expressions."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn import functional as F

from sparse_xmc.models.auxiliary import AuxiliaryObjective
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.encoders import BagOfWordsEncoder, PrecomputedEncoder, intermediate_layer
from sparse_xmc.models.grouping import balanced_clusters, group_order
from sparse_xmc.models.head_tail import DenseLinear, HeadTailLinear
from sparse_xmc.models.losses import logits_loss
from sparse_xmc.models.sparse_input import SparseInputLinear
from sparse_xmc.models.sparse_rows import csr_columns, csr_rows
from sparse_xmc.models.topk import merge_topk, topk_of_logits


def some_targets(B, L, p=0.2, seed=0):
    return (torch.rand(B, L, generator=torch.Generator().manual_seed(seed)) < p).float()


def test_bag_of_words_gradient_is_sparse_and_right():
    torch.manual_seed(0)
    x = torch.randn(6, 20) * (torch.rand(6, 20) < 0.3)
    x[2] = 0
    encoder = BagOfWordsEncoder(20, 4)
    y = encoder(x.to_sparse_csr())
    weight = encoder.weight.detach().double().requires_grad_()
    expected = x.double() @ weight
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    scale = torch.randn(6, 4)
    (y * scale).sum().backward()
    (expected * scale).sum().backward()
    assert encoder.weight.grad.is_sparse
    assert encoder.weight.grad.coalesce().indices()[0].tolist() == x.any(0).nonzero().flatten().tolist()
    torch.testing.assert_close(encoder.weight.grad.to_dense().double(), weight.grad, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="x must be sparse CSR"):
        encoder(x)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_against_torch(reduction):
    logits = torch.randn(5, 8, dtype=torch.float64)
    dense = some_targets(5, 8)
    targets = dense.to_sparse_csr()
    divisor = 5 if reduction == "mean" else 1
    bce = F.binary_cross_entropy_with_logits(logits, dense.double(), reduction="sum") / divisor
    hinge = (1 - (2 * dense - 1) * logits).clamp(min=0).square().sum() / divisor
    torch.testing.assert_close(logits_loss(logits, targets, reduction=reduction), bce)
    torch.testing.assert_close(logits_loss(logits, targets, loss="squared_hinge", reduction=reduction), hinge)


def test_auxiliary_objective():
    auxiliary = AuxiliaryObjective(3, torch.tensor([0, 0, 1, 2]), weight=0.4, cutoff=0.5)
    assert [auxiliary.weight_at(t) for t in (0, 0.25, 0.5, 1)] == pytest.approx([0.4, 0.2, 0, 0])
    targets = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]]).to_sparse_csr()
    assert auxiliary.cluster_targets(targets).to_dense().tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    x = torch.randn(3, 3)
    model = XMCClassifier(PrecomputedEncoder(3), DenseLinear(3, 4), auxiliary=auxiliary)
    main, extra = model.head.loss(x, targets), auxiliary.loss(x, targets)
    torch.testing.assert_close(model.loss(x, targets, progress=0.25), 0.8 * main + 0.2 * extra)
    torch.testing.assert_close(model.loss(x, targets, progress=0.5), main)
    with pytest.raises(ValueError, match="clusters must be"):
        AuxiliaryObjective(3, torch.tensor([-1, 0]))


@pytest.mark.parametrize("split", [None, 4])
def test_head_tail(split):
    layer = HeadTailLinear(10, 9, 3, num_head=4, split=split, seed=0)
    x, dense = torch.randn(5, 10), some_targets(5, 9)
    head, tail = (x, x) if split is None else (x[:, :split], x[:, split:])
    expected = torch.cat([layer.head(head), tail @ layer.tail.to_dense().weight.T + layer.tail.bias], 1)
    torch.testing.assert_close(layer(x), expected)
    if hasattr(layer.tail, "loss"):
        torch.testing.assert_close(layer.loss(x, dense.to_sparse_csr()), logits_loss(expected, dense.to_sparse_csr()))
        scores, labels = layer.topk(x, 6)
        torch.testing.assert_close(scores, expected.topk(6).values)
        assert labels.equal(expected.topk(6).indices)
    with pytest.raises(ValueError, match="num_head must be below"):
        HeadTailLinear(10, 9, 3, num_head=9)


def test_target_split_and_topk_merge():
    dense = some_targets(6, 9, 0.4)
    for start, stop in ((0, 4), (4, 9), (3, 3)):
        assert csr_columns(dense.to_sparse_csr(), start, stop).to_dense().equal(dense[:, start:stop])
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    scores, labels = topk_of_logits(logits, 3)
    assert (scores.tolist(), labels.tolist()) == ([[3, 3, 3]], [[1, 2, 4]])
    left, right = topk_of_logits(logits[:, :3], 3), topk_of_logits(logits[:, 3:], 2)
    assert merge_topk([left, (right[0], right[1] + 3)], 3)[1].tolist() == [[1, 2, 4]]


def test_two_heads_average_their_probabilities():
    torch.manual_seed(0)
    x = (torch.rand(70, 20) * (torch.rand(70, 20) < 0.3)).to_sparse_csr()
    model = XMCClassifier(
        BagOfWordsEncoder(20, 4),
        DenseLinear(6, 8),
        penultimate=intermediate_layer(4, 6),
        lexical=SparseInputLinear(20, 8, 3, seed=0),
    ).eval()
    with torch.no_grad():
        expected = (model.head(model.features(x)).sigmoid() + (model.lexical(x) + 1) / 2) / 2
        torch.testing.assert_close(model(x), expected)
    scores, labels = model.topk(x, 3)
    torch.testing.assert_close(scores, expected.topk(3).values)
    assert labels.equal(expected.topk(3).indices)
    assert model.as_probabilities(scores) is scores
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        model.topk(x, 0)
    assert model.topk(csr_rows(x, 0, 0), 3)[1].shape == (0, 3)
    targets = some_targets(70, 8).to_sparse_csr()
    expected = model.head.loss(model.features(x), targets) + model.lexical.loss(x, targets, loss="squared_hinge")
    torch.testing.assert_close(model.loss(x, targets), expected)


def test_scores_of_one_head_as_probabilities():
    scores = torch.tensor([-1.0, 0.0, 1.0])
    model = XMCClassifier(PrecomputedEncoder(3), DenseLinear(3, 4))
    assert model.as_probabilities(scores).equal(scores.sigmoid())
    model = XMCClassifier(PrecomputedEncoder(3), DenseLinear(3, 4), loss="squared_hinge")
    assert model.as_probabilities(scores).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="lexical_loss must be 'bce' or 'squared_hinge', got 'mse'"):
        XMCClassifier(PrecomputedEncoder(3), DenseLinear(3, 4), lexical_loss="mse")


@pytest.mark.parametrize(("L", "G"), [(64, 8), (61, 8), (5, 8), (33, 1)])
def test_clusters_are_exact_and_find_structure(L, G):
    rng = np.random.default_rng(0)
    blob = rng.permutation(np.arange(L) // G)
    vectors = np.eye(blob.max() + 1)[blob] + 0.05 * rng.standard_normal((L, blob.max() + 1))
    order = balanced_clusters(vectors, G)
    assert sorted(order) == list(range(L))
    sparse = balanced_clusters(sp.csr_matrix(vectors), G)
    assert sorted(sparse) == list(range(L))
    if L == 64:
        same = np.mean([len(set(blob[order[i : i + G]])) == 1 for i in range(0, L, G)])
        assert same > 0.5


def test_group_orders():
    rng = np.random.default_rng(0)
    targets = sp.csr_matrix((rng.random((50, 20)) < np.linspace(0.02, 0.5, 20)).astype(np.float32))
    counts = np.asarray(targets.sum(0)).ravel()
    by_frequency = group_order("frequency", targets, 4)
    assert (np.diff(counts[by_frequency]) <= 0).all()
    for kind in ("random", "clustered"):
        order = group_order(kind, targets, 4, features=targets, num_head=8)
        assert sorted(order) == list(range(20))
        assert order[:8].tolist() == by_frequency[:8].tolist()
    with pytest.raises(ValueError, match="kind must be"):
        group_order("alphabet", targets, 4)
