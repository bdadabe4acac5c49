"""The direct solver: from sparse rows and labels to a fixed fan-in head, in the settings that held-out rows ask for.

Stages: shortlists by centroids, rounds of hard negatives, topology, choice, refit on all rows. Memory is
``O(nnz + L K + N S)``: nothing of size ``L x D`` or ``N x L`` exists. Where labels and rows are few (``Plan.whole``) all rows
are examples of every label instead of shortlists: ``O(nnz + L K + N L)``, within fixed bounds of ``N L`` and ``L K``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.choice import Chosen, Trials, levels_of, on_all_rows
from sparse_xmc.solver.closed_form import closed_form, single_rows
from sparse_xmc.solver.examples import Examples, everything, examples
from sparse_xmc.solver.head import TermHead
from sparse_xmc.solver.mixture import Uniform, merged
from sparse_xmc.solver.negatives import frequent_terms, lists_of_all, rare_terms, shortlists, terms_of_all
from sparse_xmc.solver.plan import FREQUENT, Plan, Stages, held_out_rows, unkept
from sparse_xmc.solver.settings import Settings
from sparse_xmc.solver.task import Task, Topology, connections

_FEWEST = 20  # held-out rows without which nothing is chosen
# where nothing is chosen: share of the centroid and costs, and the same of SVMs on all rows
_RULE, _COSTS = 2.0, (1.0,)
_RULE_OF_ALL, _COSTS_OF_ALL = 1.0, (0.25, 0.5)


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


def fit(
    x: sp.csr_matrix,
    targets: sp.csr_matrix,
    plan: Plan,
    *,
    held_out: float | None = None,
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
        held_out: share of the rows; None: 5 %, but 2,000 rows at least, or a fifth of few rows.
        tail: weight of PSP@k against P@k in that decision, between 0 and 1.
        stages: where results of stages are kept.
    """
    frequencies = np.asarray(targets.sum(axis=0)).ravel()
    if single_rows(frequencies):
        return _closed_form(x, targets, plan, seed)
    task = Task(x, targets, plan, frequencies >= FREQUENT, seed, progress)
    rows = np.random.default_rng(seed).permutation(x.shape[0])
    count = held_out_rows(x.shape[0], held_out) if plan.choose else 0
    if count < _FEWEST:
        return _by_rule(task, stages)
    away, kept = np.sort(rows[:count]), np.sort(rows[count:])
    solve = _of_all_rows if plan.whole else _of_shortlists
    return solve(task, kept, away, (tail, propensity, stages))


def _split(task: Task, kept: np.ndarray, away: np.ndarray, rest: tuple[Any, ...]) -> tuple[Task, tuple[Any, ...]]:
    """The rows to learn from, and those that judge with what ``Trials`` wants beside them."""
    part = Task(task.x[kept], task.targets[kept].tocsr(), task.plan, task.frequent, task.seed, task.progress)
    return part, (task.x[away], task.targets[away].tocsr(), *rest)


def _of_shortlists(task: Task, kept: np.ndarray, away: np.ndarray, rest: tuple[Any, ...]) -> Solution:
    """Where a label learns from its own rows and from those that are near it."""
    stages = rest[-1]
    chosen, fronts, lists, known = _chosen(task, kept, away, rest)
    final = [rare_terms(task, chosen.topology[0].shape[1]), chosen.topology[1]]
    svm = stages("solved", lambda: task.svm(examples(task.targets, lists), final, chosen.costs, "solving"))
    solved = [
        stages(f"clustering {i + 1}, all rows", partial(on_all_rows, task, final, i + 1, front, known))
        for i, front in enumerate(fronts)
    ]
    levels = levels_of(task, final, solved)
    head = merged(task.head(final, svm), task.centroid(final), chosen.mixture, task.frequencies, levels)
    settings = Settings(final[0].shape[1], final[1].shape[1], chosen.costs[-1], chosen.flat)
    return Solution(head, chosen.lines, settings, chosen.judged)


