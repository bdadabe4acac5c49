"""Scores that compare between labels: what held-out rows say about scores of frequent and of rare labels.

For a pair of a row and a label with n training rows the log-odds of the label are taken as ``a(n) z + g(n) c + b(n)``,
z the SVM's score and c the centroid's, with a, g and b piecewise linear in log2 n. All three fold into the head's own
weights and bias, so that a calibrated head has as many connections as before and its scores are log-odds. With levels
in front of the head there are two more terms, ``e(n) y + h(n) p``, y the score of SVMs among the rows of the label's
clusters and p what those clusters say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_KNOTS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14)  # log2 of the training rows
_RIDGE = 1.0
_STEPS = 20
_PRODUCT, _ENTRIES = 200_000, 8_000  # multiplications of a matrix product, entries of a matrix times a vector

Part = tuple[np.ndarray, np.ndarray]  # numbers of coefficients [m], and what they are multiplied by [n, m]


def knots_for(most: int) -> list[int]:
    """log2 of the numbers of rows that a, g and b are told at, where the most frequent label has ``most``."""
    return [k for k in _KNOTS if k <= np.log2(max(most, 1)) + 1]


def _hats(frequencies: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Piecewise linear basis ``[n, knots]`` of log2 of the frequencies."""
    position = np.clip(np.log2(np.maximum(frequencies, 1)), knots[0], knots[-1])
    return np.stack([np.interp(position, knots, row) for row in np.eye(len(knots))], axis=1)


