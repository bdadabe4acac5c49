"""The direct solver: from sparse rows and labels to a fixed fan-in head, in the settings that held-out rows ask for.

Stages: shortlists by centroids, rounds of hard negatives, topology, choice, refit on all rows. Memory is
``O(nnz + L K + N S)``: nothing of size ``L x D`` or ``N x L`` exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.centroids import centroid_weights, centroids
from sparse_xmc.solver.closed_form import closed_form, single_rows
from sparse_xmc.solver.examples import examples
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.levels import cluster_labels, members_of, solve_clusters, solve_within, widened
from sparse_xmc.solver.mixture import Levels, Mixture, Uniform, best_mixture, merged, pairs
from sparse_xmc.solver.plan import FREQUENT, Plan, Stages, unkept
from sparse_xmc.solver.settings import Settings
from sparse_xmc.solver.svm import OFFSET, select, solve

_SHORTLIST_TERMS = 64  # of a centroid that shortlists are made with
_WORTH = 0.1  # points of the objective that more connections must bring
_NEAR = -0.2  # score from which on a row is a hard negative of a later round
_FEWEST = 20  # held-out rows without which nothing is chosen
_RULE = 2.0  # share of the centroid where nothing is chosen

Topology = list[np.ndarray]  # terms of the rare labels and of the frequent ones, best first


@dataclass(frozen=True)
class Solution:
    """The head, in three lines what was chosen and why, and the same for labels that come later. Scores are log-odds where
    rows were held out.

    ``judged``: scores of the best labels of rows held out, by the head before the refit, and whether they were true.
    """

    head: TermHead
    lines: list[str]
    settings: Settings
    judged: tuple[np.ndarray, np.ndarray] | None = None


@dataclass
class Task:
    """Rows, labels and settings of a fit."""

    x: sp.csr_matrix
    targets: sp.csr_matrix
    plan: Plan
    frequent: np.ndarray
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        self.frequencies = np.asarray(self.targets.sum(axis=0)).ravel().astype(np.int64)
        self.groups = [np.flatnonzero(~self.frequent), np.flatnonzero(self.frequent)]

    @cached_property
    def wide(self) -> sp.csr_matrix:
        """The rows with a 1 behind their terms."""
        return widened(self.x)

    def bar(self, name: str) -> str | None:
        return name if self.progress else None

    def centroid(self, topology: Topology) -> TermHead:
        """Centroids at the terms of a topology."""
        blocks = []
        for labels, indices in zip(self.groups, topology, strict=True):
            blocks.append(Block(labels, indices, centroid_weights(self.x, self.targets, labels, indices)))
        return TermHead(blocks, np.zeros(len(self.frequencies), np.float32))

    def svm(self, lists: np.ndarray, topology: Topology, cost: float, name: str) -> dict[str, np.ndarray]:
        """SVM weights of both groups."""
        found, weights = examples(self.targets, lists), {}
        for key, labels, indices in zip(("rare", "frequent"), self.groups, topology, strict=True):
            shown = self.bar(f"{name}, {key} labels")
            weights[key] = solve(self.x, found, labels, indices, cost=cost, seed=self.seed, progress=shown)
        return weights

    def head(self, topology: Topology, weights: dict[str, np.ndarray]) -> TermHead:
        values = (weights["rare"], weights["frequent"])
        blocks = [Block(*parts) for parts in zip(self.groups, topology, values, strict=True)]
        return TermHead(blocks, np.full(len(self.frequencies), OFFSET))


def fit(
    x: sp.csr_matrix,
    targets: sp.csr_matrix,
    plan: Plan,
    *,
    held_out: float = 0.05,
    tail: float = 0.0,
    seed: int = 0,
    propensity: tuple[float, float] = (0.55, 1.5),
    stages: Stages = unkept,
    progress: bool = False,
) -> Solution:
    """Solves for a head on all rows, after ``held_out`` of them decided over what the plan leaves open.

    Args:
        x: ``[N, D]``, float32.
        targets: binary ``[N, L]``.
        tail: weight of PSP@k against P@k in that decision, between 0 and 1.
        stages: where results of stages are kept.
    """
    frequencies = np.asarray(targets.sum(axis=0)).ravel()
    if single_rows(frequencies):
        return _closed_form(x, targets, plan, seed)
    task = Task(x, targets, plan, frequencies >= FREQUENT, seed, progress)
    rows = np.random.default_rng(seed).permutation(x.shape[0])
    count = round(held_out * x.shape[0]) if plan.choose else 0
    if count < _FEWEST:
        return _by_rule(task, stages)
    away, kept = np.sort(rows[:count]), np.sort(rows[count:])
    part = Task(x[kept], targets[kept].tocsr(), plan, task.frequent, seed, progress)
    lists = stages("shortlists", lambda: {"labels": shortlists(part)})["labels"]
    topology = _topology(part, lists, stages)
    chosen = _choose(part, lists, topology, x[away], targets[away].tocsr(), tail, propensity, stages)
    final = [rare_terms(task, chosen.topology[0].shape[1]), chosen.topology[1]]
    whole = stages("all rows", lambda: {"labels": _lists_of_all(task, part, kept, away, lists, chosen)})["labels"]
    svm = stages("refit", lambda: task.svm(whole, final, chosen.cost, "solving"))
    solved = [
        stages(f"clustering {number}, all rows", partial(_clustering, task, final, number))
        for number in range(1, chosen.clusterings + 1)
    ]
    levels = _levels(task, final, solved)
    head = merged(task.head(final, svm), task.centroid(final), chosen.mixture, task.frequencies, levels)
    settings = Settings(final[0].shape[1], final[1].shape[1], chosen.cost, chosen.flat)
    return Solution(head, chosen.lines, settings, chosen.judged)


def _closed_form(x: sp.csr_matrix, targets: sp.csr_matrix, plan: Plan, seed: int) -> Solution:
    found = closed_form(x, targets, plan.rare[0], seed=seed)
    lines = [
        f"no label has a second row: {plan.rare[0]} connections a label in closed form, rows x size^{found.power:g}",
        "tried (P@1 of halves of rows): " + "; ".join(f"size^{power:g} {value:.2f}" for power, value in found.tried),
    ]
    return Solution(found.head, lines, Settings(plan.rare[0], plan.rare[0], power=found.power), found.judged)


def _by_rule(task: Task, stages: Stages) -> Solution:
    cost = task.plan.costs[0]
    lists = stages("shortlists", lambda: {"labels": shortlists(task)})["labels"]
    topology = _topology(task, lists, stages)
    svm = stages("refit", lambda: task.svm(lists, topology, cost, "solving"))
    mixture = Uniform(_RULE)
    head = merged(task.head(topology, svm), task.centroid(topology), mixture, task.frequencies)
    settings = Settings(topology[0].shape[1], topology[1].shape[1], cost, mixture)
    how = f"{_connections(task, topology)}, cost {cost:g}, centroid x {_RULE:g}"
    return Solution(head, [f"nothing held out: {how}"], settings)


def _connections(task: Task, topology: Topology) -> str:
    names = (f"of less than {FREQUENT} rows", f"of {FREQUENT} rows and more")
    parts = [
        f"{indices.shape[1]} connections for {len(indices):,} labels {name}"
        for indices, name in zip(topology, names, strict=True)
        if len(indices)
    ]
    return ", ".join(parts)


def shortlists(task: Task) -> np.ndarray:
    """Negatives of each row ``[N, S]``: near ones by centroids, a sample, and those of later rounds."""
    plan, D = task.plan, task.x.shape[1]
    near = centroids(task.x, task.targets, min(D, _SHORTLIST_TERMS))
    index = TermHead([near], np.zeros(len(near.labels), np.float32)).invert(D)
    lists = [index.topk(task.x, plan.shortlist, progress=task.bar("shortlists"))[1]]
    lists.append(_sample(task, task.x.shape[0]))
    if plan.rounds > 1:
        first = np.hstack(lists)
        topology = [rare_terms(task, plan.rare[0]), frequent_terms(task, first, plan.frequent[0])]
        centroid = task.centroid(topology)
    for r in range(1, plan.rounds):
        weights = task.svm(np.hstack(lists), topology, plan.costs[0], f"solving, round {r}")
        lean = merged(task.head(topology, weights), centroid, Uniform(1.0), task.frequencies).invert(D)
        scores, labels = lean.topk(task.x, plan.again, progress=task.bar(f"shortlists, round {r + 1}"))
        labels[scores < _NEAR] = -1
        lists.append(labels)
    return np.hstack(lists)


def _sample(task: Task, rows: int) -> np.ndarray:
    rng = np.random.default_rng([task.seed, rows])
    return rng.integers(0, len(task.frequencies), (rows, task.plan.sample)).astype(np.int32)


def rare_terms(task: Task, fan_in: int) -> np.ndarray:
    """Terms of the rare labels: the heaviest ones of their centroids."""
    return centroids(task.x, task.targets, fan_in, task.groups[0]).indices


def frequent_terms(task: Task, lists: np.ndarray, fan_in: int) -> np.ndarray:
    """Terms of the frequent labels: those that SVMs on many more of them weigh most."""
    prior = centroids(task.x, task.targets, min(task.x.shape[1], 2 * fan_in), task.groups[1])
    found = examples(task.targets, lists)
    return select(task.x, found, prior, fan_in, seed=task.seed, progress=task.bar("topology"))


def _topology(task: Task, lists: np.ndarray, stages: Stages) -> Topology:
    learned = stages("topology", lambda: {"indices": frequent_terms(task, lists, task.plan.frequent[-1])})
    return [rare_terms(task, task.plan.rare[-1]), learned["indices"]]


def _levels(task: Task, topology: Topology, solved: Sequence[dict[str, np.ndarray]]) -> Levels | None:
    """What ``_clustering`` found, together."""
    if not solved:
        return None
    fronts = [
        (TermHead([Block(np.arange(len(s["bias"])), s["indices"], s["weight"])], s["bias"]), s["of"]) for s in solved
    ]
    means = [np.mean([s[key] for s in solved], axis=0) for key in ("rare", "frequent", "within_bias")]
    blocks = [Block(*parts) for parts in zip(task.groups, topology, means[:2], strict=True)]
    return Levels(fronts, TermHead(blocks, means[2]))


def _clustering(task: Task, topology: Topology, number: int) -> dict[str, np.ndarray]:
    x, targets, seed = task.wide, task.targets, task.seed + number
    of = cluster_labels(task.x, targets, task.plan.clusters, seed)
    members, shown = members_of(targets, of), task.bar(f"clusters {number}")
    most = task.plan.cluster_rows
    clusters = solve_clusters(x, members, task.plan.cluster_fan_in, most=most, seed=seed, progress=shown)
    own = [Block(labels, indices, indices) for labels, indices in zip(task.groups, topology, strict=True)]
    shown = task.bar(f"labels in clusters {number}")
    within = solve_within(x, targets, members, of, own, most=2 * most, seed=seed, progress=shown)
    (block,) = clusters.blocks
    weights = {"rare": within.blocks[0].weight, "frequent": within.blocks[1].weight, "within_bias": within.bias}
    return {"of": of, "indices": block.indices, "weight": block.weight, "bias": clusters.bias, **weights}


@dataclass
class _Chosen:
    """``flat``: the mixture without levels."""

    topology: Topology
    cost: float
    mixture: Mixture
    svm: TermHead
    value: float
    name: str
    judged: tuple[np.ndarray, np.ndarray]
    flat: Mixture
    calibrates: bool = False
    clusterings: int = 0
    lines: list[str] = field(default_factory=list)


def _choose(
    task: Task, lists: np.ndarray, topology: Topology, x: sp.csr_matrix, targets: sp.csr_matrix, tail: float,
    propensity: tuple[float, float], stages: Stages,
) -> _Chosen:  # fmt: skip
    """The cost at the fewest connections; then more of them, first of frequent labels, then clusterings in front, as long
    as they pay."""
    tried: list[_Chosen] = []
    solved: list[dict[str, np.ndarray]] = []  # clusterings

    def judge(rare: int, frequent: int, cost: float) -> _Chosen:
        own = [np.ascontiguousarray(t[:, :k]) for t, k in zip(topology, (rare, frequent), strict=True)]
        name = f"K={rare}/{frequent}, cost {cost:g}"
        svm = task.head(own, stages(name, lambda: task.svm(lists, own, cost, f"trying {name}")))
        held = pairs(x, targets, svm, task.centroid(own), task.frequencies, task.x.shape[0], propensity)
        mixture, value, how = best_mixture(held, tail)
        chosen = _Chosen(own, cost, mixture, svm, value, f"{name}, {how}", held.judged(mixture), mixture)
        tried.append(replace(chosen, calibrates=held.calibrates))
        return tried[-1]

    def judge_levels(best: _Chosen) -> _Chosen:
        own, number = best.topology, len(solved) + 1
        solved.append(stages(f"clustering {number}", partial(_clustering, task, own, number)))
        levels = _levels(task, own, solved)
        held = pairs(x, targets, best.svm, task.centroid(own), task.frequencies, task.x.shape[0], propensity, levels)
        mixture, value, how = best_mixture(held, tail)
        name = f"cost {best.cost:g}, {number} x {len(solved[0]['bias'])} clusters in front, {how}"
        more = replace(best, mixture=mixture, value=value, name=name, judged=held.judged(mixture))
        tried.append(replace(more, clusterings=number))
        return tried[-1]

    plan, sizes = task.plan, [len(labels) for labels in task.groups]
    rare, frequent = plan.rare[0], plan.frequent[0]
    best = judge(rare, frequent, plan.costs[0])
    for cost in plan.costs[1:]:
        other = judge(rare, frequent, cost)
        if other.value <= best.value:
            break
        best = other
    for frequent in plan.frequent[1:] if sizes[1] else ():
        more = judge(rare, frequent, best.cost)
        if more.value < best.value + _WORTH:
            break
        best = more
    frequent = best.topology[1].shape[1]
    for rare in plan.rare[1:] if sizes[0] else ():
        more = judge(rare, frequent, best.cost)
        if more.value < best.value + _WORTH:
            break
        best = more
    for _ in range(plan.clusterings if best.calibrates else 0):
        more = judge_levels(best)
        if more.value < best.value + _WORTH:
            break
        best = more
    best.lines = [
        f"chosen on {x.shape[0]:,} held-out rows: {_connections(task, best.topology)}; {best.name}",
        "tried (" + _formula(tail) + "): " + "; ".join(f"{entry.name} {entry.value:.2f}" for entry in tried),
        f"refitted on all {task.x.shape[0] + x.shape[0]:,} rows",
    ]
    return best


def _formula(tail: float) -> str:
    parts = [f"{weight:g} x mean {name}@1,3,5" for weight, name in ((1 - tail, "P"), (tail, "PSP")) if weight]
    return " + ".join(parts)


def _lists_of_all(
    task: Task, part: Task, kept: np.ndarray, away: np.ndarray, lists: np.ndarray, chosen: _Chosen
) -> np.ndarray:
    """Negatives of all rows: those that were learned with, the chosen head's for rows held out, and for labels that only
    those rows have the nearest rows by centroids."""
    L, D = len(task.frequencies), task.x.shape[1]
    head = merged(chosen.svm, part.centroid(chosen.topology), chosen.flat, part.frequencies)
    labels = np.full((task.x.shape[0], lists.shape[1]), -1, np.int32)
    labels[kept] = lists
    sample = _sample(task, len(away))
    near = head.invert(D).topk(task.x[away], max(1, lists.shape[1] - sample.shape[1]))[1]
    filled = np.hstack([near, sample])[:, : lists.shape[1]]
    labels[away, : filled.shape[1]] = filled
    missing = np.flatnonzero((part.frequencies == 0) & (task.frequencies > 0))
    if len(missing):
        block = centroids(task.x, task.targets, min(D, _SHORTLIST_TERMS), missing)
        own = Block(np.arange(len(missing)), block.indices, block.weight)
        index = TermHead([own], np.zeros(len(missing), np.float32)).invert(D)
        extra = index.topk(task.x, max(2, round(task.plan.shortlist * len(missing) / L)))[1]
        labels = np.hstack([labels, missing[extra].astype(np.int32)])
    return labels
