"""Metrics against hand-computed cases and an independent, loop-by-loop implementation."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc.metrics import Truth, hits, inverse_propensities, ranking_metrics, threshold_metrics


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
    ideal = 1 + 1 / math.log2(3)
    first, second = (1 + 0.5) / ideal, (1 / math.log2(3)) / 1
    skipping = ranking_metrics(top, Truth(targets), ks=(1, 3), empty_rows="skip")
    for values, judged in ((result, 3), (skipping, 2)):
        assert values["R@1"] == pytest.approx(100 * (1 / 2 + 0) / judged)
        assert values["R@3"] == pytest.approx(100 * 2 / judged)
        assert values["nDCG@3"] == pytest.approx(100 * (first + second) / judged)
        assert values["F1@3"] == pytest.approx(100 * (2 * 2 / 5 + 2 * 1 / 4) / judged)
    assert {k: v for k, v in result.items() if k[0] == "P"} == {k: v for k, v in skipping.items() if k[0] == "P"}
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
            if not count:
                r.append(0)
                n.append(0)
            if count:
                r.append(sum(hit) / count)
                n.append(
                    sum(h / math.log2(i + 2) for i, h in enumerate(hit))
                    / sum(1 / math.log2(i + 2) for i in range(min(k, count)))
                )
            ps += sum(inv[j] for j, h in zip(predicted, hit, strict=False) if h)
            ideal = sum(1 / math.log2(i + 2) for i in range(min(k, count))) or 1
            psn += (
                sum(inv[j] / math.log2(i + 2) for i, (j, h) in enumerate(zip(predicted, hit, strict=False)) if h)
                / ideal
            )
            gains = sorted([inv[j] for j in true] + [unseen] * (count - len(true)), reverse=True)[:k]
            best += sum(gains)
            bestn += sum(g / math.log2(i + 2) for i, g in enumerate(gains)) / ideal
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
        (np.arange(3)[None] - 1, (5,), r"ks must lie in \[1, 3\]"),
        (np.array([[1, 0, 1]]), (1,), r"top names label 1 twice in row 0"),
        (np.array([[1.0, 0.0]]), (1,), r"top must hold labels as integers, got float64"),
    ],
)
def test_bad_arguments(top, ks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(top, Truth(csr([[0]], 2)), ks=ks)


def test_bad_choices():
    top, truth = np.array([[0, 1]]), Truth(csr([[0]], 2))
    with pytest.raises(ValueError, match="empty_rows must be 'zero' or 'skip', got 'drop'"):
        ranking_metrics(top, truth, ks=(1,), empty_rows="drop")
    with pytest.raises(ValueError, match=r"scores must be \[1, 2\] as top is"):
        threshold_metrics(top, np.zeros((1, 3)), truth, 0.5)
    with pytest.raises(ValueError, match="threshold must be a number"):
        threshold_metrics(top, np.zeros((1, 2)), truth, math.nan)
    with pytest.raises(ValueError, match="counts says 0 labels for row 0, targets hold 1"):
        Truth(csr([[0]], 2), counts=np.array([0]))
    with pytest.raises(ValueError, match=r"frequencies must be \[2\]"):
        Truth(csr([[0]], 2), frequencies=np.ones(3))


def test_targets_of_every_kind():
    dense = np.array([[1, 0, 2], [0, 0, 1]], np.float32)
    top = np.array([[2, 1], [0, 2]])
    stored_zero = sp.csr_matrix((np.array([1, 2, 0, 1.0]), np.array([0, 2, 1, 2]), np.array([0, 2, 4])), shape=(2, 3))
    expected = ranking_metrics(top, Truth(sp.csr_matrix(dense)), ks=(1, 2))
    tensor = torch.from_numpy(dense)
    kinds = [dense, dense > 0, sp.csc_matrix(dense), sp.coo_array(dense), stored_zero, tensor, tensor.to_sparse_coo()]
    for targets in [*kinds, tensor.to_sparse_csr()]:
        assert ranking_metrics(torch.from_numpy(top), Truth(targets), ks=(1, 2)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_values_are_those_of_napkinxc(seed):
    """Rows without labels, with one and with more than k; predictions that repeat nothing."""
    theirs = pytest.importorskip("napkinxc.metrics")
    rng = np.random.default_rng(seed)
    num_rows, num_labels, k = 300, 60, 5
    rows = [rng.choice(num_labels, rng.choice([0, 0, 1, 2, 5, 12]), replace=False).tolist() for _ in range(num_rows)]
    rows[0] = [num_labels - 1]  # it takes the largest label that it meets for the last one
    top = np.stack([rng.permutation(num_labels)[:k] for _ in range(num_rows)])
    inverse = 1 + rng.random(num_labels) * 9
    result = ranking_metrics(top, Truth(csr(rows, num_labels), inverse_propensity=inverse), ks=range(1, k + 1))
    ranked = top.tolist()
    expected = {
        "P": theirs.precision_at_k(rows, ranked, k=k),
        "R": theirs.recall_at_k(rows, ranked, k=k),
        "nDCG": theirs.ndcg_at_k(rows, ranked, k=k),
        "PSP": theirs.psprecision_at_k(rows, ranked, inverse, k=k),
        "PSnDCG": theirs.psndcg_at_k(rows, ranked, inverse, k=k),
    }
    for name, values in expected.items():
        assert [result[f"{name}@{i}"] for i in range(1, k + 1)] == pytest.approx(100 * values, abs=1e-6), name
    for i in range(1, k + 1):
        f1 = theirs.samples_f1_measure(rows, [row[:i] for row in ranked])
        assert result[f"F1@{i}"] == pytest.approx(100 * f1, abs=1e-6)
    scores = rng.random(top.shape)
    chosen = [row[keep].tolist() for row, keep in zip(top, scores >= 0.4, strict=True)]
    values = threshold_metrics(top, scores, Truth(csr(rows, num_labels)), 0.4)
    assert values["micro F1"] == pytest.approx(100 * theirs.micro_f1_measure(rows, chosen), abs=1e-6)
    assert values["macro F1"] == pytest.approx(100 * theirs.macro_f1_measure(rows, chosen), abs=1e-6)


def test_inverse_propensities_are_those_of_napkinxc():
    theirs = pytest.importorskip("napkinxc.metrics")
    targets = sp.random(200, 40, 0.1, format="csr", random_state=3, data_rvs=np.ones)
    expected = theirs.Jain_et_al_inverse_propensity(targets, A=0.55, B=1.5)
    frequencies = np.diff(targets.tocsc().indptr)
    np.testing.assert_allclose(inverse_propensities(frequencies, 200), expected, rtol=1e-6)
