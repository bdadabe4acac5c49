"""Rows that a label learns to tell itself from, and the terms it does so by."""

from __future__ import annotations

import numpy as np

from sparse_xmc.solver.centroids import centroids
from sparse_xmc.solver.examples import Examples, examples
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.mixture import Uniform, merged
from sparse_xmc.solver.svm import select, select_with_bias
from sparse_xmc.solver.task import Task, Topology

_SHORTLIST_TERMS = 64  # of a centroid that shortlists are made with
_COST = 1.0  # of SVMs that only find negatives
_NEAR = -0.2  # score from which on a row is a hard negative of a later round


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
        weights = task.svm(examples(task.targets, np.hstack(lists)), topology, (_COST,), f"solving, round {r}")
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


def terms_of_all(task: Task, found: Examples, fan_in: int) -> Topology:
    """Terms of all labels by SVMs on all rows: all of them, or those that weigh most."""
    D = task.x.shape[1]
    if fan_in >= D:
        return [np.tile(np.arange(D, dtype=np.int32), (len(labels), 1)) for labels in task.groups]
    options = {"seed": task.seed, "progress": task.bar("topology")}
    return [select_with_bias(task.wide, found, labels, fan_in, **options) for labels in task.groups]


def lists_of_all(
    task: Task, part: Task, kept: np.ndarray, away: np.ndarray, lists: np.ndarray, head: TermHead
) -> np.ndarray:
    """Negatives of all rows: those that were learned with, the chosen head's for rows held out, and for labels that only
    those rows have the nearest rows by centroids."""
    L, D = len(task.frequencies), task.x.shape[1]
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
