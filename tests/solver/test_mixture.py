import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("numba")
from sparse_xmc.solver.calibrate import Calibration
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.mixture import Levels, Uniform, best_mixture, merged, pairs

D, L, N = 30, 12, 400


def head(rng, labels, fan_in):
    indices = np.stack([rng.choice(D, fan_in, replace=False) for _ in range(labels)]).astype(np.int32)
    weight = rng.standard_normal(indices.shape).astype(np.float32)
    return TermHead([Block(np.arange(labels), indices, weight)], rng.standard_normal(labels).astype(np.float32))


@pytest.fixture
def parts():
    rng = np.random.default_rng(5)
    x = sp.csr_matrix(rng.random((N, D)) * (rng.random((N, D)) < 0.4), dtype=np.float32)
    svm = head(rng, L, 6)
    centroid = TermHead([Block(b.labels, b.indices, abs(b.weight)) for b in svm.blocks], np.zeros(L, np.float32))
    within = TermHead([Block(b.labels, b.indices, -b.weight) for b in svm.blocks], svm.bias + 1)
    levels = Levels([(head(rng, 4, 8), rng.integers(0, 4, L).astype(np.int32))], within)
    frequencies = rng.integers(1, 200, L)
    targets = sp.csr_matrix((rng.random((N, L)) < 0.2).astype(np.float32))
    return x, svm, centroid, levels, frequencies, targets


def scores(x, merged_head):
    values, labels = merged_head.invert(D).topk(x, L)
    return np.take_along_axis(values, np.argsort(labels, axis=1), axis=1)


@pytest.mark.parametrize("with_levels", [False, True])
def test_between_two_mixtures_the_scores_lie_between_theirs(parts, with_levels):
    x, svm, centroid, levels, frequencies, _ = parts
    rng, knots = np.random.default_rng(6), np.array([0.0, 2.0, 4.0, 8.0])
    kinds = [rng.random(4) + 0.1 for _ in range(5 if with_levels else 3)]
    calibration, uniform = Calibration(knots, *kinds), Uniform(share=2.0, scale=0.7, shift=-0.3)
    own = levels if with_levels else None
    between = calibration.towards(0.7, 1.4, -0.3, 0.25)
    expected = 0.25 * scores(x, merged(svm, centroid, calibration, frequencies, own))
    expected += 0.75 * scores(x, merged(svm, centroid, uniform, frequencies))
    np.testing.assert_allclose(scores(x, merged(svm, centroid, between, frequencies, own)), expected, atol=2e-5)


@pytest.mark.parametrize("tail", [0.0, 0.5])
@pytest.mark.parametrize("with_levels", [False, True])
def test_the_best_mixture_is_one_that_the_head_can_be_made_of(parts, with_levels, tail):
    x, svm, centroid, levels, frequencies, targets = parts
    own = levels if with_levels else None
    held = pairs(x, targets, svm, centroid, frequencies, N, (0.55, 1.5), own)
    mixture, value, name = best_mixture(held, tail)
    assert 0 < value < 100 and (not with_levels or name.startswith("calibrated"))
    known = held.labels >= 0
    expected = scores(x, merged(svm, centroid, mixture, frequencies, own))
    expected = np.take_along_axis(expected, np.maximum(held.labels, 0), axis=1)
    np.testing.assert_allclose(held.total(mixture)[known], expected[known], rtol=1e-4, atol=1e-4)


def test_what_is_between_is_taken_where_it_ranks_better(parts):
    """Labels drawn from scores half of which are weighed by frequency."""
    x, svm, centroid, _, frequencies, _ = parts
    z, c = x @ dense(svm).T + svm.bias, x @ dense(centroid).T
    by_frequency = np.where(frequencies > 30, 1.5, 0.2) * z
    drawn = 2 * (z + 2 * c) + 2 * by_frequency + np.random.default_rng(7).gumbel(size=z.shape)
    targets = sp.csr_matrix((drawn >= np.sort(drawn, axis=1)[:, -3:-2]).astype(np.float32))
    name = best_mixture(pairs(x, targets, svm, centroid, frequencies, N, (0.55, 1.5)), 0.0)[2]
    assert name.startswith("calibrated by label frequency") and "% with centroid x" in name


def dense(h):
    full = np.zeros((len(h.bias), D), np.float32)
    for block in h.blocks:
        full[block.labels[:, None], block.indices] = block.weight
    return full