def _chosen(
    task: Task, kept: np.ndarray, away: np.ndarray, rest: tuple[Any, ...]
) -> tuple[Chosen, list[dict[str, np.ndarray]], np.ndarray, np.ndarray]:
    """What the rows held ``away`` choose, the clusterings in it as the others solve them, negatives of all rows, and the
    labels that the others know."""
    stages = rest[-1]
    part, judges = _split(task, kept, away, rest)
    lists = _lists(part, stages)
    trials = Trials(part, examples(part.targets, lists), _topology(part, lists, stages), *judges)
    chosen = trials.choose()
    fronts = trials.solved[: chosen.clusterings]
    del trials  # and what else was tried
    near = merged(chosen.svm, part.centroid(chosen.topology), chosen.flat, part.frequencies)
    whole = stages("all rows", lambda: {"labels": lists_of_all(task, part, kept, away, lists, near)})["labels"]
    return chosen, fronts, whole, part.frequencies > 0


def _closed_form(x: sp.csr_matrix, targets: sp.csr_matrix, plan: Plan, seed: int) -> Solution:
    found = closed_form(x, targets, plan.rare[0], seed=seed)
    lines = [
        f"no label has a second row: {plan.rare[0]} connections a label in closed form, rows x size^{found.power:g}",
        "tried (P@1 of halves of rows): " + "; ".join(f"size^{power:g} {value:.2f}" for power, value in found.tried),
    ]
    return Solution(found.head, lines, Settings(plan.rare[0], plan.rare[0], power=found.power), found.judged)


def _of_all_rows(task: Task, kept: np.ndarray, away: np.ndarray, rest: tuple[Any, ...]) -> Solution:
    """Where every row is an example of every label."""
    stages, fan_in = rest[-1], task.plan.rare[0]
    chosen = _chosen_of_all(task, kept, away, rest)
    found = everything(task.targets)
    topology = _terms(task, found, stages)
    svm = stages("solved", lambda: task.svm(found, topology, chosen.costs, "solving"))
    head = merged(task.head(topology, svm), task.centroid(topology), chosen.mixture, task.frequencies)
    settings = Settings(fan_in, fan_in, chosen.costs[-1], chosen.mixture, whole=True)
    return Solution(head, chosen.lines, settings, chosen.judged)


def _chosen_of_all(task: Task, kept: np.ndarray, away: np.ndarray, rest: tuple[Any, ...]) -> Chosen:
    part, judges = _split(task, kept, away, rest)
    found = everything(part.targets)
    return Trials(part, found, _terms(part, found, rest[-1]), *judges).choose()


def _terms(task: Task, found: Examples, stages: Stages) -> Topology:
    def work() -> dict[str, np.ndarray]:
        return dict(zip(("rare", "frequent"), terms_of_all(task, found, task.plan.rare[0]), strict=True))

    kept = stages(f"topology by {task.x.shape[0]} rows", work)
    return [kept["rare"], kept["frequent"]]


def _by_rule(task: Task, stages: Stages) -> Solution:
    costs = _COSTS_OF_ALL if task.plan.whole else _COSTS
    if task.plan.whole:
        found = everything(task.targets)
        topology, mixture = _terms(task, found, stages), Uniform(_RULE_OF_ALL)
    else:
        lists = _lists(task, stages)
        found = examples(task.targets, lists)
        topology, mixture = _topology(task, lists, stages), Uniform(_RULE)
    svm = stages("solved", lambda: task.svm(found, topology, costs, "solving"))
    head = merged(task.head(topology, svm), task.centroid(topology), mixture, task.frequencies)
    settings = Settings(topology[0].shape[1], topology[1].shape[1], costs[-1], mixture, whole=task.plan.whole)
    how = f"{connections(task, topology)}, cost {costs[-1]:g}, centroid x {mixture.share:g}"
    return Solution(head, [f"nothing held out: {how}"], settings)


def _lists(task: Task, stages: Stages) -> np.ndarray:
    return stages(f"shortlists of {task.x.shape[0]} rows", lambda: {"labels": shortlists(task)})["labels"]


def _topology(task: Task, lists: np.ndarray, stages: Stages) -> Topology:
    learned = stages("topology", lambda: {"indices": frequent_terms(task, lists, task.plan.frequent[-1])})
    return [rare_terms(task, task.plan.rare[-1]), learned["indices"]]
