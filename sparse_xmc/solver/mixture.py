"""How the SVM's and the centroids' scores become one: the same share for all labels, or a calibration by frequency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.solver.calibrate import Calibration, calibrate, logistic
from sparse_xmc.solver.head import Block, Level, TermHead

SHARES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TEMPERS = (0.0, 0.3, 0.6, 1.0)  # of propensities in the weight of a hit; where the tail does not count the first two
_PARTS = (1.0, 0.75, 0.5)  # of a calibration
_CANDIDATES = 25  # labels of a held-out row by each of two mixtures
_RANKED = 5
_FOLDS = 5


@dataclass(frozen=True)
class Levels:
    """Clusterings of the labels and what was solved for them.

    Args:
        fronts: of each clustering the head of its clusters, and the cluster of each label ``[L]``.
        within: SVMs of the labels among the rows of their clusters, on average over the clusterings.
    """

    fronts: Sequence[tuple[TermHead, np.ndarray]]
    within: TermHead

    def weighed(self, share: np.ndarray) -> list[Level]:
        """The clusters as levels of a head, all clusterings together with ``share [L]``."""
        return [Level(clusters, of, share / len(self.fronts)) for clusters, of in self.fronts]

    def log_likelihoods(self, x: sp.csr_matrix, labels: np.ndarray) -> np.ndarray:
        """What the clusters say of given labels ``[N, S]``, on average over the clusterings."""
        rows, one = np.arange(len(labels))[:, None], np.ones(1, np.float32)
        parts = [Level(clusters, of, one).log_likelihoods(x)[rows, of[labels]] for clusters, of in self.fronts]
        return np.mean(parts, axis=0)


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


def merged(
    svm: TermHead, centroid: TermHead, mixture: Mixture, frequencies: np.ndarray, levels: Levels | None = None
) -> TermHead:
    """One head of the same connections whose scores are the mixture's; ``levels`` where the mixture knows of some."""
    scale, share, shift = mixture.of(frequencies)
    if levels is None:
        weights = [scale[b.labels, None] * b.weight for b in svm.blocks]
        bias, front = scale * svm.bias + shift, []
    else:
        within, h = mixture.levels_of(frequencies)
        weights = [
            scale[b.labels, None] * b.weight + within[b.labels, None] * side.weight
            for b, side in zip(svm.blocks, levels.within.blocks, strict=True)
        ]
        bias, front = scale * svm.bias + shift + within * levels.within.bias, levels.weighed(h)
    blocks = [
        Block(own.labels, own.indices, weight + share[own.labels, None] * side.weight)
        for own, side, weight in zip(svm.blocks, centroid.blocks, weights, strict=True)
    ]
    return TermHead(blocks, bias, front)


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
    levels: Sequence[np.ndarray] = ()  # of each pair the score among its cluster's rows, and what its clusters say

    @property
    def folds(self) -> np.ndarray:
        """The fifth that each row is in ``[H]``."""
        return np.arange(len(self.labels)) % _FOLDS

    @property
    def calibrates(self) -> bool:
        """Whether every fifth has a hit, so that a calibration by the others can be judged on it; levels need one."""
        return all(self.hit[self.folds == i].any() for i in range(_FOLDS))

    def total(self, mixture: Mixture, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """The mixture's scores ``[H, S]``, -inf where there is no label."""
        labels = self.labels[rows]
        scale, share, shift = (v[labels] for v in mixture.of(self.frequencies))
        total = scale * self.scores[rows] + share * self.centroid[rows] + shift
        if self.levels:
            for share, value in zip(mixture.levels_of(self.frequencies), self.levels, strict=True):
                total += share[labels] * value[rows]
        total[labels < 0] = -np.inf
        return total

    def ranked(self, mixture: Mixture, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        order = np.argsort(-self.total(mixture, rows), axis=1, kind="stable")[:, :_RANKED]
        top = np.take_along_axis(self.labels[rows], order, axis=1)
        return np.pad(top, ((0, 0), (0, _RANKED - top.shape[1])), constant_values=-1)

    def judged(self, mixture: Mixture, most: int = 20) -> tuple[np.ndarray, np.ndarray]:
        """Scores and truth of the best labels of each row ``[H, most]``, in the mixture's order."""
        total = self.total(mixture)
        order = np.argsort(-total, axis=1, kind="stable")[:, :most]
        total, hit = np.take_along_axis(total, order, axis=1), np.take_along_axis(self.hit, order, axis=1)
        return total[np.isfinite(total)], hit[np.isfinite(total)]

    def fit(
        self, temper: float, rows: slice | np.ndarray = slice(None), near: Calibration | None = None
    ) -> Calibration:
        labels = self.labels[rows]
        known = labels >= 0
        hit, of = self.hit[rows][known].astype(np.float64), labels[known]
        assert self.truth.inverse_propensity is not None
        weight = np.where(hit > 0, self.truth.inverse_propensity[of] ** temper, 1.0)
        levels = [value[rows][known] for value in self.levels]
        return calibrate(
            self.scores[rows][known], self.centroid[rows][known], hit, self.frequencies[of], weight, levels, near
        )


def pairs(
    x: sp.csr_matrix, targets: sp.csr_matrix, svm: TermHead, centroid: TermHead, frequencies: np.ndarray,
    num_train: int,
    propensity: tuple[float, float], levels: Levels | None = None,
) -> Pairs:  # fmt: skip
    """Candidates of held-out rows: the best of a mixture that leans on the SVM, of one that leans on centroids, and of one
    that leans on clusters where there are some."""
    heads = [merged(svm, centroid, Uniform(share), frequencies) for share in (0.5, 3.0)]
    if levels is not None:
        heads.append(replace(levels.within, levels=levels.weighed(np.ones(len(frequencies), np.float32))))
    lists = [head.invert(x.shape[1]).topk(x, _CANDIDATES)[1] for head in heads]
    labels = np.sort(np.hstack(lists), axis=1)
    labels[:, 1:][labels[:, 1:] == labels[:, :-1]] = -1
    keys = np.arange(len(labels), dtype=np.int64)[:, None] * targets.shape[1] + labels
    own = np.repeat(np.arange(len(labels), dtype=np.int64), np.diff(targets.indptr)) * targets.shape[1]
    hit = np.isin(keys, own + targets.indices) & (labels >= 0)
    scores = svm.products(x, labels) + svm.bias[labels]
    side = centroid.products(x, labels)
    truth = Truth.from_training(targets, np.diff(targets.indptr), frequencies, num_train, *propensity)
    extra = (
        []
        if levels is None
        else [levels.within.products(x, labels) + levels.within.bias[labels], levels.log_likelihoods(x, labels)]
    )
    return Pairs(labels, scores, side, hit, targets, frequencies, truth, extra)


def objective(top: np.ndarray, truth: Truth, tail: float) -> float:
    """``(1 - tail)`` times the mean of P@1, P@3 and P@5 plus ``tail`` times the mean of PSP@1, PSP@3 and PSP@5."""
    if not tail:  # the propensity-scored metrics are the dear ones
        truth = replace(truth, inverse_propensity=None, frequencies=None)
    metrics = ranking_metrics(top, truth)
    parts = ((1 - tail, "P"), (tail, "PSP"))
    return float(sum(part * np.mean([metrics[f"{name}@{k}"] for k in (1, 3, 5)]) for part, name in parts if part))


def best_mixture(held: Pairs, tail: float) -> tuple[Mixture, float, str]:
    """The mixture with the best objective, its value and its name.

    Tried are shares of the centroid for all labels, calibrations, and what lies between a calibration and the best of
    those shares: the former tells labels apart in the middle of a ranking, the latter its top. A calibration is judged on
    each fifth of the rows by the fit on the others, and fitted on all once it is taken.
    """
    plain = replace(held, levels=())
    uniform = [(objective(plain.ranked(Uniform(share)), held.truth, tail), share) for share in SHARES]
    value, share = max(uniform, key=lambda entry: entry[0])
    name, best = f"centroid x {share:g}", _log_odds(plain, share)
    chosen: Mixture = best
    if held.levels:  # as good as without them
        value = -np.inf
    for temper in (TEMPERS if tail else TEMPERS[:2]) if held.calibrates else ():
        near, fold = held.fit(temper), held.folds
        fits = [held.fit(temper, fold != i, near) for i in range(_FOLDS)]
        for part in _PARTS:
            top = np.empty((len(held.labels), _RANKED), held.labels.dtype)
            for i, fit in enumerate(fits):
                top[fold == i] = held.ranked(_between(fit, best, part), fold == i)
            other = objective(top, held.truth, tail)
            if other > value:
                value, chosen = other, _between(near, best, part)
                name = _calibrated(temper, part, share)
    return chosen, value, name


def _between(calibration: Calibration, uniform: Uniform, part: float) -> Calibration:
    rest = (uniform.scale, uniform.scale * uniform.share, uniform.shift)
    return calibration if part == 1 else calibration.towards(*rest, part)


def _calibrated(temper: float, part: float, share: float) -> str:
    weighed = f", hits weigh propensity^-{temper:g}" if temper else ""
    return f"calibrated by label frequency{weighed}" + (f", {part:.0%} with centroid x {share:g}" if part < 1 else "")


def _log_odds(held: Pairs, share: float) -> Uniform:
    """The share with scale and shift that make scores log-odds: the order of labels stays."""
    known = held.labels >= 0
    z = (held.scores + share * held.centroid)[known].astype(np.float64)
    design, as_it_is = np.stack([z, np.ones(len(z))], axis=1), np.array([1.0, 0.0])  # with a faint pull towards it
    hit = held.hit[known].astype(np.float64)
    scale, shift = logistic([(np.arange(2), design)], hit, np.ones(len(z)), np.eye(2), as_it_is, as_it_is)
    return Uniform(share, float(max(scale, 1e-3)), float(shift))
