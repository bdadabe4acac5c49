"""CPU kernels of a fixed fan-in layer whose input rows are sparse.

The batch is turned into columns once. A label then walks its own connections, and a connection meets only the rows
that hold its feature: ``L * K`` short visits and few products instead of ``B * L * K``.
Logits and slopes of one label stay in the L1 cache; a label owns its gradients, so no result depends on the number of
threads.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops._contract import Objective
from sparse_xmc.ops.cpu_kernels._csr import check_csr
from sparse_xmc.ops.cpu_kernels._head_structs import ASYMMETRIC, BCE, HINGE, LOSSES
from sparse_xmc.ops.cpu_kernels._loss_terms import asymmetric_negative, asymmetric_positive, sigmoid, softplus
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy

_TILE = 1024  # labels of one task
_APART = 64  # numbers between two arrays that are read and written in one loop: a cache line of four vectors and more
_WRITTEN = 16  # labels whose logits are written together: one cache line of a row of y
_FULL = 0.04  # share of the batch from which on a column is faster as a whole than by its nonzeros
_PRODUCT = 512  # factors 1 + exp(-|z|), at most 2 each, that a float64 product holds


class Columns(NamedTuple):
    """A batch by columns: rows and values of feature ``f`` are entries ``pointers[f]`` to ``pointers[f + 1]``.

    Columns of many rows, which most products fall to, stand in ``full[slots[f]]`` as well; other slots are -1.
    """

    pointers: np.ndarray
    rows: np.ndarray
    values: np.ndarray
    slots: np.ndarray
    full: np.ndarray


class Goal(NamedTuple):
    """``Objective`` for the kernel; ``pos_weight`` is empty where there is none, ``sample_weight`` where rows are summed
    alike and the loss can be added up over them."""

    loss: int
    pos_weight: np.ndarray
    sample_weight: np.ndarray
    gamma_pos: float
    gamma_neg: float
    clip: float


@kernel
def _columns(crow, col, values, pointers, rows, sorted_values):
    # crow [B + 1], col, values, rows, sorted_values [nnz], pointers [D + 1]
    for j in range(crow[0], crow[crow.shape[0] - 1]):
        pointers[col[j] + 1] += 1
    for feature in range(pointers.shape[0] - 1):
        pointers[feature + 1] += pointers[feature]
    for b in range(crow.shape[0] - 1):
        for j in range(crow[b], crow[b + 1]):
            position = pointers[col[j]]
            rows[position], sorted_values[position] = b, values[j]
            pointers[col[j]] = position + 1
    for feature in range(pointers.shape[0] - 1, 0, -1):
        pointers[feature] = pointers[feature - 1]
    pointers[0] = 0


@kernel
def _full_columns(pointers, rows, values, slots, full):
    # pointers [D + 1], rows, values [nnz], slots [D], full [columns, B]
    for feature in range(slots.shape[0]):
        if slots[feature] >= 0:
            column = full[slots[feature]]
            column[:] = 0
            for j in range(pointers[feature], pointers[feature + 1]):
                column[rows[j]] += values[j]


@register_jitable(inline="always")
def _exp_of_negative(value):
    """``exp(value)`` for ``value <= 0`` to about 1e-7 relative, in operations that LLVM vectorises; 0 below -87."""
    scaled = np.float32(max(value, np.float32(-87.0)) * np.float32(1.44269504088896))
    whole = np.floor(scaled)
    t = np.float32((scaled - whole) * np.float32(0.693147180559945))
    p = np.float32(1.0 / 5040.0)
    for c in (1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0):
        p = np.float32(p * t + np.float32(c))
    return np.float32(p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32))


@kernel
def _label_logits(label, columns, weight, indices, bias, group_size, z):
    """Logits of one label for all rows."""
    # weight [L, K], indices [R, K], bias [L] or [0], z [B]; columns: see there
    pointers, rows, values, slots, full = columns
    z[:] = bias[label] if bias.shape[0] > 0 else np.float32(0)
    connections = indices[label // group_size]
    for k in range(weight.shape[1]):
        feature, w = connections[k], weight[label, k]
        if slots[feature] >= 0:
            column = full[slots[feature]]
            for b in range(z.shape[0]):
                z[b] += w * column[b]
        else:
            for j in range(pointers[feature], pointers[feature + 1]):
                z[rows[j]] += w * values[j]


@kernel
def _forward(columns, weight, indices, bias, group_size, y, l0, l1):
    # y [B, L], block [_WRITTEN, B]
    B = y.shape[0]
    block = np.empty((_WRITTEN, B), np.float32)
    for start in range(l0, l1, _WRITTEN):
        stop = min(start + _WRITTEN, l1)
        for label in range(start, stop):
            _label_logits(label, columns, weight, indices, bias, group_size, block[label - start])
        for b in range(B):
            for i in range(stop - start):
                y[b, start + i] = block[i, b]


# A loop that adds up writes to nothing here: one that did would be scalar, and add up in another order, where malloc put
# the two arrays close to each other.


@kernel
def _bce(z, slope):
    """Sum of softplus; ``slope`` becomes the sigmoid."""
    # z, slope [B]
    total = 0.0
    for i in range(z.shape[0]):
        slope[i] = _exp_of_negative(-abs(z[i]))
    for start in range(0, z.shape[0], _PRODUCT):
        product = 1.0
        positive = np.float32(0)
        for i in range(start, min(start + _PRODUCT, z.shape[0])):
            product *= 1.0 + np.float64(slope[i])
            positive += max(z[i], np.float32(0))
        total += np.float64(positive) + math.log(product)
    for i in range(z.shape[0]):
        slope[i] = (np.float32(1) if z[i] >= 0 else slope[i]) / (np.float32(1) + slope[i])
    return total


@kernel
def _positive_part(z):
    return np.float32(0) if z < 0 else z  # unlike max, which would swallow NaN


@kernel
def _squared_hinge(z, slope):
    """Sum of ``max(0, 1 + z)^2``; ``slope`` becomes its derivative."""
    # z, slope [B]
    total = np.float32(0)
    for i in range(z.shape[0]):
        slope[i] = np.float32(2) * _positive_part(np.float32(1) + z[i])
    for i in range(z.shape[0]):
        margin = np.float32(0.5) * slope[i]
        total += margin * margin
    return np.float64(total)


@kernel
def _add_negatives(goal, z, slope, product, linear):
    """The label's loss as a negative: ``log(product) + linear`` of each row grow by it; ``slope`` becomes its derivative."""
    # z, slope [B], product, linear [B] or [0]
    if goal.loss == BCE:
        for b in range(z.shape[0]):
            slope[b] = _exp_of_negative(-abs(z[b]))
        for b in range(z.shape[0]):
            product[b] *= 1.0 + np.float64(slope[b])
            linear[b] += np.float64(_positive_part(z[b]))
        for b in range(z.shape[0]):
            slope[b] = (np.float32(1) if z[b] >= 0 else slope[b]) / (np.float32(1) + slope[b])
    elif goal.loss == HINGE:
        for b in range(z.shape[0]):
            slope[b] = np.float32(2) * _positive_part(np.float32(1) + z[b])
        for b in range(z.shape[0]):
            margin = np.float64(0.5) * slope[b]
            linear[b] += margin * margin
    else:
        for b in range(z.shape[0]):
            value, derivative = asymmetric_negative(np.float64(z[b]), goal.gamma_neg, goal.clip)
            linear[b] += value
            slope[b] = derivative


