"""Labels that come to a solved head later, solved by the settings that the head was solved with."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.centroids import centroids
from sparse_xmc.solver.closed_form import row_sizes
from sparse_xmc.solver.examples import everything, examples
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.mixture import merged
from sparse_xmc.solver.negatives import frequent_terms, rare_terms, shortlists, terms_of_all
from sparse_xmc.solver.plan import Plan
from sparse_xmc.solver.settings import Settings
from sparse_xmc.solver.task import Task


def grown(known: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Labels worth solving again: of which there are at least a tenth more rows ``now [L]`` than were ``known [L]``."""
    return np.flatnonzero((now > known) & (10 * now >= 11 * known))


def fit_labels(
    x: sp.csr_matrix,
    targets: sp.csr_matrix,
    settings: Settings,
    plan: Plan,
    *,
    frequent: np.ndarray,
    share: float,
    seed: int = 0,
    progress: bool = False,
) -> TermHead:
    """A head of the labels in ``targets`` alone, whose scores compare with those of the head that has the settings.

    Args:
        x: rows ``[N, D]``.
        targets: binary ``[N, n]``, each label with a row.
        plan: of the whole head; of its numbers of connections, costs and choice nothing is used.
        frequent: whether a label has the connections of a frequent one, ``[n]``.
        share: n over the labels of the whole head: negatives that a row has among these labels are in proportion.
    """
    if settings.power is not None:
        return _closed_form(x, targets, settings.rare, settings.power)
    rows = np.diff(targets.tocsc().indptr)
    lists = {name: max(2, round(share * getattr(plan, name))) for name in ("shortlist", "again", "sample")}
    own = dataclasses.replace(plan, rare=(settings.rare,), frequent=(settings.frequent,), **lists)
    assert settings.cost is not None
    task = Task(x, targets, own, frequent, seed, progress)
    if settings.whole:
        found = everything(targets)
        topology = terms_of_all(task, found, settings.rare)
    else:
        negatives = shortlists(task)
        found = examples(targets, negatives)
        topology = [rare_terms(task, settings.rare), frequent_terms(task, negatives, settings.frequent)]
    weights = task.svm(found, topology, (settings.cost,), "solving")
    return merged(task.head(topology, weights), task.centroid(topology), settings.mixture, rows)


def _closed_form(x: sp.csr_matrix, targets: sp.csr_matrix, fan_in: int, power: float) -> TermHead:
    block = centroids(x, targets, fan_in)
    weight = block.weight * row_sizes(x, targets)[:, None] ** np.float32(power)
    return TermHead([Block(block.labels, block.indices, weight)], np.zeros(targets.shape[1], np.float32))
