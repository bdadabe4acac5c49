"""What the solver tries, by effort and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparse_xmc.solver.efforts import EFFORTS

FREQUENT = 20  # training rows from which on a label's terms are those of its SVM, not of its centroid
_ENTRY, _BIAS = 8, 4  # bytes of a connection at most (weight and index) and of a bias


class Stages(Protocol):
    """Where results of stages are kept, so that a killed run goes on with the next one."""

    def __call__(self, name: str, work: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]: ...


def unkept(name: str, work: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stages that are kept nowhere."""
    return work()


@dataclass(frozen=True)
class Plan:
    """How hard the solver tries.

    Args:
        rare, frequent: numbers of connections of labels with fewer and with more rows than ``FREQUENT`` to try,
            ascending; the last that helps is taken.
        costs: of the SVM to try, as long as they help.
        shortlist: labels of a row that its centroid scores name as hard negatives.
        again: the same of each later round, by the SVM's scores.
        sample: labels of a row that are its negatives whatever their score.
        rounds: of shortlists.
        choose: whether held-out rows decide.
    """

    rare: tuple[int, ...]
    frequent: tuple[int, ...]
    costs: tuple[float, ...]
    shortlist: int
    again: int
    sample: int
    rounds: int
    choose: bool


_LADDERS = {
    "fast": ((64,), (256,)),
    "normal": ((64,), (256, 512, 1024)),
    "best": ((64, 128, 256), (256, 512, 1024, 2048)),
}
_COSTS = {"fast": (1.0,), "normal": (1.0, 0.3, 0.1), "best": (1.0, 0.3, 0.1, 0.03)}
_ROUNDS = {"fast": 2, "normal": 2, "best": 3}


def plan_for(
    effort: str, frequencies: np.ndarray, num_terms: int, *, fan_in: int | None = None, memory: int | None = None
) -> Plan:
    """The plan for labels with so many training rows each.

    Args:
        fan_in: connections of every label, where that is not left open.
        memory: bytes that indices, weights and bias may take, where that is limited.

    Raises:
        ValueError: the memory holds no connection a label, or there are fewer terms than ``fan_in``.
    """
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    if fan_in is not None and not 1 <= fan_in <= num_terms:
        raise ValueError(f"fan_in must lie in [1, {num_terms}], the number of terms, got {fan_in}")
    rare, frequent = _LADDERS[effort] if fan_in is None else ((fan_in,), (fan_in,))
    L, H = len(frequencies), int((frequencies >= FREQUENT).sum())
    if memory is not None:
        least = L * (_ENTRY + _BIAS)
        if memory < least:
            raise ValueError(f"head memory of {memory:,} bytes is too little for {L:,} labels: at least {least:,}")
        most = (memory // L - _BIAS) // _ENTRY
        rare = tuple(min(k, most) for k in rare)
        rest = memory - L * _BIAS - (L - H) * rare[-1] * _ENTRY
        frequent = tuple(min(k, rest // (H * _ENTRY)) for k in frequent) if H else rare
    rare, frequent = (tuple(dict.fromkeys(min(k, num_terms) for k in ladder)) for ladder in (rare, frequent))
    few = frequencies.sum() < FREQUENT * L  # rows of a label, on average
    shortlist, sample = (100, 10) if few else (50, 20)
    return Plan(rare, frequent, _COSTS[effort], shortlist, 40, sample, _ROUNDS[effort], effort != "fast")
