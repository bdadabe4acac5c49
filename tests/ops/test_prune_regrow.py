"""prune_regrow_: exact counts, distinct features, untouched survivors, state that follows, the same bits everywhere."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_xmc import ops
from sparse_xmc.ops import reference
from sparse_xmc.ops._arguments import num_index_rows, validate_indices
from tests.conftest import INTERPRETING

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

CHECKS = settings(
    max_examples=6 if INTERPRETING else 40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KINDS = ("row", "global", "threshold")


@st.composite
def layers(draw):
    D = draw(st.sampled_from([1, 2, 5, 9, 17, 66_000]))
    K = draw(st.sampled_from(sorted({1, D - 1, D, D // 2} - {0}))) if D < 100 else draw(st.integers(1, 6))
    return dict(
        L=draw(st.integers(1, 9 if INTERPRETING else 40)),
        D=D,
        K=K,
        G=draw(st.sampled_from([1, 3, 4])),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])),
        seed=draw(st.integers(-5, 2**40)),
        coarse=draw(st.booleans()),
    )


def make(L, D, K, G, dtype, seed, coarse, device) -> tuple[Tensor, Tensor]:
    """Weights with many ties if ``coarse``, and their connections."""
    generator = torch.Generator().manual_seed(abs(seed))
    weight = torch.randn(L, K, generator=generator)
    weight = (weight * 2).round() / 4 if coarse else weight
    indices = ops.init_indices(num_index_rows(L, G), D, K, seed=seed, device=device)
    return weight.to(dtype).to(device), indices


def scores(weight: Tensor, G: int, how: str) -> Tensor:
    """Scores by row, summed in the order of labels as documented."""
    magnitude = weight.cpu().float().abs()
    rows = []
    for part in magnitude.split(G):
        total = part[0].clone()
        for label in part[1:]:
            total = torch.maximum(total, label) if how == "max" else total + label
        rows.append(total if how == "max" else total * (torch.tensor(1.0) / len(part)))
    return torch.stack(rows)


def expected_slots(score: Tensor, kind: str, amount: float, D: int) -> Tensor:
    """Which slots have to change: the lowest of each row or of all, the first of equal ones, within what is free."""
    R, K = score.shape
    wanted = torch.zeros(R, K, dtype=torch.bool)
    if kind == "row":
        order = score.sort(dim=1, stable=True).indices[:, : math.floor(amount * K)]
        wanted.scatter_(1, order, True)
    elif kind == "global":
        order = score.flatten().sort(stable=True).indices[: math.floor(amount * (R * K))]
        wanted.view(-1)[order] = True
    else:
        wanted = score.double() < amount
    for row in range(R):
        chosen = [k for k in score[row].sort(stable=True).indices.tolist() if wanted[row, k]]
        wanted[row] = False
        wanted[row, chosen[: D - K]] = True
    return wanted


@CHECKS
@given(
    layer=layers(),
    kind=st.sampled_from(KINDS),
    amount=st.sampled_from([0.0, 0.2, 0.5, 0.77, 1.0]),
    init=st.sampled_from(["zero", "uniform"]),
    how=st.sampled_from(["mean", "max"]),
)
def test_rewiring(device, layer, kind, amount, init, how):
    """Everything that is promised of one rewiring."""
    L, D, K, G = (layer[name] for name in "LDKG")
    weight, indices = make(**layer, device=device)
    generator = torch.Generator().manual_seed(abs(layer["seed"]) + 1)
    momentum = torch.randn(L, K, generator=generator).to(weight.dtype).to(device)
    square = (torch.rand(L, K, generator=generator) + 1).to(device)
    before = [t.clone() for t in (weight, indices, momentum, square)]
    choice = {"threshold": amount} if kind == "threshold" else {"fraction": amount, "scope": kind}
    count = ops.prune_regrow_(
        weight, indices, D, seed=layer["seed"], state=[momentum], mean_state=[square], init=init, group_size=G,
        group_score=how, **choice,
    )  # fmt: skip
    validate_indices(indices, D)
    defined = [t.clone() for t in before]
    number = reference.prune_regrow_(
        defined[0], defined[1], D, seed=layer["seed"], state=[defined[2]], mean_state=[defined[3]], init=init,
        group_size=G, group_score=how, **choice,
    )  # fmt: skip
    assert int(number) == int(count)
    for got, expected in zip((weight, indices, momentum), defined, strict=False):
        assert torch.equal(got, expected)
    torch.testing.assert_close(square, defined[3], rtol=1e-5, atol=0)
    assert count.shape == () and count.dtype == torch.int64 and count.device == weight.device
    changed = expected_slots(scores(before[0], G, how), kind, amount, D)
    old, new = before[1].cpu().long(), indices.cpu().long()
    assert int(count) == int(changed.sum())
    assert torch.equal(old != new, changed)
    for row in range(len(new)):  # nothing that the row held comes straight back
        assert not set(new[row][changed[row]].tolist()) & set(old[row].tolist())
    slots = changed.repeat_interleave(G, 0)[:L].to(device)
    for now, then in zip((weight, momentum, square), (before[0], before[2], before[3]), strict=True):
        assert torch.equal(now[~slots], then[~slots])
    assert not momentum[slots].any()
    means = before[3].mean(1, keepdim=True).expand(L, K)
    torch.testing.assert_close(square[slots], means[slots], rtol=1e-5, atol=0)
    fresh = weight[slots].float()
    if init == "zero":
        assert not fresh.any()
    else:
        assert bool((fresh.abs() <= 1.01 / K**0.5).all())


@pytest.mark.parametrize("kind", KINDS)
def test_known_bits(device, kind):
    """Pinned: every backend gives these numbers."""
    weight = torch.tensor([[3.0, -1.0, 2.0], [0.5, 4.0, -0.25], [1.0, 1.0, 1.0]], device=device)
    indices = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]], device=device).to(torch.uint16)
    choice = {"threshold": 1.5} if kind == "threshold" else {"fraction": 0.45, "scope": kind}
    ops.prune_regrow_(weight, indices, 20, seed=5, init="uniform", **choice)
    assert (indices.tolist(), weight.tolist()) == KNOWN[kind]


KNOWN = {
    "row": (
        [[0, 4, 2], [3, 4, 12], [17, 7, 8]],
        [[3.0, 0.5547599196434021, 2.0], [0.5, 4.0, 0.2651357650756836], [-0.1271192729473114, 1.0, 1.0]],
    ),
    "global": (
        [[0, 4, 2], [12, 4, 8], [17, 7, 8]],
        [
            [3.0, 0.5547599196434021, 2.0],
            [0.2350866198539734, 4.0, 0.2651357650756836],
            [-0.1271192729473114, 1.0, 1.0],
        ],
    ),
    "threshold": (
        [[0, 4, 2], [12, 4, 8], [5, 18, 16]],
        [
            [3.0, 0.5547599196434021, 2.0],
            [0.2350866198539734, 4.0, 0.2651357650756836],
            [-0.1271192729473114, -0.260603666305542, -0.15564753115177155],
        ],
    ),
}


@pytest.mark.parametrize("D", [6, 9])
def test_regrown_features_are_uniform(device, D):
    """Chi-square of the regrown features and of their pairs: two slots, all free features and pairs equally likely."""
    R, K = (600 if INTERPRETING else 20_000), 4
    weight = torch.ones(R, K, device=device)
    weight[:, 1:3] = 0.1
    indices = torch.tensor([1, 4, 0, 3], device=device).repeat(R, 1).to(torch.uint16)
    ops.prune_regrow_(weight, indices, D, fraction=0.5, seed=1)
    pairs = indices.cpu().long()[:, 1:3].sort(dim=1).values
    free = [f for f in range(D) if f not in (0, 1, 3, 4)]
    combinations = [(a, b) for i, a in enumerate(free) for b in free[i + 1 :]]
    counts = torch.tensor([int(((pairs[:, 0] == a) & (pairs[:, 1] == b)).sum()) for a, b in combinations])
    assert counts.sum() == R
    expected = R / len(combinations)
    assert float(((counts - expected) ** 2 / expected).sum()) < 30  # at most 9 degrees of freedom: p > 0.0004


def test_a_sequence_of_rewirings_keeps_rows_distinct(device):
    weight, indices = make(7, 12, 8, 1, torch.float32, 3, False, device)
    for seed in range(4 if INTERPRETING else 30):
        ops.prune_regrow_(weight, indices, 12, fraction=0.4, seed=seed, init="uniform")
        validate_indices(indices, 12)


def test_parts_of_a_layer_rewire_as_the_whole(device):
    weight, indices = make(8, 15, 4, 2, torch.float32, 3, False, device)
    parts = [(weight[:4].clone(), indices[:2].clone(), 0), (weight[4:].clone(), indices[2:].clone(), 2)]
    ops.prune_regrow_(weight, indices, 15, fraction=0.5, seed=9, group_size=2, init="uniform")
    for w, i, first_row in parts:
        ops.prune_regrow_(w, i, 15, fraction=0.5, seed=9, group_size=2, init="uniform", first_row=first_row)
    assert torch.equal(torch.cat([w for w, _, _ in parts]), weight)
    assert torch.equal(torch.cat([i for _, i, _ in parts]), indices)


@pytest.mark.parametrize("G", [1, 3])
@pytest.mark.parametrize("source", ["dy", "targets"])
def test_gradient_regrow_takes_the_largest_gradients(device, G, source):
    """With every free feature a candidate, new connections are those of the largest dense gradient."""
    L, D, K, B = 7, 11, 4, 8
    if source == "targets" and G > 1 and INTERPRETING:
        pytest.skip("covered without a group and on real backends")
    weight, indices = make(L, D, K, G, torch.float32, 0, False, device)
    old = indices.cpu().long().clone()
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    y = (torch.rand(B, L, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    dense = torch.zeros(L, D).scatter_(1, old.repeat_interleave(G, 0)[:L], weight.cpu())
    dy = torch.sigmoid(x @ dense.T) - y
    batch = (
        ops.RegrowBatch(x.to(device), dy=dy.to(device))
        if source == "dy"
        else ops.RegrowBatch(x.to(device), targets=y.to_sparse_csr().to(device))
    )
    gradient = torch.stack([part.abs().sum(0) for part in (dy.T @ x).split(G)]).scatter(1, old, -1.0)
    count = ops.prune_regrow_(
        weight, indices, D, fraction=0.5, seed=1, regrow="gradient", batch=batch, candidates=D, group_size=G
    )
    assert int(count) == 2 * len(old)
    new = indices.cpu().long()
    for row in range(len(old)):
        assert set(new[row][new[row] != old[row]].tolist()) == set(gradient[row].topk(2).indices.tolist())


def test_informed_regrow_takes_the_largest_contrasts(device):
    L, D, K, B = 6, 10, 4, 9
    weight, indices = make(L, D, K, 1, torch.float32, 0, False, device)
    old = indices.cpu().long().clone()
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
    y = (torch.rand(B, L, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    y[:, 2] = 0
    batch = ops.RegrowBatch(x.to(device), targets=y.to_sparse_csr().to(device))
    ops.prune_regrow_(weight, indices, D, fraction=0.5, seed=1, regrow="informed", batch=batch)
    validate_indices(indices, D)
    contrast = ((y.T @ x) / y.sum(0)[:, None].clamp(min=1) - x.mean(0)).abs().scatter(1, old, -1.0)
    new = indices.cpu().long()
    for label in range(L):
        added = set(new[label][new[label] != old[label]].tolist())
        assert len(added) == 2
        if label != 2:
            assert added == set(contrast[label].topk(2).indices.tolist())


def test_nan_weights_are_never_pruned_by_fraction(device):
    weight = torch.tensor([[float("nan"), 2.0, float("inf"), 1.0]], device=device)
    indices = torch.arange(4, device=device)[None].to(torch.uint16)
    ops.prune_regrow_(weight, indices, 9, fraction=0.5, seed=0)
    assert indices[0, 0] == 0 and indices[0, 2] == 2 and weight[0, 1] == 0 == weight[0, 3]


def test_saved_weights_are_protected(device):
    """A backward through weights that were rewired since the forward is an error, not a wrong gradient."""
    weight, indices = make(3, 9, 4, 1, torch.float32, 0, False, device)
    weight.requires_grad_()
    loss = weight.square().sum()
    ops.prune_regrow_(weight, indices, 9, fraction=0.5, seed=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(INTERPRETING, reason="the interpreter has no threads")
@pytest.mark.parametrize("kind", KINDS)
def test_thread_count_does_not_matter(kind):
    choice = {"threshold": 0.3} if kind == "threshold" else {"fraction": 0.3, "scope": kind}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            weight, indices = make(1003, 40, 8, 1, torch.float32, 4, True, "cpu")
            ops.prune_regrow_(weight, indices, 40, seed=2, init="uniform", **choice)
            results.append((weight, indices))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


_MEMORY = """
import resource, torch
from sparse_xmc import ops
torch.set_num_threads(2)
D, K = 64, 32
choice = dict({choice})

