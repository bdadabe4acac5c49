"""Whether a direct run fits into the memory that it may take, told before its work."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.memory import Predicted, allowed_bytes, predicted, resident_bytes, solver_bytes
from sparse_xmc.app.splits import open_data
from sparse_xmc.data import Features
from sparse_xmc.data.survey import Survey, count_lines, frequent_labels, survey
from sparse_xmc.solver.plan import FREQUENT, Plan, plan_for

_SWOLLEN = 100  # bytes of memory that a byte of a (compressed) file may come to, at most


def surveyed(config: TrainingConfig, source: Any) -> Survey | None:
    """A split, looked over: texts in lines whose terms are single words, or features, which are in memory; None: another."""
    if isinstance(source, Features):
        rows, width = source.matrix.shape
        labels, entries = source.labels, int(np.count_nonzero(source.matrix.data))
        often = frequent_labels(labels.ids, 1.0, FREQUENT)
        return Survey(rows, entries, width, len(labels.names), len(labels.ids), 8.0, *often)
    words = config.max_ngram == 1 and not config.hashed and not config.char_ngrams
    if not words or getattr(source, "unit", None) != "line" or source.source.is_folder:
        return None
    return survey(source, count_lines(source.source), config.min_df, config.max_features, often=FREQUENT)


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
    plan = plan_for(
        config.effort,
        _frequencies(sizes),
        max(sizes.terms, 1),
        fan_in=config.fan_in,
        memory=config.head_memory,
        entries=sizes.entries / max(sizes.rows, 1),
        rows=sizes.rows,
    )
    return predicted(sizes, plan, test, config.held_out)


def _frequencies(sizes: Survey) -> np.ndarray:
    """Rows of each label, of all frequent ones and of all others the same."""
    frequent, rare = sizes.frequent, sizes.labels - sizes.frequent
    counts = np.full(sizes.labels, max(1, round((sizes.positives - sizes.frequent_positives) / max(rare, 1))))
    counts[rare:] = max(FREQUENT, round(sizes.frequent_positives / max(frequent, 1)))
    return counts


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
        _compare(now + sum(solver_bytes(sizes, plan, config.held_out).values()), allowed)


def _compare(needed: int, allowed: tuple[int, str]) -> None:
    if needed > allowed[0]:
        raise ValueError(
            f"the run is predicted to take {needed / 2**20:,.0f} MiB of memory, {allowed[1]} allows "
            f"{max(allowed[0], 0) / 2**20:,.0f} MiB: fewer connections (fan_in) or terms (max_features, min_df) take less"
        )
