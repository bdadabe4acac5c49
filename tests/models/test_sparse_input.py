"""The head on sparse rows against a dense float64 computation, and its informed start against a dense definition."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.models.encoders import BagOfWordsEncoder
from sparse_xmc.models.losses import logits_loss
from sparse_xmc.models.sparse_input import SparseInputLinear, informed_terms
from sparse_xmc.ops.sparse_input import fixed_fan_in_sparse_loss
from sparse_xmc.optim.fused import FusedSGD


def layer_and_batch(L, G, K=6, D=50, B=9, seed=0):
    torch.manual_seed(seed)
    layer = SparseInputLinear(D, L, K, group_size=G, seed=seed)
    with torch.no_grad():
        layer.bias.normal_()
    x = torch.randn(B, D) * (torch.rand(B, D) < 0.3)
    x[3] = 0  # an empty document
    targets = (torch.rand(B, L) < 0.05).float()
    targets[4] = 0
    return layer, x, x.to_sparse_csr(), targets.to_sparse_csr()


def dense_weight(layer):
    weight = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    return weight.scatter(1, layer.label_indices(), layer.weight.detach().double())


@pytest.mark.parametrize(("L", "G"), [(7, 1), (9001, 1), (103, 4), (9001, 16)])
@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
def test_loss_and_gradients_against_dense(L, G, loss):
    layer, x, sparse, targets = layer_and_batch(L, G)
    weight = dense_weight(layer).requires_grad_()
    bias = layer.bias.detach().double().requires_grad_()
    expected = logits_loss(x.double() @ weight.T + bias, targets, loss=loss)
    expected.backward()
    value = layer.loss(sparse, targets, loss=loss)
    (2 * value).backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    gradient = weight.grad.gather(1, layer.label_indices())
    torch.testing.assert_close(layer.weight.grad.double(), 2 * gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad.double(), 2 * bias.grad, rtol=1e-5, atol=1e-6)


def test_forward_and_topk_against_dense():
    layer, x, sparse, _ = layer_and_batch(301, 1, B=70)
    logits = x.double() @ dense_weight(layer).T + layer.bias.detach().double()
    with torch.no_grad():
        torch.testing.assert_close(layer(sparse).double(), logits, rtol=1e-5, atol=1e-5)
    scores, labels = layer.topk(sparse, 5)
    torch.testing.assert_close(scores.double(), logits.topk(5).values, rtol=1e-5, atol=1e-5)
    assert labels.equal(logits.topk(5).indices)


@pytest.mark.parametrize("logit", [-1e4, -90.0, -20.0, 0.0, 20.0, 1e4])
def test_loss_is_stable_for_large_logits(logit):
    layer, _, sparse, targets = layer_and_batch(40, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(logit)
    value = layer.loss(sparse, targets)
    value.backward()
    expected = logits_loss(torch.full((9, 40), logit, dtype=torch.float64), targets)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert layer.bias.grad.isfinite().all()


def test_repeated_targets_count_once_and_threads_do_not_matter():
    layer, _, sparse, targets = layer_and_batch(9001, 1)
    crow = torch.zeros(10, dtype=torch.int64)
    crow[1:] = 2
    twice = torch.sparse_csr_tensor(crow, torch.tensor([5, 5]), torch.ones(2), (9, 9001), check_invariants=False)
    crow = crow.clamp(max=1)
    once = torch.sparse_csr_tensor(crow, torch.tensor([5]), torch.ones(1), (9, 9001), check_invariants=False)
    assert layer.loss(sparse, twice).item() == layer.loss(sparse, once).item()
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            layer.zero_grad()
            layer.loss(sparse, targets).backward()
            results.append(layer.weight.grad)
    finally:
        torch.set_num_threads(threads)
    assert results[0].equal(results[1])


@pytest.mark.parametrize("loss", ["bce", "squared_hinge", "asymmetric"])
def test_weights_over_several_tiles_and_products(loss):
    """More labels than a tile, and than a product of factors may hold; against the layer on dense rows."""
    L, generator = 3000, torch.Generator().manual_seed(0)
    x = torch.randn(20, 16, generator=generator) * 4
    targets = torch.rand(20, L, generator=generator) < 0.01
    weights = {"pos_weight": torch.rand(L, generator=generator), "sample_weight": torch.rand(20, generator=generator)}
    found = []
    for kind, rows in ((FixedFanInLinear, x), (SparseInputLinear, x.to_sparse_csr())):
        layer = kind(16, L, 4, seed=1)
        value = layer.loss(rows, targets, loss=loss, **weights)
        found.append([value, *torch.autograd.grad(value, list(layer.parameters()))])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_topology_changes_are_noticed():
    layer, x, sparse, _ = layer_and_batch(7, 1)
    layer.topk(sparse, 1)
    layer.indices.copy_(SparseInputLinear(50, 7, 6, seed=9).indices)
    logits = x.double() @ dense_weight(layer).T + layer.bias.detach().double()
    with torch.no_grad():
        torch.testing.assert_close(layer(sparse).double(), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("G", [1, 3])
def test_informed_terms_against_the_definition(G):
    rng = np.random.default_rng(0)
    x = sp.random(80, 30, 0.3, format="csr", random_state=0, dtype=np.float32)
    y = sp.csr_matrix((rng.random((80, 10)) < 0.1).astype(np.float32))
    indices = informed_terms(x, y, 4, group_size=G).long().numpy()
    dense_x, dense_y = x.toarray().astype(np.float64), y.toarray()
    for r in range(-(-10 // G)):
        weight = dense_y[:, r * G : (r + 1) * G].sum(1)
        score = np.abs(weight @ dense_x / max(weight.sum(), 1) - dense_x.mean(0)) * (weight @ dense_x > 0)
        assert len(set(indices[r])) == 4
        assert sorted(score[indices[r]]) == pytest.approx(sorted(score)[-4:])


def test_rows_with_few_candidates_are_filled_up():
    x = sp.csr_matrix(np.eye(6, 20, dtype=np.float32))
    y = sp.csr_matrix(np.eye(6, 6, dtype=np.float32))
    indices = informed_terms(x, y, 5).long()
    assert all(i in indices[i] and len(set(indices[i].tolist())) == 5 for i in range(6))


def test_bad_arguments():
    layer, x, sparse, targets = layer_and_batch(7, 1)
    arguments = (layer.weight, layer.indices, layer.bias)
    with pytest.raises(TypeError, match="x must be a torch.sparse_csr matrix"):
        fixed_fan_in_sparse_loss(x, *arguments, targets)
    with pytest.raises(ValueError, match="loss must be"):
        fixed_fan_in_sparse_loss(sparse, *arguments, targets, loss="mse")
    with pytest.raises(ValueError, match=r"targets must be \[9, 7\]"):
        fixed_fan_in_sparse_loss(sparse, *arguments, targets.to_dense()[:, :3].to_sparse_csr())
    with pytest.raises(ValueError, match="dropout must lie"):
        SparseInputLinear(5, 5, 2, dropout=1.0)


@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
def test_nan_reaches_loss_and_gradients(loss):
    layer, _, x, targets = layer_and_batch(7, 1)
    with torch.no_grad():
        layer.bias[2] = float("nan")
    value = layer.loss(x, targets, loss=loss)
    value.backward()
    assert value.isnan() and layer.bias.grad.isnan().tolist() == [label == 2 for label in range(7)]


def test_an_empty_batch_and_too_many_labels():
    layer, _, x, _ = layer_and_batch(7, 1)
    none = torch.sparse_csr_tensor([0], torch.zeros(0).long(), torch.zeros(0), (0, 50))
    scores, labels = layer.topk(none, 3)
    assert scores.shape == labels.shape == (0, 3) and labels.dtype == torch.int64
    with pytest.raises(ValueError, match="k must not exceed the number of labels: k=8, labels 7"):
        layer.topk(x, 8)


def test_fused_optimizers_are_refused_and_other_entrances_work():
    layer, x, sparse, _ = layer_and_batch(7, 1)
    with pytest.raises(RuntimeError, match="no fused optimizer updates a layer on sparse input"):
        layer.fuse_optimizer(FusedSGD(0.1))
    with pytest.raises(ValueError, match=r"x must be \[..., in_features=50\], got shape \[9, 49\]"):
        layer(x[:, :49].to_sparse_csr())
    dense = layer.to_dense()
    kept = SparseInputLinear.from_dense(dense, 6)
    with torch.no_grad():
        torch.testing.assert_close(kept(sparse), dense(x))


def test_debugging_checks_the_connections(monkeypatch):
    layer, _, x, targets = layer_and_batch(7, 1)
    layer.indices[3] = 5
    monkeypatch.setenv("SPARSE_XMC_DEBUG", "1")
    with pytest.raises(ValueError, match=r"indices\[3\] holds 5 twice"):
        layer.loss(x, targets)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize(
    ("crow", "col", "reason"),
    [
        ([0, 1, 2, 3], [0, 50, 1], "x holds column 50 .*outside"),
        ([0, 1, 2, 3], [0, -1, 1], "x holds column -1"),
        ([0, 1, 2, 3], [0, 2**31 - 1, 1], "x holds column 2147483647"),
        ([0, 3, 1, 3], [0, 2, 1], "crow_indices of x must not descend"),
        ([0, -1_000_000, 2, 3], [0, 2, 1], "crow_indices of x must not descend"),
        ([0, 1, 2, 9], [0, 2, 1], "crow_indices of x must end with the number of entries 3"),
        ([1, 1, 2, 3], [0, 2, 1], "crow_indices of x must start with 0"),
    ],
)
def test_rows_of_any_other_structure_are_refused(crow, col, reason, dtype):
    layer, *_ = layer_and_batch(7, 1)
    rows = (torch.tensor(crow, dtype=dtype), torch.tensor(col, dtype=dtype), torch.ones(3))
    x = torch.sparse_csr_tensor(*rows, (3, 50), check_invariants=False)
    targets = torch.eye(3, 7).to_sparse_csr()
    encoder = BagOfWordsEncoder(50, 4, seed=0)
    with torch.no_grad():
        for use in (layer, encoder, lambda x: layer.topk(x, 2), lambda x: layer.loss(x, targets)):
            with pytest.raises(ValueError, match=reason):
                use(x)
    for use in (layer, encoder, lambda x: layer.loss(x, targets)):
        with pytest.raises(ValueError, match=reason):
            use(x)
