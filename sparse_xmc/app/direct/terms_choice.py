"""Which terms texts are read by, where options leave that open and ``effort`` is best: words, pairs of words, runs of
characters. A sample of the training rows decides: solved at the fastest settings, judged on a tenth of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.data import TfidfFeatures
from sparse_xmc.metrics import Truth
from sparse_xmc.solver.closed_form import single_rows
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.mixture import objective
from sparse_xmc.solver.plan import plan_for

CANDIDATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("words", {}),
    ("words and pairs", {"max_ngram": 2}),
    ("words and runs of 3 to 5 characters", {"char_ngrams": "3-5"}),
)
_ROWS = 20_000  # of the sample at most
_CHARACTERS = 1 << 25  # of its texts at most, beyond which runs of characters are not tried
_SHARE, _FEWEST = 0.1, 50  # of the sample that judges, and rows without which nothing is chosen
_WORTH = 0.1  # points of the objective that further terms must bring


def is_open(config: TrainingConfig) -> bool:
    """Whether the options leave the kind of terms to the run."""
    left = config.max_ngram == 1 and not config.char_ngrams and not config.hashed
    return config.effort == "best" and config.from_ is None and left


def choose_terms(
    config: TrainingConfig, texts: Iterable[str], targets: sp.csr_matrix, report: Callable[[str], object]
) -> TrainingConfig:
    """The configuration with the terms that a sample of the rows is solved best by.

    Args:
        texts: of the training rows.
        targets: of the same ``[N, L]``.
    """
    rows = np.random.default_rng([config.seed, 3]).permutation(targets.shape[0])[:_ROWS]
    count = round(_SHARE * len(rows))
    if count < _FEWEST or single_rows(np.bincount(targets.indices, minlength=targets.shape[1])):
        return config
    away, kept = rows[:count], rows[count:]
    wanted = np.zeros(targets.shape[0], bool)
    wanted[rows] = True
    targets = targets[:, np.unique(targets[rows].indices)].tocsr()
    sample = list(itertools.compress(texts, wanted.tolist()))
    place = np.cumsum(wanted) - 1
    tried: list[tuple[float, str, dict[str, Any]]] = []
    for name, options in CANDIDATES:
        if "char_ngrams" in options and sum(map(len, sample)) > _CHARACTERS:
            continue
        changed = dataclasses.replace(config, **options)
        x = TfidfFeatures(**changed.term_options).fit_transform(iter(sample))
        value = _judged(config, x[place[kept]], targets[kept], x[place[away]], targets[away])
        tried.append((value, name, options))
    best = tried[0]
    for other in tried[1:]:
        if other[0] > max(best[0], tried[0][0] + _WORTH):
            best = other
    said = "; ".join(f"{name} {value:.2f}" for value, name, _ in tried)
    report(f"terms: {best[1]}, by {count:,} of {len(rows):,} rows ({said})")
    return dataclasses.replace(config, **best[2])


def _judged(
    config: TrainingConfig, x: sp.csr_matrix, y: sp.csr_matrix, held: sp.csr_matrix, true: sp.csr_matrix
) -> float:
    frequencies = np.bincount(y.indices, minlength=y.shape[1])
    plan = plan_for(
        "fast",
        frequencies,
        x.shape[1],
        fan_in=config.fan_in,
        memory=config.head_memory,
        entries=x.nnz / x.shape[0],
        rows=x.shape[0],
    )
    top = fit(x, y, plan, seed=config.seed).head.invert(x.shape[1]).topk(held, 5)[1]
    top = np.pad(top, ((0, 0), (0, 5 - top.shape[1])), constant_values=-1)
    propensity = (config.propensity_a, config.propensity_b)
    truth = Truth.from_training(true, np.diff(true.indptr), frequencies, x.shape[0], *propensity)
    return objective(top, truth, config.tail)
