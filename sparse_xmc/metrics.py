"""Metrics of extreme classification: P@k, nDCG@k, R@k, F1@k, their propensity-scored forms, coverage, frequency bins, F1 at a
threshold, calibration.

All take the ranked predictions ``top [N, k]`` (labels in the model's order, each at most once in a row, -1 where there is
none) and binary targets ``[N, L]``. A test label that the model does not know cannot be hit but still counts as a true label.

Sources: P@k and nDCG@k as in the Extreme Classification Repository; propensities from Jain, Prabhu and Varma, "Extreme
Multi-label Loss Functions", KDD 2016, section 4. Values are those of pyxclib and napkinXC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.checked import canonical_csr

__all__ = ["Truth", "calibration_error", "hits", "inverse_propensities", "ranking_metrics", "threshold_metrics"]

DEFAULT_KS = (1, 3, 5)
DEFAULT_BINS = (1, 2, 5, 10, 50)


def inverse_propensities(label_counts: np.ndarray, num_rows: int, a: float = 0.55, b: float = 1.5) -> np.ndarray:
    """``1 / p_l = 1 + C (N_l + b)^-a`` with ``C = (ln N - 1) (b + 1)^a``: Jain et al. 2016, equation 2.

    Args:
        label_counts: ``N_l``, training rows of each label ``[L]``.
        num_rows: ``N``, training rows; at least 3 so that C is positive.
        a, b: 0.55 and 1.5 by default; 0.5 and 0.4 for Wikipedia sets, 0.6 and 2.6 for Amazon sets.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.metrics import inverse_propensities
        >>> inverse_propensities(np.array([1, 1000]), num_rows=10_000).round(1)
        array([9.2, 1.3])
    """
    if num_rows < 3:
        raise ValueError(f"num_rows must be at least 3, got {num_rows}")
    c = (np.log(num_rows) - 1) * (b + 1) ** a
    return 1 + c * (np.asarray(label_counts, dtype=np.float64) + b) ** -a


@dataclass
class Truth:
    """What predictions are scored against.

    Args:
        targets: ``[N, L]`` of the labels that the model knows: sparse of SciPy or torch, or dense. What is not zero is a
            label.
        counts: true labels of each row ``[N]``, unknown ones included; None: all labels are known.
        inverse_propensity: ``[L]``; None leaves the propensity-scored metrics out.
        unseen_inverse_propensity: the same of a label without training rows.
        frequencies: training rows of each label ``[L]``; None leaves the bins out.

    Raises:
        ValueError: an array has another length than ``targets`` has rows or labels, or a row has fewer true labels than
            ``targets`` says.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.metrics import Truth
        >>> truth = Truth(np.array([[1, 0, 1], [0, 1, 0]]))
        >>> truth.counts.tolist()  # labels of each row
        [2, 1]
        >>> truth = Truth.from_training(truth.targets, truth.counts, frequencies=np.array([9, 3, 1]), num_train=10)
        >>> bool((np.diff(truth.inverse_propensity) > 0).all())  # the rarer a label, the more it counts
        True
    """

    targets: sp.csr_matrix
    counts: np.ndarray | None = None
    inverse_propensity: np.ndarray | None = None
    unseen_inverse_propensity: float = 0.0
    frequencies: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.targets = _binary_csr(self.targets)
        num_rows, num_labels = self.targets.shape
        known = np.diff(self.targets.indptr)
        for name, length in (("counts", num_rows), ("inverse_propensity", num_labels), ("frequencies", num_labels)):
            array = getattr(self, name)
            if array is not None and np.shape(array) != (length,):
                raise ValueError(
                    f"{name} must be [{length}] for targets {[num_rows, num_labels]}, got {np.shape(array)}"
                )
        self.counts = known if self.counts is None else np.asarray(self.counts)
        if (self.counts < known).any():
            row = int(np.argmax(self.counts < known))
            raise ValueError(f"counts says {self.counts[row]} labels for row {row}, targets hold {known[row]}")

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


def _binary_csr(targets: Any) -> sp.csr_matrix:
    if hasattr(targets, "layout"):  # a torch tensor
        dense = targets.detach().cpu()
        targets = dense.to_dense().numpy() if str(dense.layout) == "torch.strided" else _from_torch(dense)
    if not sp.issparse(targets):
        targets = np.asarray(targets)
        if targets.ndim != 2 or targets.dtype.kind not in "biuf":
            raise ValueError(f"targets must be numbers [rows, labels], got {targets.dtype} {list(targets.shape)}")
        targets = sp.csr_matrix(targets != 0)
    targets = canonical_csr(targets, "targets")
    return sp.csr_matrix(
        (np.ones(targets.nnz, np.float32), targets.indices, targets.indptr), shape=targets.shape, copy=False
    )


def _from_torch(targets: Any) -> sp.coo_matrix:
    targets = targets.to_sparse_coo().coalesce()
    return sp.coo_matrix((targets.values().numpy(), targets.indices().numpy()), shape=tuple(targets.shape))


def _checked_top(top: Any, num_rows: int, num_labels: int) -> np.ndarray:
    """Ranked predictions as an int64 array whose rows name each label at most once."""
    top = np.asarray(top.detach().cpu() if hasattr(top, "detach") else top)
    if top.ndim != 2 or top.shape[0] != num_rows:
        raise ValueError(f"top must be [{num_rows}, k] for targets {[num_rows, num_labels]}, got {list(top.shape)}")
    if top.dtype.kind not in "iu":
        raise ValueError(f"top must hold labels as integers, got {top.dtype}")
    if top.size and (top.max() >= num_labels or top.min() < -1):
        raise ValueError(f"top must hold labels in [0, {num_labels}) or -1, got [{top.min()}, {top.max()}]")
    top = top.astype(np.int64, copy=False)
    ordered = np.sort(top, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        row = int(np.argmax(repeated.any(axis=1)))
        raise ValueError(f"top names label {ordered[row, 1:][repeated[row]][0]} twice in row {row}")
    return top


def hits(top: Any, targets: Any) -> np.ndarray:
    """Whether each prediction is a true label, bool ``[N, k]``.

    Raises:
        ValueError: shapes differ, a label is out of range or stands twice in a row.

    Examples:
        >>> from sparse_xmc.metrics import hits
        >>> hits([[0, 2]], [[1, 0, 0]])
        array([[ True, False]])
    """
    targets = _binary_csr(targets)
    num_rows, num_labels = targets.shape
    top = _checked_top(top, num_rows, num_labels)
    keys = np.repeat(np.arange(num_rows, dtype=np.int64), np.diff(targets.indptr)) * num_labels + targets.indices
    wanted = np.arange(num_rows, dtype=np.int64)[:, None] * num_labels + top
    if not len(keys):
        return np.zeros(top.shape, dtype=bool)
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return (keys[position] == wanted) & (top >= 0)


def _best_gains(truth: Truth, k: int, discount: np.ndarray) -> np.ndarray:
    """Largest reachable ``sum_j gain_j * discount_j`` over k propensity-weighted labels of each row ``[N]``."""
    targets, counts = truth.targets, truth.counts
    assert truth.inverse_propensity is not None and counts is not None
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
    top: Any,
    truth: Truth,
    ks: Sequence[int] = DEFAULT_KS,
    bins: Sequence[int] = DEFAULT_BINS,
    empty_rows: str = "zero",
) -> dict[str, Any]:
    """All metrics in percent.

    ``P@k`` averages over all rows, ``R@k``, ``nDCG@k`` and ``F1@k`` (of the k predictions and the true labels of a row) over
    the rows that ``empty_rows`` names. ``PSP@k`` and ``PSnDCG@k`` are the sum of gains over all rows divided by the largest
    sum reachable; of PSnDCG, each row's gains are first divided by the DCG of its ideal ranking without propensities.
    ``coverage@k`` is the share of the labels occurring in ``targets`` that are hit at least once. ``bins`` groups labels by
    their training rows: ``R@k`` within the bin (over its positives) and its share of ``P@k``, at the largest k.

    Args:
        empty_rows: rows without a true label count as "zero" in R, nDCG and F1 (as in napkinXC and pyxclib), or "skip".

    Raises:
        ValueError: shapes differ, a label is out of range or stands twice in a row, k exceeds the width of ``top``, or
            ``empty_rows`` is something else.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.metrics import Truth, ranking_metrics
        >>> metrics = ranking_metrics(np.array([[0, 1], [1, 0]]), Truth(np.array([[1, 0, 1], [0, 1, 0]])), ks=[1, 2])
        >>> metrics["P@1"], metrics["P@2"], metrics["R@2"]
        (100.0, 50.0, 75.0)
    """
    top = np.asarray(top.detach().cpu() if hasattr(top, "detach") else top)
    hit = hits(top, truth.targets)
    if not ks or max(ks) > top.shape[1] or min(ks) < 1:
        raise ValueError(f"ks must lie in [1, {top.shape[1]}], the width of top, got {list(ks)}")
    if empty_rows not in ("zero", "skip"):
        raise ValueError(f"empty_rows must be 'zero' or 'skip', got {empty_rows!r}")
    counts = truth.counts
    assert counts is not None
    judged = counts > 0 if empty_rows == "skip" else np.ones(len(top), dtype=bool)
    discounts = 1 / np.log2(np.arange(2, max(ks) + 2))
    ideals = np.concatenate([[0.0], np.cumsum(discounts)])
    result: dict[str, Any] = {}

    def mean(values: np.ndarray, divisor: Any = 1.0) -> float:
        ratios = np.divide(values, divisor, out=np.zeros(len(values)), where=np.asarray(divisor) > 0)
        return 100 * float(ratios.mean()) if len(ratios) else 0.0

    for k in ks:
        result[f"P@{k}"] = mean(hit[:, :k].sum(1) / k)
    for k in ks:
        result[f"nDCG@{k}"] = mean((hit[:, :k] @ discounts[:k])[judged], ideals[np.minimum(counts, k)][judged])
    for k in ks:
        result[f"R@{k}"] = mean(hit[:, :k].sum(1)[judged], counts[judged])
    for k in ks:
        both = (top[:, :k] >= 0).sum(1) + counts
        result[f"F1@{k}"] = mean(2 * hit[:, :k].sum(1)[judged], np.where(counts > 0, both, 0)[judged])
    if truth.inverse_propensity is not None:
        result |= _propensity_scored(top, hit, truth, ks, discounts, ideals)
    occurring = len(np.unique(truth.targets.indices))
    for k in ks:
        covered = len(np.unique(top[:, :k][hit[:, :k]]))
        result[f"coverage@{k}"] = 100 * covered / occurring if occurring else 0.0
    if truth.frequencies is not None:
        result["bins"] = _bins(hit, top, truth, max(ks), bins)
    result["rows"] = len(top)
    return result


def _propensity_scored(
    top: np.ndarray, hit: np.ndarray, truth: Truth, ks: Sequence[int], discounts: np.ndarray, ideals: np.ndarray
) -> dict[str, float]:
    assert truth.inverse_propensity is not None and truth.counts is not None
    gains = np.where(hit, truth.inverse_propensity[np.maximum(top, 0)], 0.0)
    result = {}
    for name, weights in (("PSP", np.ones(max(ks))), ("PSnDCG", discounts)):
        for k in ks:
            # a row without labels gains nothing, whatever it is divided by
            ideal = np.maximum(ideals[np.minimum(truth.counts, k)], 1.0) if name == "PSnDCG" else 1.0
            best = float((_best_gains(truth, k, weights) / ideal).sum())
            gained = float(((gains[:, :k] @ weights[:k]) / ideal).sum())
            result[f"{name}@{k}"] = 100 * gained / best if best else 0.0
    return result


def threshold_metrics(top: Any, scores: Any, truth: Truth, threshold: float) -> dict[str, float]:
    """Precision, recall and F1 in percent of the predictions whose score reaches a threshold.

    ``micro`` counts all pairs of a row and a label alike. ``macro`` is the mean of all ``L`` labels' F1, 0 for a label that
    is neither true nor predicted anywhere.

    Args:
        top, scores: labels ``[N, k]`` and their scores; what lies beyond the k best of a row counts as not predicted.

    Raises:
        ValueError: as of ``hits``, or shapes differ, or the threshold is NaN.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.metrics import Truth, threshold_metrics
        >>> threshold_metrics([[0, 2]], [[0.9, 0.6]], Truth(np.array([[1, 0, 0]])), 0.5)["micro P"]
        50.0
    """
    hit, top = hits(top, truth.targets), np.asarray(top.detach().cpu() if hasattr(top, "detach") else top)
    scores = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores)
    if scores.shape != top.shape:
        raise ValueError(f"scores must be {list(top.shape)} as top is, got {list(scores.shape)}")
    if np.isnan(threshold):
        raise ValueError("threshold must be a number, got NaN")
    assert truth.counts is not None
    num_labels = truth.targets.shape[1]
    chosen = (top >= 0) & (scores >= threshold)
    right = np.bincount(top[chosen & hit], minlength=num_labels)
    predicted = np.bincount(top[chosen], minlength=num_labels)
    true = np.bincount(truth.targets.indices, minlength=num_labels)
    total = {"right": int(right.sum()), "predicted": int(predicted.sum()), "true": int(truth.counts.sum())}

    def percent(part: Any, whole: Any) -> Any:
        return 100 * np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)

    return {
        "micro P": float(percent(total["right"], total["predicted"])),
        "micro R": float(percent(total["right"], total["true"])),
        "micro F1": float(percent(2 * total["right"], total["predicted"] + total["true"])),
        "macro F1": float(percent(2 * right, predicted + true).mean()) if num_labels else 0.0,
        "labels per row": total["predicted"] / len(top) if len(top) else 0.0,
    }


def calibration_error(scores: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in percent: how far scores in ``[0, 1]`` are from the share of hits among them.

    Args:
        scores, hit: of the k best labels of each row ``[N, k]``; places without a label hold NaN.
        bins: of equal width.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.metrics import calibration_error
        >>> calibration_error(np.array([[0.75]] * 4), np.array([[True]] * 3 + [[False]]))
        0.0
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
