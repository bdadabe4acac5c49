"""The update of a tile of labels by the rule in ``ops/update.py``."""

import math
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from sparse_xmc.ops.cpu_kernels._pointers import advance, same_kind
from sparse_xmc.ops.cpu_kernels._storage import ABSENT, BFLOAT16, FLOAT16, read, write, write_stochastic


class _Parameters(NamedTuple):
    """Weights or biases: where they and their state are stored, ``count`` numbers a label; ``stream``: of their noise."""

    tensor: Any
    code: Any
    buffer: Any
    buffer_code: Any
    moment: Any  # 0: none
    count: Any
    weight_decay: Any
    stream: Any


@register_jitable
def _store(head, tensor, code, values, p, tile, stream):
    if head.f.stochastic and code in (BFLOAT16, FLOAT16):
        for i in range(tile.n):
            row, label = advance(values, i * p.count), tile.first + i
            write_stochastic(
                tensor, code, label * p.count, p.count, row, np.uint64(head.f.seed), label, np.uint64(head.f.step), stream
            )  # fmt: skip
    else:
        write(tensor, code, tile.first * p.count, tile.n * p.count, values)


@register_jitable
def _normalize(n, p, g, tile, moments):
    """Follows the mean square of each label's gradient and divides the gradient by its root."""
    for i in range(tile.n):  # g [n, count], moments [L]
        row, label = advance(g, i * p.count), tile.first + i
        square = row[0] * row[0]
        for k in range(1, p.count):
            square += row[k] * row[k]
        moments[label] = n.decay * moments[label] + n.gain * (square / p.count)
        root = math.sqrt(n.correction * moments[label]) + n.eps
        for k in range(p.count):
            row[k] /= root


@register_jitable
def _update(head, p, tile, values, g, old, in_place):
    """``values`` holds the parameters decoded, or is their memory (``in_place``); ``g`` holds their gradients. Both are
    overwritten: ``[n, count]``, as ``old``."""
    n, size = head.n, tile.n * p.count
    if p.moment != 0:
        _normalize(n, p, g, tile, same_kind(np.uint64(p.moment), g))
    if p.weight_decay != 0:
        for k in range(size):
            g[k] += p.weight_decay * values[k]
    if p.buffer_code != ABSENT:
        read(np.uint64(p.buffer), p.buffer_code, tile.first * p.count, size, old)
        for k in range(size):
            g[k] += n.momentum * old[k]
        _store(head, np.uint64(p.buffer), p.buffer_code, g, p, tile, p.stream + 1)
    for k in range(size):
        values[k] -= n.lr * g[k]
    if not in_place:
        _store(head, np.uint64(p.tensor), p.code, values, p, tile, p.stream)


@register_jitable
def update_weights(head, work, tile):
    f = head.f
    p = _Parameters(
        f.weight, f.weight_code, f.buffer, f.buffer_code, f.moment, f.K, head.n.weight_decay, 0
    )  # fmt: skip
    _update(head, p, tile, tile.w, tile.dw, work.old, tile.in_place)


@register_jitable
def update_biases(head, work, tile):
    f = head.f
    p = _Parameters(
        f.bias, f.bias_code, f.bias_buffer, f.bias_buffer_code, f.bias_moment, 1, head.n.weight_decay * 0, 2
    )  # fmt: skip
    _update(head, p, tile, tile.b, tile.db, work.old_b, False)
