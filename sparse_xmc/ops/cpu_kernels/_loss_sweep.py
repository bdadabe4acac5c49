"""One sweep over a range of labels: logits, loss, its derivative, gradients and update, tile by tile.

Layout: ``slab`` holds ``x`` feature-major in chunks of 64 batch rows, chunk ``c`` being ``[D, width]`` from
``64 * c * D`` on. The last chunk may be 16 or 32 wide; rows beyond the batch are zero.
``sums`` (for dx) has the same layout.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from sparse_xmc.ops.cpu_kernels._loss_group import (
    ROWS,
    group_input_gradient,
    group_logits,
    group_weight_gradient,
    row_total,
)
from sparse_xmc.ops.cpu_kernels._loss_label import derivatives, gradients, logits
from sparse_xmc.ops.cpu_kernels._loss_update import update
from sparse_xmc.ops.cpu_kernels._numeric import kernel
from sparse_xmc.ops.cpu_kernels._pointers import advance, pointer, same_kind
from sparse_xmc.ops.cpu_kernels._simd import load, store
from sparse_xmc.ops.cpu_kernels._storage import ABSENT, read, read_offsets, write

CHUNK = 64  # batch rows whose logits stay in registers: eight AVX2 registers
TILE_LABELS = 96  # 2^96 bounds the product of the softplus terms, which must not overflow float32
TILE_WEIGHTS = 4096
MAX_DOUBLINGS = 1000  # the same bound for float64
GROUP_LABELS = 32  # labels of a group that are worked on at once: their logits stay in the L1 cache
FORWARD, GRADIENTS, UPDATE = range(3)
GROUP_FROM = 4  # group size from which a group is worked on as one


@register_jitable
def fill(target, count, value):
    for i in range(count):
        target[i] = value


@register_jitable
def tile_labels(K):
    """Labels whose weights and gradients are worked on together."""
    return max(1, min(TILE_LABELS, TILE_WEIGHTS // K))


@register_jitable
def chunk_width(rows):
    """Rows that a chunk of ``rows <= 64`` batch rows is padded to."""
    return 16 if rows <= 16 else 32 if rows <= 32 else CHUNK


@register_jitable
def _first(labels, label):
    """Position of the first positive whose label is at least ``label``."""
    low, high = 0, labels.shape[0]
    while low < high:
        middle = (low + high) // 2
        if labels[middle] < label:
            low = middle + 1
        else:
            high = middle
    return low


@register_jitable
def _flip(values, rows, begin, end, b0, count):
    """Changes the sign at a label's positives: loss(z, positive) = loss(-z, negative)."""
    for p in range(begin, end):
        b = rows[p] - b0
        if b >= 0 and b < count:
            values[b] = -values[b]


@register_jitable
def _end(labels, position, label):
    """One past the last positive of a label whose first is at ``position``."""
    while position < labels.shape[0] and labels[position] == label:
        position += 1
    return position


@register_jitable
def _collect(product, linear, count, products, linears):
    """Moves a tile's loss over ``count`` rows to the float64 collectors, and clears it."""
    for i in range(count):
        p = np.float64(product[i])
        products[i] += p + products[i] * p
        linears[i] += np.float64(linear[i])
    fill(product, CHUNK, 0)
    fill(linear, CHUNK, 0)


@register_jitable
def _logarithms(products):
    """Sum of log1p of the collected products, which are cleared."""
    result = 0.0
    for i in range(CHUNK):
        result += math.log1p(products[i])
    fill(products, CHUNK, 0)
    return result


@register_jitable
def _row(label, group_size):
    """The row of indices of a label."""
    return label if group_size == 1 else label // group_size


@register_jitable
def _gather(table, offsets, K, width, out):
    """Copies the rows of a group to consecutive places."""
    for k in range(K):
        row, target = advance(table, offsets[k]), advance(out, k * width)
        for b in range(0, width, 16):
            store(target, b, load(row, b, 16))


def _labels_chunk(
    table, sums, w, out, keep, rate, b, db, z, product, linear, constants, offsets, l0, n, K, c0, count, group_size, hinge,
    backward, need_x, need_weight, indices, index_code, labels, rows, positive, lanes,
):  # fmt: skip
    """A tile of labels against a chunk of the batch. Each is finished before the next starts: its rows of ``x`` are
    still in the L1 cache when its gradients need them.

    ``out [n, K] = keep * out + rate * gradient``: ``out`` is ``dw``, or ``w`` if a gradient is applied as it arises.
    """


