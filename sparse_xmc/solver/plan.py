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
        costs: of the SVM to try, ascending, as long as they help; each begins from the solution at the one before it.
        shortlist: labels of a row that its centroid scores name as hard negatives.
        again: the same of each later round, by the SVM's scores.
        sample: labels of a row that are its negatives whatever their score.
        rounds: of shortlists.
        choose: whether held-out rows decide.
        clusterings: of the labels, to try in front of the head, as long as they help.
        clusters: of a clustering, at most.
        cluster_fan_in: connections of a cluster.
        cluster_rows: rows that are learned from as negatives, over all clusters of a clustering; twice as many for the
            labels in them.
        further: points of the objective that a clustering must bring for one more to be tried.
        whole: whether every row is an example of every label, in place of shortlists and clusters.
    """

    rare: tuple[int, ...]
    frequent: tuple[int, ...]
    costs: tuple[float, ...]
    shortlist: int
    again: int
    sample: int
    rounds: int
    choose: bool
    clusterings: int = 0
    clusters: int = 0
    cluster_fan_in: int = 0
    cluster_rows: int = 0
    further: float = 0.0
    whole: bool = False


_LADDERS = {
    "fast": ((64,), (256,)),
    "normal": ((64,), (256, 1024)),
    "best": ((64, 128, 256), (256, 512, 1024, 2048)),
}
_MORE, _CONNECTIONS = (2048, 4096), 1_500_000  # of a frequent label where those of all of them are no more than that
_COSTS = {"fast": (), "normal": (0.3, 1.0), "best": (0.03, 0.1, 0.3, 1.0)}
_ROUNDS = {"fast": 2, "normal": 2, "best": 3}
_CLUSTERINGS = {"fast": 0, "normal": 2, "best": 3}
_FURTHER = {"fast": 0.0, "normal": 1.0, "best": 0.0}
_CLUSTERS, _CLUSTER_FAN_IN = 128, 4096  # of a clustering at most
_FEWEST, _SMALLEST, _LEAST_FAN_IN = 3, 4, 64  # clusters, labels of one and its connections
_ENTRIES = {"fast": 0, "normal": 1e8, "best": 1e9}  # of the rows that clusters learn from, over all clusters
_ROWS = 1 << 25  # the same in rows, at most
_ENOUGH = 2000  # rows that decide
# where labels x rows and labels x entries of rows are no more than these, every row is an example of every label
_WHOLE_ROWS, _WHOLE_ENTRIES = 1 << 25, 1 << 29
_WHOLE_COSTS = {"fast": (), "normal": (0.25, 0.5, 1.0), "best": (0.125, 0.25, 0.5, 1.0, 2.0)}
_WHOLE_CONNECTIONS = 1 << 22  # over all labels at most: as many as that allows


def plan_for(
    effort: str, frequencies: np.ndarray, num_terms: int, *, fan_in: int | None = None, memory: int | None = None,
    entries: float = 100, rows: int | None = None,
) -> Plan:  # fmt: skip
    """The plan for labels with so many training rows each.

    Args:
        fan_in: connections of every label, where that is not left open.
        memory: bytes that indices, weights and bias may take, where that is limited.
        entries: of a training row, on average: they bound the rows that clusters are learned from.
        rows: for training; None: not known, and too many for every row to be an example of every label.

    Raises:
        ValueError: the memory holds no connection a label, or there are fewer terms than ``fan_in``.
    """
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    if fan_in is not None and not 1 <= fan_in <= num_terms:
        raise ValueError(f"fan_in must lie in [1, {num_terms}], the number of terms, got {fan_in}")
    rare, frequent = _LADDERS[effort] if fan_in is None else ((fan_in,), (fan_in,))
    L, H = len(frequencies), int((frequencies >= FREQUENT).sum())
    if fan_in is None and effort != "fast":
        frequent += tuple(k for k in _MORE if k > frequent[-1] and H * k <= _CONNECTIONS)
    whole = rows is not None and L * rows <= _WHOLE_ROWS and L * rows * entries <= _WHOLE_ENTRIES
    if whole:
        rare = frequent = rare if fan_in is not None else (max(1, _WHOLE_CONNECTIONS // max(L, 1)),)
    clusters, cluster_fan_in = 0 if whole else _clusters(L, num_terms), min(_CLUSTER_FAN_IN, num_terms)
    if memory is not None:
        least = L * (_ENTRY + _BIAS)
        if memory < least:
            raise ValueError(f"head memory of {memory:,} bytes is too little for {L:,} labels: at least {least:,}")
        cluster_fan_in = min(cluster_fan_in, _cluster_share(effort, memory - least, L, clusters))
        if cluster_fan_in < min(_LEAST_FAN_IN, num_terms):
            clusters = 0
        memory -= _CLUSTERINGS[effort] * _clustering_bytes(L, clusters, cluster_fan_in)
        most = (memory // L - _BIAS) // _ENTRY
        rare = tuple(min(k, most) for k in rare)
        rest = memory - L * _BIAS - (L - H) * rare[-1] * _ENTRY
        frequent = tuple(min(k, rest // (H * _ENTRY)) for k in frequent) if H else rare
    rare, frequent = (tuple(dict.fromkeys(min(k, num_terms) for k in ladder)) for ladder in (rare, frequent))
    if whole:
        rare = frequent = (min(rare[0], frequent[0]),)
    few = frequencies.sum() < FREQUENT * L  # rows of a label, on average
    shortlist, sample = (100, 10) if few else (50, 20)
    rounds, clusterings = _ROUNDS[effort], _CLUSTERINGS[effort] if clusters else 0
    return Plan(
        rare, frequent, (_WHOLE_COSTS if whole else _COSTS)[effort], shortlist, 40, sample, rounds, effort != "fast",
        clusterings, clusters, cluster_fan_in, min(_ROWS, int(_ENTRIES[effort] // max(entries, 1))),
        _FURTHER[effort], whole,
    )  # fmt: skip


def held_out_rows(rows: int, share: float | None) -> int:
    """Rows that decide, of so many: a ``share``; None: 5 %, but 2,000 at least, or a fifth of few."""
    return max(round(0.05 * rows), min(_ENOUGH, rows // 5)) if share is None else round(share * rows)


def _clusters(num_labels: int, num_terms: int) -> int:
    """Clusters of a clustering; 0: too few to say anything."""
    count = min(_CLUSTERS, num_labels // _SMALLEST)
    return count if count >= _FEWEST and num_terms > 1 else 0


def _cluster_share(effort: str, spare: int, num_labels: int, clusters: int) -> int:
    """Connections that a cluster may have so that all clusterings take at most a quarter of what is spare."""
    each = spare // 4 // max(_CLUSTERINGS[effort], 1) - _clustering_bytes(num_labels, clusters, 0)
    return max(0, each // (max(clusters, 1) * _ENTRY))


def _clustering_bytes(num_labels: int, clusters: int, fan_in: int) -> int:
    return clusters * (fan_in * _ENTRY + _BIAS) + num_labels * _ENTRY if clusters else 0
