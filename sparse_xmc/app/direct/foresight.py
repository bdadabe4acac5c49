"""Whether a direct run fits into the memory that it may take, told before its work."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.memory import Predicted, allowed_bytes, predicted, resident_bytes, solver_bytes
from sparse_xmc.app.splits import open_data
from sparse_xmc.data import Features
from sparse_xmc.data.survey import Survey, count_lines, survey
from sparse_xmc.solver.plan import Plan, plan_for

_SWOLLEN = 100  # bytes of memory that a byte of a (compressed) file may come to, at most


def surveyed(config: TrainingConfig, source: Any) -> Survey | None:
    """A split, looked over: texts in lines whose terms are single words, or features, which are in memory; None: another."""
    if isinstance(source, Features):
        rows, width = source.matrix.shape
        labels, entries = source.labels, int(np.count_nonzero(source.matrix.data))
        return Survey(rows, entries, width, len(labels.names), len(labels.ids))
    words = config.max_ngram == 1 and not config.hashed and not config.char_ngrams
    if not words or getattr(source, "unit", None) != "line" or source.source.is_folder:
        return None
    return survey(source, count_lines(source.source), config.min_df, config.max_features)


def surveyed_test(config: TrainingConfig) -> Survey | None:
    """The test split, looked over, where there is one in a file that can be read twice."""
    if config.test is None or not os.path.isfile(config.test):
        return None
    return surveyed(config, open_data(config, config.test, config.test_labels, texts=False))


def prediction(config: TrainingConfig, sizes: Survey, test: Survey | None = None) -> Predicted:
    """The memory of a run on splits that were looked over.

    Raises:
        ValueError: the head's options cannot be met.
    """
    rows = max(1, round(sizes.positives / max(sizes.labels, 1)))
    frequencies = np.full(sizes.labels, rows)
    plan = plan_for(
        config.effort,
        frequencies,
        max(sizes.terms, 1),
        fan_in=config.fan_in,
        memory=config.head_memory,
        entries=sizes.entries / max(sizes.rows, 1),
        rows=sizes.rows,
    )
    return predicted(sizes, plan, test)


def check_before_reading(config: TrainingConfig, source: Any) -> None:
    """Raises:
    ValueError: reading, solving or evaluating would take more memory than is allowed.
    """
    allowed = allowed_bytes(config.memory_limit)
    if allowed is None or getattr(source, "unit", None) != "line":
        return
    size = os.path.getsize(source.source.local)
    if config.test is not None and os.path.isfile(config.test):
        size += os.path.getsize(config.test)
    if size * _SWOLLEN < allowed[0]:
        return
    sizes = surveyed(config, source)
    if sizes is not None and sizes.rows:
        _compare(prediction(config, sizes, surveyed_test(config)).peak, allowed)


def check_before_solving(config: TrainingConfig, sizes: Survey, plan: Plan) -> None:
    """The same once the data are in memory, whose sizes are known.

    Raises:
        ValueError: solving would take more memory than is allowed.
    """
    allowed, now = allowed_bytes(config.memory_limit), resident_bytes()
    if allowed is not None and now is not None:
        _compare(now + sum(solver_bytes(sizes, plan).values()), allowed)


def _compare(needed: int, allowed: tuple[int, str]) -> None:
    if needed > allowed[0]:
        raise ValueError(
            f"the run is predicted to take {needed / 2**20:,.0f} MiB of memory, {allowed[1]} allows "
            f"{max(allowed[0], 0) / 2**20:,.0f} MiB: fewer connections (fan_in) or terms (max_features, min_df) take less"
        )