@overload(_labels_chunk, prefer_literal=True)
def _(
    table, sums, w, out, keep, rate, b, db, z, product, linear, constants, offsets, l0, n, K, c0, count, group_size, hinge,
    backward, need_x, need_weight, indices, index_code, labels, rows, positive, lanes,
):  # fmt: skip
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def impl(
        table, sums, w, out, keep, rate, b, db, z, product, linear, constants, offsets, l0, n, K, c0, count, group_size,
        hinge, backward, need_x, need_weight, indices, index_code, labels, rows, positive, lanes,
    ):  # fmt: skip
        first_row = _row(l0, group_size)
        num_rows = _row(l0 + n - 1, group_size) - first_row + 1
        read_offsets(indices, index_code, first_row * K, num_rows * K, width, offsets)
        for i in range(n):
            at, wi = advance(offsets, (_row(l0 + i, group_size) - first_row) * K), advance(w, i * K)
            store(z, 0, logits(table, at, wi, K, b[i], width))
            begin = positive
            positive = _end(labels, begin, l0 + i)
            if begin < positive:
                _flip(z, rows, begin, positive, c0, count)
            active = derivatives(z, 1, width, product, linear, constants, hinge, backward)
            if backward and (active or keep != 1):
                if count < width:
                    fill(advance(z, count), width - count, 0)
                if begin < positive:
                    _flip(z, rows, begin, positive, c0, count)
                db[i] += gradients(
                    table, sums, at, wi, advance(out, i * K), keep, rate, K, z, need_x, need_weight, width
                )  # fmt: skip

    return impl


@register_jitable
def _groups_chunk(
    table, sums, w, dw, b, db, z, product, linear, constants, offsets, group, l0, n, K, c0, count, group_size, hinge,
    backward, need_x, need_weight, indices, index_code, labels, rows, positive, width,
):  # fmt: skip
    """A tile of labels against a chunk of the batch, group by group, or part of one by part."""
    i = 0
    while i < n:
        r = (l0 + i) // group_size
        if i == 0 or (l0 + i) % group_size == 0:
            read_offsets(indices, index_code, r * K, K, width, offsets)
            _gather(table, offsets, K, width, group)
        m = min(n - i, (r + 1) * group_size - l0 - i, GROUP_LABELS)
        wi = advance(w, i * K)
        group_logits(group, wi, K, advance(b, i), z, m, width)
        end = positive
        for j in range(m):
            begin, end = end, _end(labels, end, l0 + i + j)
            _flip(advance(z, j * width), rows, begin, end, c0, count)
        active = derivatives(z, m, width, product, linear, constants, hinge, backward)
        if backward and active:
            end = positive
            for j in range(m):
                dz = advance(z, j * width)
                begin, end = end, _end(labels, end, l0 + i + j)
                fill(advance(dz, count), width - count, 0)
                _flip(dz, rows, begin, end, c0, count)
                db[i + j] += row_total(dz, width)
            if need_weight:
                group_weight_gradient(group, z, advance(dw, i * K), K, m, width)
            if need_x:
                group_input_gradient(sums, offsets, wi, z, K, m, width)
        positive = end
        i += m


def workspace(K):
    """Sizes of a part's scratch memory: floats, offsets."""
    rows = tile_labels(K) + ROWS
    floats = (GROUP_LABELS + ROWS + 2 + K) * CHUNK + 3 * rows * K + 3 * rows
    return (floats + 15) // 16 * 16, rows * K


