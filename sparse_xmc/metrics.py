"""Ranking metrics of extreme classification: P@k, nDCG@k, R@k, their propensity-scored forms, coverage, frequency bins.

All take the ranked predictions ``top [N, k]`` (labels in the model's order, -1 where there is none) and binary CSR
targets ``[N, L]``. A test label that the model does not know cannot be hit but still counts as a true label.

Sources: P@k and nDCG@k as in the Extreme Classification Repository; propensities from Jain, Prabhu and Varma, "Extreme
Multi-label Loss Functions", KDD 2016, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

DEFAULT_KS = (1, 3, 5)
DEFAULT_BINS = (1, 2, 5, 10, 50)


def inverse_propensities(label_counts: np.ndarray, num_rows: int, a: float = 0.55, b: float = 1.5) -> np.ndarray:
    """``1 / p_l = 1 + C (N_l + b)^-a`` with ``C = (ln N - 1) (b + 1)^a``: Jain et al. 2016, equation 2.

    Args:
        label_counts: ``N_l``, training rows of each label ``[L]``.
        num_rows: ``N``, training rows; at least 3 so that C is positive.
        a, b: 0.55 and 1.5 by default; 0.5 and 0.4 for Wikipedia sets, 0.6 and 2.6 for Amazon sets.
    """
    if num_rows < 3:
        raise ValueError(f"num_rows must be at least 3, got {num_rows}")
    c = (np.log(num_rows) - 1) * (b + 1) ** a
    return 1 + c * (np.asarray(label_counts, dtype=np.float64) + b) ** -a


@dataclass
class Truth:
    """What predictions are scored against.

    Args:
        targets: binary CSR ``[N, L]`` of the labels that the model knows.
        counts: true labels of each row ``[N]``, unknown ones included; None: all labels are known.
        inverse_propensity: ``[L]``; None leaves the propensity-scored metrics out.
        unseen_inverse_propensity: the same of a label without training rows.
        frequencies: training rows of each label ``[L]``; None leaves the bins out.
    """

    targets: sp.csr_matrix
    counts: np.ndarray | None = None
    inverse_propensity: np.ndarray | None = None
    unseen_inverse_propensity: float = 0.0
    frequencies: np.ndarray | None = None

    @classmethod
    def from_training(
        cls,
        targets: sp.csr_matrix,
        counts: np.ndarray,
        frequencies: np.ndarray,
        num_train: int,
        a: float = 0.55,
        b: float = 1.5,
    ) -> Truth:
        """With propensities and bins from the label frequencies of the training split (and of nothing else)."""
        extended = inverse_propensities(np.append(frequencies, 0), max(num_train, 3), a, b)
        return cls(targets, counts, extended[:-1], float(extended[-1]), frequencies)


def hits(top: np.ndarray, targets: sp.csr_matrix) -> np.ndarray:
    """Whether each prediction is a true label, bool ``[N, k]``."""
    num_rows, num_labels = targets.shape
    if top.ndim != 2 or top.shape[0] != num_rows:
        raise ValueError(f"top must be [{num_rows}, k] for targets {list(targets.shape)}, got {list(top.shape)}")
    if top.size and (top.max() >= num_labels or top.min() < -1):
        raise ValueError(f"top must hold labels in [0, {num_labels}) or -1, got [{top.min()}, {top.max()}]")
    if not targets.has_sorted_indices:
        targets = targets.sorted_indices()
    rows = np.repeat(np.arange(num_rows, dtype=np.int64), np.diff(targets.indptr))
    keys = rows * num_labels + targets.indices
    wanted = np.arange(num_rows, dtype=np.int64)[:, None] * num_labels + top
    if not len(keys):
        return np.zeros(top.shape, dtype=bool)
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return (keys[position] == wanted) & (top >= 0)


def _best_gains(truth: Truth, counts: np.ndarray, k: int, discount: np.ndarray) -> np.ndarray:
    """Largest reachable ``sum_j gain_j * discount_j`` over k propensity-weighted labels of each row ``[N]``."""
    targets = truth.targets
    assert truth.inverse_propensity is not None
    num_rows = targets.shape[0]
    known = np.diff(targets.indptr)
    rows = np.concatenate([np.repeat(np.arange(num_rows), known), np.repeat(np.arange(num_rows), counts - known)])
    unseen = np.full(int((counts - known).sum()), truth.unseen_inverse_propensity)
    gains = np.concatenate([truth.inverse_propensity[targets.indices], unseen])
    order = np.lexsort((-gains, rows))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(order)) - starts[rows[order]]
    used = rank < k
    order, rank = order[used], rank[used]
    return np.bincount(rows[order], weights=gains[order] * discount[rank], minlength=num_rows)


def _bins(hit: np.ndarray, top: np.ndarray, truth: Truth, k: int, edges: Sequence[int]) -> list[dict[str, Any]]:
    frequencies = truth.frequencies
    assert frequencies is not None
    columns = truth.targets.indices
    found = top[:, :k][hit[:, :k]]
    result = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = (frequencies >= low) & (frequencies < (np.inf if high is None else high))
        positives, correct = int(inside[columns].sum()), int(inside[found].sum())
        result.append(
            {
                "training rows": f"{low}-{high - 1}" if high is not None else f"{low}-",
                "labels": int(inside.sum()),
                "positives": positives,
                f"R@{k}": 100 * correct / positives if positives else None,
                f"P@{k} part": 100 * correct / (k * len(top)) if len(top) else None,
            }
        )
    return result


def ranking_metrics(
    top: np.ndarray, truth: Truth, ks: Sequence[int] = DEFAULT_KS, bins: Sequence[int] = DEFAULT_BINS
) -> dict[str, Any]:
    """All metrics in percent.

    ``P@k`` averages over all rows. ``R@k`` and ``nDCG@k`` average over the rows that have a true label. ``PSP@k`` and
    ``PSnDCG@k`` are the sum of gains over all rows divided by the largest sum reachable. ``coverage@k`` is the share
    of the labels occurring in ``targets`` that are hit at least once. ``bins`` groups labels by their training rows:
    ``R@k`` within the bin (over its positives) and its share of ``P@k``, at the largest k.

    Raises:
        ValueError: shapes differ, a label is out of range, or k exceeds the width of ``top``.
    """
    if not ks or max(ks) > top.shape[1] or min(ks) < 1:
        raise ValueError(f"ks must lie in [1, {top.shape[1]}], the width of top, got {list(ks)}")
    hit = hits(top, truth.targets)
    num_rows = len(top)
    counts = np.diff(truth.targets.indptr) if truth.counts is None else np.asarray(truth.counts)
    labelled = counts > 0
    discounts = 1 / np.log2(np.arange(2, max(ks) + 2))
    result: dict[str, Any] = {}

    def mean(values: np.ndarray) -> float:
        return 100 * float(values.mean()) if len(values) else 0.0

    for k in ks:
        result[f"P@{k}"] = mean(hit[:, :k].sum(1) / k)
    for k in ks:
        ideal = np.concatenate([[0.0], np.cumsum(discounts[:k])])[np.minimum(counts, k)]
        result[f"nDCG@{k}"] = mean((hit[:, :k] @ discounts[:k])[labelled] / ideal[labelled])
    for k in ks:
        result[f"R@{k}"] = mean(hit[:, :k].sum(1)[labelled] / counts[labelled])
    if truth.inverse_propensity is not None:
        gains = np.where(hit, truth.inverse_propensity[np.maximum(top, 0)], 0.0)
        for name, weights in (("PSP", np.ones(max(ks))), ("PSnDCG", discounts)):
            for k in ks:
                best = _best_gains(truth, counts, k, weights).sum()
                result[f"{name}@{k}"] = 100 * float((gains[:, :k] @ weights[:k]).sum() / best) if best else 0.0
    occurring = len(np.unique(truth.targets.indices))
    for k in ks:
        covered = len(np.unique(top[:, :k][hit[:, :k]]))
        result[f"coverage@{k}"] = 100 * covered / occurring if occurring else 0.0
    if truth.frequencies is not None:
        result["bins"] = _bins(hit, top, truth, max(ks), bins)
    result["rows"] = num_rows
    return result


def calibration_error(scores: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in percent: how far scores in ``[0, 1]`` are from the share of hits among them.

    Args:
        scores, hit: of the k best labels of each row ``[N, k]``; places without a label hold NaN.
        bins: of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    there = ~np.isnan(scores)
    scores, hit = scores[there].astype(np.float64), hit[there].astype(np.float64)
    if not len(scores):
        return 0.0
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(f"scores must lie in [0, 1], got [{scores.min()}, {scores.max()}]")
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, weights=hit - scores, minlength=bins)
    return 100 * float(np.abs(gaps).sum() / len(scores))
