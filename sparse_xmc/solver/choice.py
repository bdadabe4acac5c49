"""What held-out rows decide: cost, connections, clusterings in front, and how scores are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.examples import Examples
from sparse_xmc.solver.head import Block, Level, TermHead
from sparse_xmc.solver.levels import cluster_labels, members_of, solve_clusters, solve_within
from sparse_xmc.solver.mixture import Levels, Mixture, Pairs, best_mixture, pairs
from sparse_xmc.solver.plan import Stages
from sparse_xmc.solver.task import Task, Topology, connections

_WORTH = 0.1  # points of the objective that more connections or a clustering must bring


def levels_of(task: Task, topology: Topology, solved: Sequence[dict[str, np.ndarray]]) -> Levels | None:
    """What ``clustering`` found, together."""
    if not solved:
        return None
    fronts = [(_clusters(s), s["of"]) for s in solved]
    means = [np.mean([s[key] for s in solved], axis=0) for key in ("rare", "frequent", "within_bias")]
    blocks = [Block(*parts) for parts in zip(task.groups, topology, means[:2], strict=True)]
    return Levels(fronts, TermHead(blocks, means[2]))


def clustering(task: Task, topology: Topology, number: int) -> dict[str, np.ndarray]:
    """A clustering, the head of its clusters, and SVMs of the labels in them."""
    plan, seed, shown = task.plan, task.seed + number, task.bar(f"clusters {number}")
    of = cluster_labels(task.x, task.targets, plan.clusters, seed)
    members = members_of(task.targets, of)
    clusters = solve_clusters(
        task.wide, members, plan.cluster_fan_in, most=plan.cluster_rows, seed=seed, progress=shown
    )
    (block,) = clusters.blocks
    front = {"of": of, "indices": block.indices, "weight": block.weight, "bias": clusters.bias}
    return front | _within(task, topology, of, members, number)


def on_all_rows(
    task: Task, topology: Topology, number: int, solved: dict[str, np.ndarray], known: np.ndarray
) -> dict[str, np.ndarray]:
    """A clustering that was ``solved`` on a part of the task's rows, with the labels in it solved on all of them.

    The head of the clusters stays: their rows are many. A label that is not ``known [L]`` to the part goes to the cluster
    that its rows score highest.
    """
    of, later = solved["of"].copy(), np.flatnonzero(~known & (task.frequencies > 0))
    if len(later):
        own = task.targets[:, later].tocsr()
        rows = np.flatnonzero(np.diff(own.indptr))
        said = Level(_clusters(solved), of, np.ones(1, np.float32)).log_likelihoods(task.x[rows])
        of[later] = (own[rows].T @ said).argmax(axis=1)
    return solved | {"of": of} | _within(task, topology, of, members_of(task.targets, of), number)


def _clusters(solved: dict[str, np.ndarray]) -> TermHead:
    labels = np.arange(len(solved["bias"]))
    return TermHead([Block(labels, solved["indices"], solved["weight"])], solved["bias"])


def _within(
    task: Task, topology: Topology, of: np.ndarray, members: sp.csc_matrix, number: int
) -> dict[str, np.ndarray]:
    own = [Block(labels, indices, indices) for labels, indices in zip(task.groups, topology, strict=True)]
    shown, most = task.bar(f"labels in clusters {number}"), 2 * task.plan.cluster_rows
    within = solve_within(task.wide, task.targets, members, of, own, most=most, seed=task.seed + number, progress=shown)
    weights = [block.weight for block in within.blocks]
    return {"rare": weights[0], "frequent": weights[1], "within_bias": within.bias}


@dataclass
class Chosen:
    """Settings, with what held-out rows say of them. ``costs``: those on the way to the last, which counts; ``flat``: the
    mixture without levels."""

    topology: Topology
    costs: tuple[float, ...]
    mixture: Mixture
    svm: TermHead
    value: float
    name: str
    judged: tuple[np.ndarray, np.ndarray]
    flat: Mixture
    calibrates: bool = False
    clusterings: int = 0
    lines: list[str] = field(default_factory=list)


@dataclass
class Trials:
    """Settings tried on ``task``, judged by rows ``x [H, D]`` and their labels ``targets [H, L]``.

    Args:
        found: rows that the labels learn from.
        topology: terms of the labels, at the largest number of connections.
        tail: weight of PSP@k against P@k.
    """

    task: Task
    found: Examples
    topology: Topology
    x: sp.csr_matrix
    targets: sp.csr_matrix
    tail: float
    propensity: tuple[float, float]
    stages: Stages
    tried: list[Chosen] = field(default_factory=list)
    solved: list[dict[str, np.ndarray]] = field(default_factory=list)  # clusterings

    def choose(self) -> Chosen:
        """The cost at the fewest connections; then more of them, first of frequent labels, then clusterings in front, as
        long as they pay."""
        best = self._connections(self._cost())
        for _ in range(self.task.plan.clusterings if best.calibrates else 0):
            more = self._with_levels(best)
            if more.value < best.value + _WORTH:
                break
            best, brought = more, more.value - best.value
            if brought < self.task.plan.further:
                break
        said = "; ".join(f"{entry.name} {entry.value:.2f}" for entry in self.tried)
        best.lines = [
            f"chosen on {self.x.shape[0]:,} held-out rows: {connections(self.task, best.topology)}; {best.name}",
            f"tried ({_formula(self.tail)}): {said}",
            f"refitted on all {self.task.x.shape[0] + self.x.shape[0]:,} rows",
        ]
        return best

    def _cost(self) -> Chosen:
        plan = self.task.plan
        rare, frequent = plan.rare[0], plan.frequent[0]
        own = self._terms(rare, frequent)
        solved = self.stages("costs", lambda: self.task.svms(self.found, own, plan.costs, "trying costs"))
        best: Chosen | None = None
        for i in range(len(plan.costs)):
            other = self._judged(own, plan.costs[: i + 1], {key: values[i] for key, values in solved.items()})
            if best is not None and other.value <= best.value:
                break
            best = other
        assert best is not None
        return best

    def _connections(self, best: Chosen) -> Chosen:
        plan, sizes = self.task.plan, [len(labels) for labels in self.task.groups]
        for frequent in plan.frequent[1:] if sizes[1] else ():
            more = self._flat(plan.rare[0], frequent, best.costs[-1:])
            if more.value < best.value + _WORTH:
                break
            best = more
        frequent = best.topology[1].shape[1]
        for rare in plan.rare[1:] if sizes[0] else ():
            more = self._flat(rare, frequent, best.costs[-1:])
            if more.value < best.value + _WORTH:
                break
            best = more
        return best

    def _flat(self, rare: int, frequent: int, costs: tuple[float, ...]) -> Chosen:
        own, name = self._terms(rare, frequent), f"K={rare}/{frequent}"
        solved = self.stages(name, lambda: self.task.svm(self.found, own, costs, f"trying {name}"))
        return self._judged(own, costs, solved)

    def _terms(self, rare: int, frequent: int) -> Topology:
        return [np.ascontiguousarray(t[:, :k]) for t, k in zip(self.topology, (rare, frequent), strict=True)]

    def _judged(self, own: Topology, costs: tuple[float, ...], solved: dict[str, np.ndarray]) -> Chosen:
        rare, frequent = (indices.shape[1] for indices in own)
        name = f"K={rare if rare == frequent else f'{rare}/{frequent}'}, cost {costs[-1]:g}"
        svm = self.task.head(own, solved)
        held = self._pairs(svm, own, None)
        mixture, value, how = best_mixture(held, self.tail)
        chosen = Chosen(own, costs, mixture, svm, value, f"{name}, {how}", held.judged(mixture), mixture)
        self.tried.append(replace(chosen, calibrates=held.calibrates))
        return self.tried[-1]

    def _with_levels(self, best: Chosen) -> Chosen:
        own, number = best.topology, len(self.solved) + 1
        self.solved.append(self.stages(f"clustering {number}", partial(clustering, self.task, own, number)))
        held = self._pairs(best.svm, own, levels_of(self.task, own, self.solved))
        mixture, value, how = best_mixture(held, self.tail)
        name = f"cost {best.costs[-1]:g}, {number} x {len(self.solved[0]['bias'])} clusters in front, {how}"
        more = replace(best, mixture=mixture, value=value, name=name, judged=held.judged(mixture))
        self.tried.append(replace(more, clusterings=number))
        return self.tried[-1]

    def _pairs(self, svm: TermHead, topology: Topology, levels: Levels | None) -> Pairs:
        task = self.task
        side = task.centroid(topology)
        return pairs(self.x, self.targets, svm, side, task.frequencies, task.x.shape[0], self.propensity, levels)


def _formula(tail: float) -> str:
    parts = [f"{weight:g} x mean {name}@1,3,5" for weight, name in ((1 - tail, "P"), (tail, "PSP")) if weight]
    return " + ".join(parts)
