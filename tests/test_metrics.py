"""Metrics against hand-computed cases and an independent, loop-by-loop implementation."""

import math

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.metrics import Truth, hits, inverse_propensities, ranking_metrics


def csr(rows, num_labels):
    dense = np.zeros((len(rows), num_labels), np.float32)
    for i, row in enumerate(rows):
        dense[i, list(row)] = 1
    return sp.csr_matrix(dense)


def test_hand_computed_case():
    targets = csr([[0, 1], [2], []], 4)
    top = np.array([[1, 3, 0], [3, 2, 1], [0, 1, 2]])
    result = ranking_metrics(top, Truth(targets), ks=(1, 3))
    assert result["P@1"] == pytest.approx(100 / 3)
    assert result["P@3"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 3)
    assert result["R@1"] == pytest.approx(100 * (1 / 2 + 0) / 2)
    assert result["R@3"] == pytest.approx(100)
    ideal = 1 + 1 / math.log2(3)
    first, second = (1 + 0.5) / ideal, (1 / math.log2(3)) / 1
    assert result["nDCG@3"] == pytest.approx(100 * (first + second) / 2)
    assert result["coverage@1"] == pytest.approx(100 / 3)
    assert result["coverage@3"] == pytest.approx(100)


def test_propensities_by_hand():
    c = (math.log(100) - 1) * 2.5**0.55
    assert inverse_propensities(np.array([0, 9]), 100) == pytest.approx(
        [1 + c * 1.5**-0.55, 1 + c * math.exp(-0.55 * math.log(10.5))]
    )


def test_propensity_scored_precision_by_hand():
    truth = Truth(csr([[0, 1], [1]], 3), inverse_propensity=np.array([4.0, 2.0, 1.0]))
    result = ranking_metrics(np.array([[1, 2], [1, 0]]), truth, ks=(1, 2))
    assert result["PSP@1"] == pytest.approx(100 * (2 + 2) / (4 + 2))
    assert result["PSP@2"] == pytest.approx(100 * (2 + 2) / (6 + 2))


def independent(top, rows, counts, inv, unseen, ks):
    """The same definitions written as loops over rows."""
    out = {}
    for k in ks:
        p, r, n, ps, psn, best, bestn = [], [], [], 0.0, 0.0, 0.0, 0.0
        for predicted, true, count in zip(top, rows, counts, strict=True):
            hit = [j in true for j in predicted[:k]]
            p.append(sum(hit) / k)
            if count:
                r.append(sum(hit) / count)
                n.append(
                    sum(h / math.log2(i + 2) for i, h in enumerate(hit))
                    / sum(1 / math.log2(i + 2) for i in range(min(k, count)))
                )
            ps += sum(inv[j] for j, h in zip(predicted, hit, strict=False) if h)
            psn += sum(inv[j] / math.log2(i + 2) for i, (j, h) in enumerate(zip(predicted, hit, strict=False)) if h)
            gains = sorted([inv[j] for j in true] + [unseen] * (count - len(true)), reverse=True)[:k]
            best += sum(gains)
            bestn += sum(g / math.log2(i + 2) for i, g in enumerate(gains))
        out |= {f"P@{k}": np.mean(p), f"R@{k}": np.mean(r), f"nDCG@{k}": np.mean(n)}
        out |= {f"PSP@{k}": ps / best, f"PSnDCG@{k}": psn / bestn}
    return {name: 100 * value for name, value in out.items()}


@pytest.mark.parametrize("seed", range(3))
def test_against_independent_implementation(seed):
    rng = np.random.default_rng(seed)
    num_rows, num_labels, k = 40, 30, 7
    rows = [set(rng.choice(num_labels, rng.integers(0, 9), replace=False).tolist()) for _ in range(num_rows)]
    counts = np.array([len(r) for r in rows]) + rng.integers(0, 3, num_rows)
    top = np.stack([rng.permutation(num_labels)[:k] for _ in range(num_rows)])
    truth = Truth.from_training(csr(rows, num_labels), counts, rng.integers(1, 50, num_labels), 200)
    result = ranking_metrics(top, truth, ks=(1, 3, 7))
    expected = independent(top, rows, counts, truth.inverse_propensity, truth.unseen_inverse_propensity, (1, 3, 7))
    assert {name: result[name] for name in expected} == pytest.approx(expected)


def test_bins_add_up_to_precision():
    rng = np.random.default_rng(0)
    rows = [rng.choice(20, 4, replace=False) for _ in range(30)]
    top = np.stack([rng.permutation(20)[:5] for _ in range(30)])
    frequencies = rng.integers(1, 80, 20)
    result = ranking_metrics(top, Truth(csr(rows, 20), frequencies=frequencies))
    assert sum(b["P@5 part"] for b in result["bins"]) == pytest.approx(result["P@5"])
    assert sum(b["labels"] for b in result["bins"]) == 20
    assert sum(b["positives"] for b in result["bins"]) == 120


def test_missing_predictions_are_no_hits():
    assert hits(np.array([[-1, 0]]), csr([[0]], 2)).tolist() == [[False, True]]
    assert not hits(np.array([[-1, 0]]), csr([[]], 2)).any()


@pytest.mark.parametrize(
    ("top", "ks", "message"),
    [
        (np.zeros((2, 3), int), (1,), r"top must be \[1, k\]"),
        (np.full((1, 3), 9), (1,), r"labels in \[0, 2\)"),
        (np.zeros((1, 3), int), (5,), r"ks must lie in \[1, 3\]"),
    ],
)
def test_bad_arguments(top, ks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(top, Truth(csr([[0]], 2)), ks=ks)
