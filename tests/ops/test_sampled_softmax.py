"""Sampled softmax: an unbiased estimate of the full one's sum, its gradients, its draws, and what it refuses."""

import math

import pytest
import torch
from torch.nn import functional as F

from sparse_xmc import ops
from sparse_xmc.distributed import LabelShardedLinear
from sparse_xmc.models import FixedFanInLinear, HeadTailLinear, SparseInputLinear
from sparse_xmc.ops.sampled_softmax import _draw, _shares
from sparse_xmc.optim import FusedSGD, RowSparseAdagrad
from tests.conftest import INTERPRETING

# thousands of draws or labels, which are drawn by torch whatever computes the logits
statistics = pytest.mark.skipif(INTERPRETING, reason="takes minutes in the interpreter")

B, D, L, K = 6, 16, 40, 5


def make(dtype=torch.float32, group_size=1, bias=True, device="cpu"):
    torch.manual_seed(0)
    layer = FixedFanInLinear(D, L, K, bias, group_size=group_size, seed=1, dtype=dtype, device=device)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(B, D, dtype=dtype, device=device)
    return layer, x, torch.tensor([3, 0, 39, 3, 17, 8], device=device)


def options(sampling, n=64):
    generator = torch.Generator().manual_seed(5)
    counts = torch.randint(1, 9, (L,), generator=generator)
    return {
        "uniform": {"num_negatives": n},
        "popularity": {"num_negatives": n, "frequencies": counts},
        "in_batch": {"frequencies": counts},
    }[sampling]


every_sampling = pytest.mark.parametrize("sampling", ["uniform", "popularity", "in_batch"])


@statistics
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_many_draws_are_the_full_softmax(sampling, group_size, device):
    layer, x, targets = make(group_size=group_size, device=device)
    given = {
        name: value.to(device) if name == "frequencies" else value for name, value in options(sampling, 60_000).items()
    }
    full = layer.loss(x.requires_grad_(), targets, loss="cross_entropy")
    wanted = torch.autograd.grad(full, [x, layer.weight, layer.bias])
    sampled = layer.loss(x, targets, loss="sampled_softmax", sampling=sampling, **given)
    found = torch.autograd.grad(sampled, [x, layer.weight, layer.bias])
    torch.testing.assert_close(sampled, full, rtol=0.02, atol=0)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=float(0.05 * b.abs().max()))


@statistics
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_the_estimate_of_the_sum_is_unbiased(sampling):
    """exp(loss) is the sum over exp(own logit): its mean over draws lies within five standard errors of the full one's."""
    layer, x, targets = make()
    with torch.no_grad():
        logits = layer(x[:1])
        full = float((logits.logsumexp(1) - logits[0, targets[0]]).exp())
        draws = torch.stack(
            [
                layer.loss(x[:1], targets[:1], loss="sampled_softmax", sampling=sampling, **options(sampling, 7)).exp()
                for _ in range(2000)
            ]
        )
    error = float(draws.std()) / math.sqrt(len(draws))
    assert error < 0.05 * full and abs(float(draws.mean()) - full) < 5 * error