def layer(L):
    return *(torch.rand(L, K) for _ in range(3)), torch.arange(K, dtype=torch.int16).repeat(L, 1).view(torch.uint16)

def rewire(weight, momentum, square, indices):
    return ops.prune_regrow_(weight, indices, D, seed=0, state=[momentum], mean_state=[square], **choice)

rewire(*layer(1000))  # everything is compiled before the large tensors set the peak
tensors = layer(800_000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
assert int(rewire(*tensors)) > 800_000
print(peak() - before, tensors[0].nbytes)
"""


@pytest.mark.skipif(
    INTERPRETING or sys.platform != "linux", reason="measures resident memory of the CPU kernels on Linux"
)
@pytest.mark.parametrize("choice", ["fraction=0.25", "fraction=0.25, scope='global'"])
def test_rewiring_allocates_nothing_of_the_weights_size(choice):
    """800k labels with two state tensors: the process grows by less than 5 % of the 102 MB of weights; one byte per
    connection would be 25 %."""
    script = _MEMORY.format(choice=choice)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    growth, size = map(int, done.stdout.split())
    assert growth < 0.05 * size, f"grew by {growth / 1e6:.2f} MB; the weights take {size / 1e6:.1f} MB"


BAD = [
    (dict(), ValueError, "exactly one of fraction and threshold"),
    (dict(fraction=0.1, threshold=0.1), ValueError, "exactly one of fraction and threshold"),
    (dict(threshold=float("nan")), ValueError, "threshold must not be negative or NaN, got nan"),
    (dict(fraction=float("nan")), ValueError, "fraction must lie in"),
    (dict(fraction=1.5), ValueError, r"fraction must lie in \[0, 1\], got 1.5"),
    (dict(fraction=0.5, scope="label"), ValueError, "scope must be one of row, global, got 'label'"),
    (dict(fraction=0.5, regrow="best"), ValueError, "regrow must be one of"),
    (dict(fraction=0.5, regrow="gradient"), ValueError, "batch goes with regrow"),
    (dict(fraction=0.5, state=[torch.ones(2, 2)]), ValueError, r"state\[0\] must be a float tensor \[3, 4\]"),
    (dict(fraction=0.5, seed=0.5), TypeError, "seed must be an int, got 0.5"),
    (dict(fraction="0.1"), TypeError, "fraction must be a number, got '0.1'"),
    (dict(fraction=0.5, first_row=-5), ValueError, "first_row must be an int of at least 0, got -5"),
    (dict(fraction=0.5, in_features=9.0), TypeError, "in_features must be an int, got 9.0"),
    (dict(fraction=0.5, in_features=5), ValueError, r"indices must lie in \[0, 5\), got 0 to 8"),
    (
        dict(
            fraction=0.5,
            regrow="gradient",
            batch=ops.RegrowBatch(torch.ones(2, 9, dtype=torch.float64), torch.ones(2, 3)),
        ),
        TypeError,
        "batch.x and weight must both be float64 or neither",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_arguments_raise_and_change_nothing(options, error, message):
    weight, indices = make(3, 9, 4, 1, torch.float32, 0, False, "cpu")
    before = weight.clone(), indices.clone()
    with pytest.raises(error, match=message):
        ops.prune_regrow_(weight, indices, **{"in_features": 9, "seed": 0, **options})
    assert torch.equal(weight, before[0]) and torch.equal(indices, before[1])