@dataclass
class Calibration:
    """``scale``, ``share`` and ``shift`` by knot; with levels also ``within`` and ``front``, which are e and h."""

    knots: np.ndarray
    scale: np.ndarray
    share: np.ndarray
    shift: np.ndarray
    within: np.ndarray | None = None
    front: np.ndarray | None = None

    def coefficients(self) -> np.ndarray:
        """All of them, by kind and knot."""
        kinds = (self.scale, self.share, self.shift, self.within, self.front)
        return np.concatenate([values for values in kinds if values is not None])

    def towards(self, scale: float, share: float, shift: float, part: float) -> Calibration:
        """``part`` of this one, and for the rest the same a, g and b for all labels, without levels."""
        same = (scale, share, shift, 0.0, 0.0)
        kinds = (self.scale, self.share, self.shift, self.within, self.front)
        mixed = [None if v is None else part * v + (1 - part) * rest for v, rest in zip(kinds, same, strict=True)]
        return Calibration(self.knots, *mixed)  # type: ignore[arg-type]

    def of(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """a, g and b of labels with so many training rows."""
        hats = _hats(frequencies, self.knots)
        return tuple((hats @ v).astype(np.float32) for v in (self.scale, self.share, self.shift))  # type: ignore[return-value]

    def levels_of(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """e and h of such labels, of a calibration with levels."""
        assert self.within is not None and self.front is not None
        hats = _hats(frequencies, self.knots)
        return (hats @ self.within).astype(np.float32), (hats @ self.front).astype(np.float32)


def calibrate(
    scores: np.ndarray, centroid: np.ndarray, hit: np.ndarray, frequencies: np.ndarray,
    weight: np.ndarray | None = None, levels: Sequence[np.ndarray] = (), near: Calibration | None = None,
) -> Calibration:  # fmt: skip
    """Penalised logistic regression on pairs of rows and labels.

    Args:
        scores, centroid, hit, frequencies: one entry a pair of a held-out row and a candidate label ``[n]``.
        weight: of the pairs.
        levels: y and p of each pair, where there are levels.
        near: a calibration to begin from, of as many knots.
    """
    knots = np.array(knots_for(frequencies.max(initial=1)), dtype=np.float64)
    columns, n = [scores, centroid, np.ones(len(hit)), *levels], len(knots)
    parts, order = _between_knots(columns, frequencies, knots)
    weight = np.ones(len(hit)) if weight is None else weight
    # neighbouring knots are drawn together: a knot without data goes along with the next
    bend = np.diff(np.eye(n), axis=0)
    penalty = np.kron(np.eye(len(columns)), _RIDGE * bend.T @ bend) + 1e-3 * np.eye(len(columns) * n)
    start = np.repeat([1.0, 1.0, -2.0, 0.0, 0.0][: len(columns)], n)
    if near is not None and len(near.knots) == n:
        start = near.coefficients()
    theta = logistic(parts, hit[order], weight[order], penalty, start, np.zeros(len(start)))
    return Calibration(knots, *theta.reshape(len(columns), n))


def _between_knots(
    columns: Sequence[np.ndarray], frequencies: np.ndarray, knots: np.ndarray
) -> tuple[list[Part], np.ndarray]:
    """The pairs of each two neighbouring knots, whose coefficients are the only ones that count for them, and their order."""
    n = len(knots)
    if n == 1:
        return [(np.arange(len(columns)), np.stack(columns, axis=1))], np.arange(len(frequencies))
    position = np.clip(np.log2(np.maximum(frequencies, 1)), knots[0], knots[-1])
    lower = np.clip(np.searchsorted(knots, position, side="right") - 1, 0, n - 2)
    order = np.argsort(lower, kind="stable")
    upper_share = (position - knots[lower]) / np.diff(knots)[lower]
    ends = np.cumsum(np.bincount(lower, minlength=n - 1))
    parts = []
    for i, rows in enumerate(np.split(order, ends[:-1])):
        values = np.stack([column[rows] for column in columns], axis=1)
        share = upper_share[rows, None]
        which = np.arange(len(columns)) * n + i
        parts.append((np.concatenate([which, which + 1]), np.hstack([values * (1 - share), values * share])))
    return parts, order


def logistic(
    parts: Sequence[Part], hit: np.ndarray, weight: np.ndarray, penalty: np.ndarray, start: np.ndarray,
    centre: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Coefficients of a logistic regression under a quadratic penalty about ``centre``, by Newton's method from ``start``.

    Args:
        parts: coefficients that consecutive pairs depend on, and their factors.
        hit, weight: of the pairs, in the order of the parts ``[n]``.
    """
    blocks: list[tuple[np.ndarray, np.ndarray, slice]] = []
    first = 0
    for which, design in parts:
        # products so small that BLAS keeps them to one thread: more of them wait longer than they work
        step = max(1, min(_PRODUCT // design.shape[1] ** 2, _ENTRIES // design.shape[1]))
        for i in range(0, len(design), step):
            block = design[i : i + step]
            blocks.append((which, block, slice(first, first + len(block))))
            first += len(block)

    def odds(theta: np.ndarray) -> np.ndarray:
        z = np.empty(first)
        for which, block, rows in blocks:
            z[rows] = block @ theta[which]
        return z

    def objective(theta: np.ndarray, z: np.ndarray) -> float:
        off = theta - centre
        return float((weight * (np.logaddexp(0, z) - hit * z)).sum() + 0.5 * off @ penalty @ off)

    theta, z = start, odds(start)
    value = objective(theta, z)
    for _ in range(_STEPS):
        p = np.exp(-np.logaddexp(0, -z))
        slope, bend = weight * (p - hit), weight * np.maximum(p * (1 - p), 1e-6)
        gradient, curvature = penalty @ (theta - centre), penalty.copy()
        for which, block, rows in blocks:
            gradient[which] += block.T @ slope[rows]
            curvature[np.ix_(which, which)] += (block * bend[rows, None]).T @ block
        move, before, share = np.linalg.solve(curvature, gradient), value, 1.0
        z = odds(theta - move)
        while (value := objective(theta - share * move, z)) > before and share > 1e-3:
            share /= 2  # a full step may lead too far
            z = odds(theta - share * move)
        if value >= before:
            break
        theta = theta - share * move
        if before - value < 1e-5 * abs(value):
            break
    return theta