@pytest.mark.parametrize("bias", [True, False])
@every_sampling
def test_value_and_gradients_are_those_of_the_formula(sampling, bias):
    """The same draws, in dense float64; rows that do not count; a target among the draws is not counted twice."""
    layer, x, targets = make(torch.float64, group_size=4, bias=bias)
    targets[1] = -100
    given = options(sampling, 25)
    torch.manual_seed(3)
    loss = layer.loss(x.requires_grad_(), targets, loss="sampled_softmax", sampling=sampling, **given)
    parameters = [x, *layer.parameters()]
    found = torch.autograd.grad(loss, parameters)
    counted = targets >= 0
    torch.manual_seed(3)
    share = None if sampling == "uniform" else given["frequencies"].double() / given["frequencies"].sum()
    if sampling == "uniform":
        negatives, expected = torch.randint(L, (25,)), torch.full((25,), 25 / L, dtype=torch.float64)
    elif sampling == "popularity":
        negatives = torch.searchsorted(share.cumsum(0), torch.rand(25, dtype=torch.float64), right=True)
        expected = 25 * share[negatives]
    else:
        negatives = targets[counted]
        expected = len(negatives) * share[negatives]
    dense = torch.zeros(L, D, dtype=torch.float64).scatter(1, layer.label_indices(), layer.weight)
    logits = x @ dense.T + (0 if layer.bias is None else layer.bias)
    rows = []
    for b in torch.nonzero(counted)[:, 0]:
        others = negatives != targets[b]
        terms = logits[b, negatives[others]] - expected[others].log()
        rows.append(torch.cat([terms, logits[b, targets[b]][None]]).logsumexp(0) - logits[b, targets[b]])
    wanted = torch.stack(rows).mean()
    torch.testing.assert_close(loss, wanted)
    for a, b in zip(found, torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_popularity_draws_follow_the_frequencies():
    """Within five standard errors, and never a label of frequency 0."""
    frequencies = torch.arange(L).float()
    share = _shares("popularity", 40_000, frequencies, L, torch.device("cpu"))
    target = torch.zeros(1, dtype=torch.int64)
    drawn, log_count = _draw("popularity", 40_000, share, target, target == 0, L, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=L).double()
    expected = 40_000 * share
    assert counts[0] == 0 and bool(((counts - expected).abs() <= 5 * expected.sqrt() + 1e-9).all())
    torch.testing.assert_close(log_count, expected[drawn].log())


def test_nothing_but_targets_and_nothing_at_all():
    layer, x, targets = make()
    same = torch.full((B,), 3)
    loss = layer.loss(x, same, loss="sampled_softmax", sampling="in_batch", frequencies=torch.ones(L))
    loss.backward()
    assert float(loss.detach()) == 0 and not layer.weight.grad.any() and bool(layer.weight.grad.isfinite().all())
    ignored = layer.loss(x, torch.full((B,), -100), loss="sampled_softmax", num_negatives=3, reduction="sum")
    assert float(ignored.detach()) == 0


def test_sparse_gradients_touch_what_was_read():
    layer, x, targets = make()
    optimizer = RowSparseAdagrad([layer.weight], 0.1)
    before = layer.weight.detach().clone()
    torch.manual_seed(1)
    layer.loss(x, targets, loss="sampled_softmax", num_negatives=4, sparse_gradient=True).backward()
    sparse = layer.weight.grad
    torch.manual_seed(1)
    layer.weight.grad = None
    layer.loss(x, targets, loss="sampled_softmax", num_negatives=4).backward()
    assert sparse.layout == torch.sparse_coo
    torch.testing.assert_close(sparse.to_dense(), layer.weight.grad)
    layer.weight.grad = sparse
    optimizer.step()
    moved = (layer.weight.detach() != before).any(1)
    assert set(targets.tolist()) <= set(moved.nonzero()[:, 0].tolist()) and int(moved.sum()) <= 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_dtypes_and_autocast(dtype):
    layer, x, targets = make(dtype)
    torch.manual_seed(1)
    found = layer.loss(x, targets, loss="sampled_softmax", num_negatives=9)
    wide = FixedFanInLinear(D, L, K, seed=1)
    wide.load_state_dict(layer.state_dict())
    torch.manual_seed(1)
    wanted = wide.loss(x.float(), targets, loss="sampled_softmax", num_negatives=9)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.03, atol=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        assert wide.loss(x.float(), targets, loss="sampled_softmax", num_negatives=9).dtype == torch.float32


@statistics
def test_it_learns_what_the_full_softmax_learns():
    torch.manual_seed(0)
    centres = torch.randn(L, D)
    results = []
    for sampling in (None, "uniform", "popularity", "in_batch"):
        layer = FixedFanInLinear(D, L, 8, seed=2)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        generator = torch.Generator().manual_seed(1)
        for _ in range(150):
            labels = torch.randint(L, (64,), generator=generator)
            x = centres[labels] + 0.3 * torch.randn(64, D, generator=generator)
            if sampling is None:
                loss = layer.loss(x, labels, loss="cross_entropy")
            else:
                given = {} if sampling == "in_batch" else {"num_negatives": 16}
                given |= {} if sampling == "uniform" else {"frequencies": torch.ones(L)}
                loss = layer.loss(x, labels, loss="sampled_softmax", sampling=sampling, **given)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            results.append(float((layer(centres).argmax(1) == torch.arange(L)).float().mean()))
    assert min(results) > 0.9, results


BAD = [
    ({"sampling": "random"}, ValueError, "sampling must be .* got 'random'"),
    ({}, ValueError, "'uniform' needs num_negatives"),
    ({"num_negatives": 0}, ValueError, "num_negatives must be at least 1, got 0"),
    ({"num_negatives": 2.5}, TypeError, "num_negatives must be an int, got 2.5"),
    ({"num_negatives": 4, "frequencies": torch.ones(L)}, ValueError, "frequencies have no effect"),
    ({"num_negatives": 4, "sampling": "popularity"}, ValueError, "'popularity' needs frequencies"),
    (
        {"sampling": "in_batch", "num_negatives": 4, "frequencies": torch.ones(L)},
        ValueError,
        "number of targets, got 4",
    ),
    ({"sampling": "in_batch", "frequencies": torch.ones(L - 1)}, ValueError, r"frequencies must be \[40\]"),
    ({"sampling": "in_batch", "frequencies": -torch.ones(L)}, ValueError, "not negative"),
    ({"sampling": "in_batch", "frequencies": torch.arange(L)}, ValueError, "label 0 has 0"),
    ({"num_negatives": 4, "reduction": "none"}, ValueError, "reduction must be"),
]


@pytest.mark.parametrize(("given", "error", "text"), BAD)
def test_bad_options_are_named(given, error, text):
    layer, x, targets = make()
    with pytest.raises(error, match=text):
        layer.loss(x, targets, loss="sampled_softmax", **given)


def test_heads_without_it_say_so():
    _, x, targets = make()
    fused = FixedFanInLinear(D, L, K)
    fused.fuse_optimizer(FusedSGD(0.1))
    heads = [
        fused,
        HeadTailLinear(D, L, K, num_head=4),
        SparseInputLinear(D, L, K),
        LabelShardedLinear(D, L, K, seed=0),
    ]
    for head in heads:
        inputs = x.to_sparse_csr() if isinstance(head, SparseInputLinear) else x
        with pytest.raises((ValueError, TypeError), match="sampled_softmax|num_negatives"):
            head.loss(inputs, targets, loss="sampled_softmax", num_negatives=4)
    with pytest.raises(ValueError, match=r"targets\[0\] is 40, outside \[0, 40\)"):
        make()[0].loss(x, targets + 37, loss="sampled_softmax", num_negatives=4)


@statistics
def test_no_logits_of_all_labels():
    """Forward and backward read the sample and the targets only: the gradient has as many rows."""
    many = 300_000
    layer = FixedFanInLinear(8, many, 2, seed=0)
    x = torch.randn(64, 8)
    loss = ops.fixed_fan_in_sampled_softmax(
        x, layer.weight, layer.indices, layer.bias, torch.arange(64), num_negatives=32, sparse_gradient=True
    )
    loss.backward()
    assert layer.weight.grad._nnz() == 32 + 64
    assert F.softplus(loss.detach()).isfinite()
