"""How the SVM's and the centroids' scores become one: the same share for all labels, or a calibration by frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.solver.calibrate import Calibration, calibrate
from sparse_xmc.solver.head import Block, TermHead

SHARES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TEMPERS = (0.3, 0.6, 1.0)  # of propensities in the weight of a hit; where the tail does not count only the first
_CANDIDATES = 25  # labels of a held-out row by each of two mixtures
_RANKED = 5


@dataclass(frozen=True)
class Uniform:
    """Score ``scale (z + share c) + shift`` for every label."""

    share: float
    scale: float = 1.0
    shift: float = 0.0

    def of(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ones = np.ones(len(frequencies), np.float32)
        return self.scale * ones, self.scale * self.share * ones, self.shift * ones


Mixture = Any  # Uniform or Calibration: what has ``of(frequencies) -> (scale, share, shift)``


def merged(svm: TermHead, centroid: TermHead, mixture: Mixture, frequencies: np.ndarray) -> TermHead:
    """One head of the same connections whose scores are the mixture's."""
    scale, share, shift = mixture.of(frequencies)
    blocks = []
    for own, side in zip(svm.blocks, centroid.blocks, strict=True):
        a, g = scale[own.labels, None], share[own.labels, None]
        blocks.append(Block(own.labels, own.indices, a * own.weight + g * side.weight))
    return TermHead(blocks, scale * svm.bias + shift)


@dataclass
class Pairs:
    """Held-out rows with candidate labels ``[H, S]`` (-1: none), the scores of both kinds and whether they are true."""

    labels: np.ndarray
    scores: np.ndarray
    centroid: np.ndarray
    hit: np.ndarray
    targets: sp.csr_matrix
    frequencies: np.ndarray
    truth: Truth

    def ranked(self, mixture: Mixture, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        labels = self.labels[rows]
        scale, share, shift = (v[labels] for v in mixture.of(self.frequencies))
        total = scale * self.scores[rows] + share * self.centroid[rows] + shift
        total[labels < 0] = -np.inf
        order = np.argsort(-total, axis=1, kind="stable")[:, :_RANKED]
        top = np.take_along_axis(labels, order, axis=1)
        return np.pad(top, ((0, 0), (0, _RANKED - top.shape[1])), constant_values=-1)

    def judged(self, mixture: Mixture, most: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """Scores and truth of the best labels of each row ``[H, most]``, in the mixture's order."""
        scale, share, shift = (v[self.labels] for v in mixture.of(self.frequencies))
        total = scale * self.scores + share * self.centroid + shift
        total[self.labels < 0] = -np.inf
        order = np.argsort(-total, axis=1, kind="stable")[:, :most]
        total, hit = np.take_along_axis(total, order, axis=1), np.take_along_axis(self.hit, order, axis=1)
        return total[np.isfinite(total)], hit[np.isfinite(total)]

    def fit(self, temper: float, rows: slice | np.ndarray = slice(None)) -> Calibration:
        labels = self.labels[rows]
        known = labels >= 0
        hit, of = self.hit[rows][known].astype(np.float64), labels[known]
        assert self.truth.inverse_propensity is not None
        weight = np.where(hit > 0, self.truth.inverse_propensity[of] ** temper, 1.0)
        return calibrate(self.scores[rows][known], self.centroid[rows][known], hit, self.frequencies[of], weight)


def pairs(
    x: sp.csr_matrix, targets: sp.csr_matrix, svm: TermHead, centroid: TermHead, frequencies: np.ndarray,
    num_train: int,
    propensity: tuple[float, float],
) -> Pairs:  # fmt: skip
    """Candidates of held-out rows: the best of a mixture that leans on the SVM and of one that leans on centroids."""
    lists = []
    for share in (0.5, 3.0):
        lists.append(merged(svm, centroid, Uniform(share), frequencies).invert(x.shape[1]).topk(x, _CANDIDATES)[1])
    labels = np.sort(np.hstack(lists), axis=1)
    labels[:, 1:][labels[:, 1:] == labels[:, :-1]] = -1
    keys = np.arange(len(labels), dtype=np.int64)[:, None] * targets.shape[1] + labels
    own = np.repeat(np.arange(len(labels), dtype=np.int64), np.diff(targets.indptr)) * targets.shape[1]
    hit = np.isin(keys, own + targets.indices) & (labels >= 0)
    scores = svm.products(x, labels) + svm.bias[labels]
    side = centroid.products(x, labels)
    truth = Truth.from_training(targets, np.diff(targets.indptr), frequencies, num_train, *propensity)
    return Pairs(labels, scores, side, hit, targets, frequencies, truth)


def objective(top: np.ndarray, truth: Truth, tail: float) -> float:
    """``(1 - tail)`` times the mean of P@1, P@3 and P@5 plus ``tail`` times the mean of PSP@1, PSP@3 and PSP@5."""
    metrics = ranking_metrics(top, truth)
    parts = [np.mean([metrics[f"{name}@{k}"] for k in (1, 3, 5)]) for name in ("P", "PSP")]
    return float((1 - tail) * parts[0] + tail * parts[1])


def best_mixture(held: Pairs, tail: float) -> tuple[Mixture, float, str]:
    """The mixture with the best objective, its value and its name.

    A calibration is judged on one half of the rows by the fit on the other half, and fitted on both once it is taken.
    """
    found: list[tuple[float, str, Any]] = []
    for share in SHARES:
        found.append((objective(held.ranked(Uniform(share)), held.truth, tail), f"centroid x {share:g}", share))
    halves = np.arange(len(held.labels)) % 2 == 0
    if min(held.hit[halves].sum(), held.hit[~halves].sum()) > 0:
        for temper in TEMPERS if tail else TEMPERS[:1]:
            top = np.empty((len(held.labels), _RANKED), held.labels.dtype)
            for part in (halves, ~halves):
                top[part] = held.ranked(held.fit(temper, ~part), part)
            name = f"calibrated by label frequency, hits weigh propensity^-{temper:g}"
            found.append((objective(top, held.truth, tail), name, held.fit(temper)))
    value, name, chosen = max(found, key=lambda entry: entry[0])
    return (_log_odds(held, chosen) if isinstance(chosen, float) else chosen), value, name


def _log_odds(held: Pairs, share: float) -> Uniform:
    """The share with scale and shift that make scores log-odds: the order of labels stays."""
    known = held.labels >= 0
    z = (held.scores + share * held.centroid)[known].astype(np.float64)
    hit = held.hit[known].astype(np.float64)
    scale, shift = 1.0, 0.0
    for _ in range(30):  # Newton's method, with a faint pull towards (1, 0)
        p = 1 / (1 + np.exp(-(scale * z + shift)))
        w = np.maximum(p * (1 - p), 1e-9)
        gradient = np.array([((p - hit) * z).sum() + (scale - 1), (p - hit).sum() + shift])
        curvature = np.array([[(w * z * z).sum() + 1, (w * z).sum()], [(w * z).sum(), w.sum() + 1]])
        step = np.linalg.solve(curvature, gradient)
        scale, shift = scale - step[0], shift - step[1]
        if np.abs(step).max() < 1e-8:
            break
    return Uniform(share, float(max(scale, 1e-3)), float(shift))
