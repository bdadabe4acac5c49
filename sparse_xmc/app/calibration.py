"""Scores that mean what they say: of the labels predicted with 0.8, four in five are true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_xmc.app.isotonic import isotonic

_RANKED = 20  # labels of a row that the curve is fitted on
_KNOTS = 256  # at most, of a curve
FEWEST_HITS = 20  # true labels among the predictions, below which there is nothing to fit


@dataclass(frozen=True)
class Calibration:
    """A rising curve from a model's own estimates to probabilities, linear between its knots.

    Args:
        estimates, probabilities: the knots, both rising; estimates in ``[0, 1]``.

    Raises:
        ValueError: the knots are no such curve.
    """

    estimates: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self) -> None:
        for name in ("estimates", "probabilities"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            inside = values.ndim == 1 and len(values) >= 2 and bool(np.all((values >= 0) & (values <= 1)))
            if not inside or bool((np.diff(values) < 0).any()):
                raise ValueError(f"{name} of a calibration must rise within [0, 1], got {values[:8]}")
        if len(self.estimates) != len(self.probabilities):
            raise ValueError(f"{len(self.estimates)} estimates do not match {len(self.probabilities)} probabilities")

    def __call__(self, estimates: np.ndarray) -> np.ndarray:
        """Probabilities of any shape, in the type of the estimates."""
        return np.interp(estimates, self.estimates, self.probabilities).astype(estimates.dtype)

    @classmethod
    def fit(cls, estimates: np.ndarray, hits: np.ndarray) -> Calibration | None:
        """The isotonic regression of hits on estimates, from rows that the model was not trained on.

        Returns None where fewer than ``FEWEST_HITS`` predictions are true.
        """
        estimates, hits = np.clip(estimates.ravel(), 0, 1), hits.ravel()
        if hits.sum() < FEWEST_HITS:
            return None
        x, y = isotonic(estimates, hits)
        if len(x) > _KNOTS:
            keep = np.unique(np.linspace(0, len(x) - 1, _KNOTS).round().astype(int))
            x, y = x[keep], y[keep]
        x, y = np.append(x, 1.0), np.append(y, y[-1])
        return cls(np.concatenate([[0.0], x]), np.concatenate([[0.0], y]))

    def state(self) -> dict[str, list[float]]:
        """What ``from_state`` makes an equal one from, as JSON takes it."""
        return {"estimates": self.estimates.tolist(), "probabilities": self.probabilities.tolist()}

    @classmethod
    def from_state(cls, state: Any) -> Calibration | None:
        """Raises:
        ValueError: the state is no curve.
        """
        if state is None:
            return None
        if not isinstance(state, dict) or set(state) != {"estimates", "probabilities"}:
            raise ValueError(f"a calibration holds estimates and probabilities, got {state!r:.80}")
        return cls(np.array(state["estimates"], np.float64), np.array(state["probabilities"], np.float64))


def calibration_width(num_labels: int) -> int:
    """Labels of each row that a calibration is fitted on."""
    return min(_RANKED, num_labels)
