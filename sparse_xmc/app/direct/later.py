"""A directly solved model with more labels or more rows: what is new is solved, the rest stays bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.model import TermModel
from sparse_xmc.app.direct.split import TermSplit
from sparse_xmc.solver.head import Block, Level, TermHead
from sparse_xmc.solver.later import fit_labels, grown
from sparse_xmc.solver.plan import FREQUENT, Plan


def solve_later(data: TermSplit, config: TrainingConfig, plan: Plan, report: Callable[[str], object]) -> Bundle:
    """Solves new labels, and those of which there are at least a tenth more rows than the model was trained on.

    Raises:
        ValueError: the model does not tell how it was solved, or the head would take more than ``head_memory``.
    """
    beginning = data.beginning
    assert beginning is not None
    base, x, targets = beginning.bundle, data.inputs.matrix, data.targets
    settings = base.settings
    if settings is None:
        raise ValueError(f"the model in {config.from_} does not tell how it was solved: train anew, without from")
    assert isinstance(base.model, TermModel)
    old = _kept(base.model.solution(), beginning.kept)
    counts, first = data.counts, len(beginning.kept)
    again = grown(beginning.frequencies[:first], counts[:first])
    wanted = np.concatenate([again, np.arange(first, len(counts))])
    frequent = counts[wanted] >= FREQUENT
    frequent[: len(again)] = _connections(old)[again] == settings.frequent  # a label keeps its number of connections
    widths = np.where(frequent[len(again) :], settings.frequent, settings.rare)
    _check_memory(config.head_memory, [*_connections(old), *widths])
    report(
        f"{first - len(again):,} labels stay as they are, {len(again):,} have a tenth more rows and are solved again, "
        f"{len(wanted) - len(again):,} are new"
    )
    head = old
    if len(wanted):
        later = fit_labels(
            x,
            targets[:, wanted].tocsr(),
            settings,
            plan,
            frequent=frequent,
            share=len(wanted) / len(counts),
            seed=config.seed,
            progress=config.progress,
        )
        head = _joined(old, later, wanted, first)
    return data.bundle(config, TermModel.from_solution(head, data.num_features), base.calibration, settings)


def _kept(head: TermHead, kept: np.ndarray) -> TermHead:
    """The head of some of its labels, numbered anew."""
    blocks = []
    for block in head.blocks:
        own = np.isin(block.labels, kept)
        blocks.append(Block(np.searchsorted(kept, block.labels[own]), block.indices[own], block.weight[own]))
    levels = [Level(level.clusters, level.of[kept], level.share[kept]) for level in head.levels]
    return TermHead([block for block in blocks if len(block.labels)], head.bias[kept], levels)


def _connections(head: TermHead) -> np.ndarray:
    """Connections of each label ``[L]``."""
    result = np.zeros(len(head.bias), dtype=np.int64)
    for block in head.blocks:
        result[block.labels] = block.indices.shape[1]
    return result


def _check_memory(allowed: int | None, connections: list[int]) -> None:
    needed = 8 * sum(connections) + 4 * len(connections)
    if allowed is not None and needed > allowed:
        raise ValueError(f"head_memory={allowed:,} is too little for {len(connections):,} labels: {needed:,} bytes")


def _joined(old: TermHead, later: TermHead, wanted: np.ndarray, first: int) -> TermHead:
    """``old`` with the labels of ``later``, whose label ``i`` is ``wanted[i]``: those from ``first`` on are new.

    A later label is solved without clusters: no cluster has a share in it.
    """
    bias = np.concatenate([old.bias, np.zeros(int((wanted >= first).sum()), np.float32)])
    bias[wanted] = later.bias
    blocks = [Block(b.labels, b.indices.copy(), b.weight.copy()) for b in old.blocks]
    for part in later.blocks:
        labels = wanted[part.labels]
        for block in blocks:
            position = np.searchsorted(block.labels, labels)
            there = (position < len(block.labels)) & (
                block.labels[np.minimum(position, len(block.labels) - 1)] == labels
            )
            if there.any():  # else it may have another number of connections
                block.indices[position[there]], block.weight[position[there]] = part.indices[there], part.weight[there]
        new = labels >= first
        if new.any():
            blocks.append(Block(labels[new], part.indices[new], part.weight[new]))
    levels = []
    for level in old.levels:
        of, share = np.zeros(len(bias), level.of.dtype), np.zeros(len(bias), level.share.dtype)
        of[:first], share[:first] = level.of, level.share
        share[wanted] = 0
        levels.append(Level(level.clusters, of, share))
    return TermHead(blocks, bias, levels)
