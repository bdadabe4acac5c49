"""What a fit has settled, kept with the model: labels that come later are solved in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_xmc.solver.calibrate import Calibration
from sparse_xmc.solver.mixture import Mixture, Uniform


@dataclass(frozen=True)
class Settings:
    """Of a solved head.

    Args:
        rare, frequent: connections of a label of few and of many rows.
        cost: of the SVM; None where labels are solved in closed form.
        mixture: of SVM and centroid, likewise.
        power: of the sizes of rows, where labels are solved in closed form.
        whole: whether every row is an example of every label.
    """

    rare: int
    frequent: int
    cost: float | None = None
    mixture: Mixture | None = None
    power: float | None = None
    whole: bool = False

    def state(self) -> dict[str, Any]:
        """As JSON; ``from_state`` reads it back."""
        if self.power is not None:
            return {"rare": self.rare, "frequent": self.frequent, "power": self.power}
        if isinstance(self.mixture, Uniform):
            mixture: dict[str, Any] = {"uniform": [self.mixture.share, self.mixture.scale, self.mixture.shift]}
        else:
            assert isinstance(self.mixture, Calibration)
            m = self.mixture
            mixture = {"by frequency": [values.tolist() for values in (m.knots, m.scale, m.share, m.shift)]}
        whole = {"whole": True} if self.whole else {}
        return {"rare": self.rare, "frequent": self.frequent, "cost": self.cost, **mixture, **whole}

    @classmethod
    def from_state(cls, state: Any) -> Settings | None:
        """None where a model tells none.

        Raises:
            ValueError: the document is none of ``state``.
        """
        if state is None:
            return None
        if not isinstance(state, dict):
            raise ValueError(f"settings of a solved head must be an object, got {state!r:.80}")
        rare, frequent = (_count(state.get(name)) for name in ("rare", "frequent"))
        if "power" in state:
            return cls(rare, frequent, power=float(_numbers([state["power"]])[0]))
        cost = float(_numbers([state.get("cost")])[0])
        whole = state.get("whole", False)
        if type(whole) is not bool:
            raise ValueError(f"whether a solved head learned from all rows must be true or false, got {whole!r:.80}")
        if "uniform" in state:
            return cls(rare, frequent, cost, Uniform(*_numbers(state["uniform"], 3).tolist()), whole=whole)
        parts = state.get("by frequency")
        if not isinstance(parts, list) or len(parts) != 4:
            raise ValueError(f"settings of a solved head lack a mixture: {state!r:.80}")
        knots, *curves = (_numbers(values) for values in parts)
        if not len(knots) or (np.diff(knots) <= 0).any() or any(len(curve) != len(knots) for curve in curves):
            raise ValueError(f"a mixture by frequency needs a value for each of rising knots, got {parts!r:.80}")
        return cls(rare, frequent, cost, Calibration(knots, *curves), whole=whole)


def _count(value: Any) -> int:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError(f"connections of a label must be a positive integer, got {value!r:.80}")
    return value


def _numbers(values: Any, count: int | None = None) -> np.ndarray:
    plain = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not plain or (count is not None and len(values) != count):
        raise ValueError(f"settings of a solved head must be numbers, got {values!r:.80}")
    result = np.array(values, dtype=np.float64)
    if not np.isfinite(result).all():
        raise ValueError(f"settings of a solved head must be finite, got {values!r:.80}")
    return result
