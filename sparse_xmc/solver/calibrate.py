"""Scores that compare between labels: what held-out rows say about scores of frequent and of rare labels.

For a pair of a row and a label with n training rows the log-odds of the label are taken as ``a(n) z + g(n) c + b(n)``,
z the SVM's score and c the centroid's, with a, g and b piecewise linear in log2 n. All three fold into the head's own
weights and bias, so that a calibrated head has as many connections as before and its scores are log-odds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_KNOTS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 14)  # log2 of the training rows
_RIDGE = 1.0
_STEPS = 12


def _hats(frequencies: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Piecewise linear basis ``[n, knots]`` of log2 of the frequencies."""
    position = np.clip(np.log2(np.maximum(frequencies, 1)), knots[0], knots[-1])
    return np.stack([np.interp(position, knots, row) for row in np.eye(len(knots))], axis=1)


@dataclass
class Calibration:
    """``scale``, ``share`` and ``shift`` by knot."""

    knots: np.ndarray
    scale: np.ndarray
    share: np.ndarray
    shift: np.ndarray

    def of(self, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """a, g and b of labels with so many training rows."""
        hats = _hats(frequencies, self.knots)
        return tuple((hats @ v).astype(np.float32) for v in (self.scale, self.share, self.shift))  # type: ignore[return-value]


def calibrate(
    scores: np.ndarray, centroid: np.ndarray, hit: np.ndarray, frequencies: np.ndarray, weight: np.ndarray | None = None
) -> Calibration:
    """Penalised logistic regression by Newton's method.

    Args:
        scores, centroid, hit, frequencies: one entry a pair of a held-out row and a candidate label ``[n]``.
        weight: of the pairs.
    """
    knots = np.array([k for k in _KNOTS if k <= np.log2(max(frequencies.max(initial=1), 1)) + 1], dtype=np.float64)
    hats, n = _hats(frequencies, knots), len(knots)
    design = np.concatenate([hats * scores[:, None], hats * centroid[:, None], hats], axis=1)
    weight = np.ones(len(hit)) if weight is None else weight
    # neighbouring knots are drawn together: a knot without data goes along with the next
    bend = np.diff(np.eye(n), axis=0)
    penalty = np.kron(np.eye(3), _RIDGE * bend.T @ bend) + 1e-3 * np.eye(3 * n)
    theta = np.zeros(3 * n)
    theta[2 * n :] = -2
    theta[: 2 * n] = 1
    value = np.inf
    for _ in range(_STEPS):
        z = design @ theta
        p = 1 / (1 + np.exp(-z))
        now = float(weight @ (np.logaddexp(0, z) - hit * z) + 0.5 * theta @ penalty @ theta)
        if value - now < 1e-5 * abs(now):
            break
        value = now
        gradient = design.T @ (weight * (p - hit)) + penalty @ theta
        curvature = (design * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ design + penalty
        theta = theta - np.linalg.solve(curvature, gradient)
    return Calibration(knots, theta[:n], theta[n : 2 * n], theta[2 * n :])
