"""init_indices: distinct, in range, every subset equally likely, the same bits everywhere."""

import itertools
from collections import Counter

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.ops._arguments import validate_indices
from tests.conftest import INTERPRETING

SIZES = [(37, 5, 3), (20, 9, 9), (1, 1, 1), (11, 300, 16), (3, 70_000, 5)]


def chi_square(observed: list[int], expected: float) -> float:
    return sum((o - expected) ** 2 / expected for o in observed)


@pytest.mark.parametrize(("R", "D", "K"), SIZES)
@pytest.mark.parametrize("seed", [0, -3, 1 << 63])
def test_rows_are_distinct_and_in_range(device, R, D, K, seed):
    indices = ops.init_indices(R, D, K, seed=seed, device=device)
    assert indices.shape == (R, K) and indices.device.type == device.type
    assert indices.dtype == (torch.uint16 if D <= 65_536 else torch.int32)
    validate_indices(indices, D)
    assert torch.equal(indices, ops.init_indices(R, D, K, seed=seed, device=device))


def test_known_bits(device):
    """Pinned, so that every backend and every version draws the same connections for a seed."""
    drawn = ops.init_indices(3, 1000, 6, seed=123, device=device)
    assert drawn.tolist() == KNOWN


KNOWN = [[66, 400, 746, 190, 500, 873], [636, 487, 205, 865, 467, 327], [171, 249, 696, 968, 308, 435]]


@pytest.mark.parametrize(("D", "K"), [(5, 2), (5, 3), (6, 1), (4, 3)])
def test_every_subset_is_equally_likely(device, D, K):
    R = 600 if INTERPRETING else 30_000
    rows = ops.init_indices(R, D, K, seed=7, device=device).tolist()
    subsets = list(itertools.combinations(range(D), K))
    counts = Counter(tuple(sorted(row)) for row in rows)
    assert chi_square([counts[s] for s in subsets], R / len(subsets)) < 30  # at most 9 degrees of freedom: p > 0.0004


def test_marginals_are_uniform(device):
    R, D, K = (200, 40, 8) if INTERPRETING else (20_000, 200, 8)
    drawn = ops.init_indices(R, D, K, seed=11, device=device).flatten().long()
    statistic = chi_square(torch.bincount(drawn.cpu(), minlength=D).tolist(), R * K / D)
    assert statistic < D + 4 * (2 * D) ** 0.5


def test_seeds_and_rows_differ(device):
    first, second = (ops.init_indices(8, 300, 8, seed=s, device=device).long() for s in (1, 2))
    assert not torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) == 8


@pytest.mark.skipif(INTERPRETING, reason="the interpreter has no threads")
def test_thread_count_does_not_matter():
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            drawn.append(ops.init_indices(1001, 64, 7, seed=5, device="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((4, 8, 9, 0), ValueError, "fan_in must not exceed in_features, got fan_in=9, in_features=8"),
        ((0, 8, 2, 0), ValueError, "num_rows must be at least 1, got 0"),
        ((4, 8, 2, 0.5), TypeError, "seed must be an int, got 0.5"),
    ],
)
def test_bad_arguments_raise(arguments, error, message):
    R, D, K, seed = arguments
    with pytest.raises(error, match=message):
        ops.init_indices(R, D, K, seed=seed, device="cpu")


def test_first_row_draws_the_rows_of_a_larger_draw(device):
    whole = ops.init_indices(11, 300, 6, seed=5, device=device)
    part = ops.init_indices(4, 300, 6, seed=5, device=device, first_row=7)
    assert torch.equal(part, whole[7:])
    with pytest.raises(ValueError, match="first_row"):
        ops.init_indices(4, 300, 6, seed=5, device=device, first_row=-1)