@kernel
def _take_logarithms(product, linear):
    # product, linear [B] or [0]
    for b in range(product.shape[0]):
        linear[b] += math.log(product[b])
        product[b] = 1.0


@kernel
def _positive_terms(goal, z):
    """(loss as a positive, its derivative, loss as a negative) of one logit."""
    z = np.float64(z)
    if goal.loss == HINGE:
        wrong, right = max(0.0, 1.0 + z), max(0.0, 1.0 - z)
        return right * right, -2.0 * right, wrong * wrong
    if goal.loss == ASYMMETRIC:
        value, derivative = asymmetric_positive(z, goal.gamma_pos)
        return value, derivative, asymmetric_negative(z, goal.gamma_neg, goal.clip)[0]
    return softplus(-z), -sigmoid(-z), softplus(z)


@kernel
def _loss(columns, weight, indices, bias, group_size, labels, rows, batch, goal, gradients, dw, db, sums, tile, l0, l1):
    # weight, dw [L, K], indices [R, K], bias, db [L] or [0], labels, rows [nnz], sums [tiles]; z, slope [batch]
    pointers, column_rows, values, slots, full = columns
    # At a fixed distance: LLVM sums one by one where two arrays lie close, and in lanes where they do not
    both = np.empty(2 * batch + _APART, np.float32)
    z, slope = both[:batch], both[batch + _APART :]
    by_row = goal.sample_weight.shape[0] > 0
    product, linear = np.ones(batch if by_row else 0), np.zeros(batch if by_row else 0)
    positive = np.searchsorted(labels, l0)
    total = 0.0
    for label in range(l0, l1):
        _label_logits(label, columns, weight, indices, bias, group_size, z)
        if by_row:
            _add_negatives(goal, z, slope, product, linear)
            if (label - l0) % _PRODUCT == _PRODUCT - 1:
                _take_logarithms(product, linear)
            for b in range(batch):
                slope[b] *= goal.sample_weight[b]
        else:
            total += _squared_hinge(z, slope) if goal.loss == HINGE else _bce(z, slope)
        while positive < labels.shape[0] and labels[positive] == label:
            b = rows[positive]
            positive += 1
            if b == batch:
                continue
            if by_row or goal.pos_weight.shape[0] > 0:
                row_weight = np.float64(goal.sample_weight[b]) if by_row else 1.0
                label_weight = np.float64(goal.pos_weight[label]) if goal.pos_weight.shape[0] > 0 else 1.0
                gained, derivative, lost = _positive_terms(goal, z[b])
                total += row_weight * (label_weight * gained - lost)
                slope[b] = row_weight * label_weight * derivative
            elif goal.loss == HINGE:
                wrong, right = _positive_part(np.float32(1) + z[b]), _positive_part(np.float32(1) - z[b])
                total += right * right - wrong * wrong
                slope[b] = -2 * right
            else:
                total -= z[b]
                slope[b] -= np.float32(1)
        if not gradients:
            continue
        if db.shape[0] > 0:
            s = np.float32(0)
            for b in range(batch):
                s += slope[b]
            db[label] = s
        connections = indices[label // group_size]
        for k in range(weight.shape[1]):
            feature, s = connections[k], np.float32(0)
            if slots[feature] >= 0:
                column = full[slots[feature]]
                for b in range(batch):
                    s += column[b] * slope[b]
            else:
                for j in range(pointers[feature], pointers[feature + 1]):
                    s += values[j] * slope[column_rows[j]]
            dw[label, k] = s
    if by_row:
        _take_logarithms(product, linear)
        for b in range(batch):
            total += goal.sample_weight[b] * linear[b]
    sums[tile] = total


def _by_columns(crow: Tensor, col: Tensor, values: Tensor, in_features: int) -> Columns:
    batch = len(crow) - 1
    check_csr(as_numpy(crow), as_numpy(col), in_features, "x", "column")
    pointers, rows, sorted_values = (
        np.zeros(in_features + 1, np.int32),
        np.empty(len(col), np.int32),
        np.empty(len(col), np.float32),
    )
    _columns(*_arrays(crow, col, values), pointers, rows, sorted_values)
    frequent = np.flatnonzero(np.diff(pointers) > _FULL * batch)
    slots = np.full(in_features, -1, np.int32)
    slots[frequent] = np.arange(len(frequent))
    full = np.empty((len(frequent), batch), np.float32)
    _full_columns(pointers, rows, sorted_values, slots, full)
    return Columns(pointers, rows, sorted_values, slots, full)


def _tiles(num_labels: int) -> list[tuple[int, int]]:
    return threads.split(num_labels, max(2, -(-num_labels // _TILE)), _WRITTEN)


def _arrays(*tensors: Tensor) -> Sequence[np.ndarray]:
    return [as_numpy(tensor.contiguous()) for tensor in tensors]


def forward(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    in_features: int,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
) -> Tensor:
    """Logits [B, L] float32 of sparse rows."""
    y = weight.new_empty(len(crow) - 1, weight.shape[0])
    columns = _by_columns(crow, col, values, in_features)
    layer = _arrays(weight, indices, weight.new_empty(0) if bias is None else bias)
    threads.run(_forward, _tiles(weight.shape[0]), columns, *layer, group_size, as_numpy(y))
    return y


def loss_gradients(
    crow: Tensor,
    col: Tensor,
    values: Tensor,
    in_features: int,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: Tensor,
    objective: Objective,
    group_size: int,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of the loss over rows and labels, dw [L, K], db [L]) in one sweep; dw and db are empty unless asked for."""
    dw = torch.empty_like(weight) if gradients else weight.new_empty(0, weight.shape[1])
    db = torch.empty_like(bias) if gradients and bias is not None else weight.new_empty(0)
    columns = _by_columns(crow, col, values, in_features)
    layer = _arrays(weight, indices, weight.new_empty(0) if bias is None else bias)
    tiles = [(i, *tile) for i, tile in enumerate(_tiles(weight.shape[0]))]
    sums = np.zeros(len(tiles))
    goal = _goal(objective, len(crow) - 1)
    threads.run(
        _loss, tiles, columns, *layer, group_size, *_arrays(labels, rows), len(crow) - 1, goal, gradients,
        as_numpy(dw), as_numpy(db), sums,
    )  # fmt: skip
    return weight.new_tensor(sums.sum()), dw, db


def _goal(objective: Objective, batch: int) -> Goal:
    nothing = np.empty(0, np.float32)
    pos_weight = nothing if objective.pos_weight is None else as_numpy(objective.pos_weight)
    if objective.sample_weight is not None:
        sample_weight = as_numpy(objective.sample_weight)
    else:
        sample_weight = np.ones(batch, np.float32) if objective.loss == "asymmetric" else nothing
    return Goal(
        LOSSES[objective.loss], pos_weight, sample_weight, objective.gamma_pos, objective.gamma_neg, objective.clip
    )
