"""The update rule of the fused head, applied to a tile of labels; see ``loss.loss_step_``."""

import math

from numba.extending import register_jitable

from sparse_xmc.ops.cpu_kernels._pointers import advance
from sparse_xmc.ops.cpu_kernels._storage import ABSENT, BFLOAT16, FLOAT16, read, write, write_stochastic


@register_jitable
def _store(tensor, code, values, count, label, labels, stochastic, seed, step, stream):
    if stochastic and code in (BFLOAT16, FLOAT16):
        for i in range(labels):
            row = advance(values, i * count)
            write_stochastic(tensor, code, (label + i) * count, count, row, seed, label + i, step, stream)
    else:
        write(tensor, code, label * count, labels * count, values)


@register_jitable
def update(
    tensor, code, buffer, buffer_code, moment, values, in_place, g, count, scratch, label, labels,
    rule, stochastic, seed, step, stream,
):  # fmt: skip
    """Updates the ``labels * count`` parameters of the labels from ``label`` on in place, and their state.

    ``values`` holds the parameters decoded, or is their memory (``in_place``); ``g`` holds their gradients. Both are
    overwritten.
    """
    lr, momentum, weight_decay, decay, gain, correction, eps = rule
    size = labels * count
    if moment.shape[0] > 0:
        for i in range(labels):
            row = advance(g, i * count)
            square = row[0] * row[0]
            for k in range(1, count):
                square += row[k] * row[k]
            moment[label + i] = decay * moment[label + i] + gain * (square / count)
            root = math.sqrt(correction * moment[label + i]) + eps
            for k in range(count):
                row[k] /= root
    if weight_decay != 0:
        for k in range(size):
            g[k] += weight_decay * values[k]
    if buffer_code != ABSENT:
        read(buffer, buffer_code, label * count, size, scratch)
        for k in range(size):
            g[k] += momentum * scratch[k]
        _store(buffer, buffer_code, g, count, label, labels, stochastic, seed, step, stream + 1)
    for k in range(size):
        values[k] -= lr * g[k]
    if not in_place:
        _store(tensor, code, values, count, label, labels, stochastic, seed, step, stream)