@kernel
def sweep(
    slab_array, partial, losses, doubles, floats, integers, exp_array, B, D, K, group_size, hinge, mode, need_x,
    need_weight, scale, weight, weight_code, direct, indices, index_code, bias, bias_code, labels, rows, dw_out,
    dw_code, db_out, db_code,
    buffer, buffer_code, moment, bias_buffer, bias_buffer_code, bias_moment,
    rule, bias_rule, stochastic, seed, step, at_once, keep, rate, part, start, stop,
):  # fmt: skip
    """Labels ``start .. stop``: adds up the loss in ``losses[part]`` and dx in ``partial[part]``; ``mode`` says whether
    gradients are stored (``dw_out``, ``db_out``) or applied by ``rule``, both after multiplication by ``scale``.

    ``direct``: the weights have the dtype of the arithmetic and need no copy. ``at_once``: they are updated label by label,
    ``w = keep * w + rate * gradient``, rather than by ``rule`` tile by tile; one chunk of the batch, no groups, no state.
    """
    size = tile_labels(K)
    room = size + ROWS
    grouped, backward = group_size >= GROUP_FROM, mode != FORWARD
    partial[part, :] = 0
    offsets = advance(pointer(integers), part * integers.shape[1])
    constants = pointer(exp_array)
    products = advance(pointer(doubles), part * 2 * CHUNK)
    linears = advance(products, CHUNK)
    z = advance(pointer(floats), part * floats.shape[1])
    product = advance(z, (GROUP_LABELS + ROWS) * CHUNK)
    linear = advance(product, CHUNK)
    group = advance(linear, CHUNK)
    w = advance(group, K * CHUNK)
    dw = advance(w, room * K)
    scratch = advance(dw, room * K)
    b = advance(scratch, room * K)
    db = advance(b, room)
    bias_scratch = advance(db, room)
    fill(z, floats.shape[1], 0)
    loss, doublings = 0.0, 0
    copied = w
    for l0 in range(start, stop, size):
        n = min(size, stop - l0)
        w = copied
        in_place = direct and (not grouped or l0 + n + ROWS <= stop)  # logits of a group read ahead
        if in_place:
            w = advance(same_kind(weight, copied), l0 * K)
        else:
            read(weight, weight_code, l0 * K, n * K, w)
        read(bias, bias_code, l0, n, b)
        out = w if at_once else dw
        if not at_once:
            fill(dw, n * K, 0)
        fill(db, n, 0)
        positive = _first(labels, l0)
        for c0 in range(0, B, CHUNK):
            count = min(CHUNK, B - c0)
            width = chunk_width(count)
            table = advance(pointer(slab_array), c0 * D)
            sums = advance(pointer(partial), part * partial.shape[1] + c0 * D)
            if grouped:
                _groups_chunk(
                    table, sums, w, dw, b, db, z, product, linear, constants, offsets, group, l0, n, K, c0, count,
                    group_size, hinge, backward, need_x, need_weight, indices, index_code, labels, rows, positive, width,
                )  # fmt: skip
            elif width == 16:
                _labels_chunk(
                    table, sums, w, out, keep, rate, b, db, z, product, linear, constants, offsets, l0, n, K, c0, count,
                    group_size, hinge, backward, need_x, need_weight, indices, index_code, labels, rows, positive, 16,
                )  # fmt: skip
            elif width == 32:
                _labels_chunk(
                    table, sums, w, out, keep, rate, b, db, z, product, linear, constants, offsets, l0, n, K, c0, count,
                    group_size, hinge, backward, need_x, need_weight, indices, index_code, labels, rows, positive, 32,
                )  # fmt: skip
            elif width == 64:
                _labels_chunk(
                    table, sums, w, out, keep, rate, b, db, z, product, linear, constants, offsets, l0, n, K, c0, count,
                    group_size, hinge, backward, need_x, need_weight, indices, index_code, labels, rows, positive, 64,
                )  # fmt: skip
            if doublings + n > MAX_DOUBLINGS:
                loss += _logarithms(products)
                doublings = 0
            _collect(product, linear, count, products, linears)
            doublings += n
        if not backward:
            continue
        for i in range(n):
            db[i] *= scale
        if not at_once:
            for i in range(n * K):
                dw[i] *= scale
        if mode == GRADIENTS:
            write(dw_out, dw_code, l0 * K, n * K, dw)
            write(db_out, db_code, l0, n, db)
        else:
            if not at_once:
                update(
                    weight, weight_code, buffer, buffer_code, moment, w, in_place, dw, K, scratch, l0, n,
                    rule, stochastic, seed, step, 0,
                )  # fmt: skip
            if bias_code != ABSENT:
                update(
                    bias, bias_code, bias_buffer, bias_buffer_code, bias_moment, b, False, db, 1, bias_scratch, l0, n,
                    bias_rule, stochastic, seed, step, 2,
                )  # fmt: skip
    loss += _logarithms(products)
    for i in range(CHUNK):
        loss += linears[i]
    losses[part] = loss


@kernel
def input_gradient(partial, scale, dx, start, stop):
    """``dx[:, start:stop] = scale * sum(partial)``, the parts added in ascending order; overwrites ``partial``."""
    B, D = dx.shape
    sums = pointer(partial)
    for c0 in range(0, B, CHUNK):
        count = min(CHUNK, B - c0)
        width = chunk_width(count)
        for f0 in range(start, stop, 64):
            f1 = min(f0 + 64, stop)
            for part in range(1, partial.shape[0]):
                others = advance(sums, part * partial.shape[1])
                for i in range(c0 * D + f0 * width, c0 * D + f1 * width, 16):
                    store(sums, i, load(sums, i, 16) + load(others, i, 16))
            for b in range(count):
                for f in range(f0, f1):
                    dx[c0 + b, f] = scale * sums[c0 * D + f * width + b]
