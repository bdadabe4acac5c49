"""One sweep over a range of labels: logits, loss, its derivative, gradients and update, tile by tile.

What it works on stands in ``_head_structs``.
"""

import math

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops.cpu_kernels._head_structs import (
    ASYMMETRIC,
    CHUNK,
    GRADIENTS,
    GROUP_LABELS,
    HINGE,
    Chunk,
    Tile,
    chunk_width,
    open_head,
    open_work,
    tile_labels,
)
from sparse_xmc.ops.cpu_kernels._loss_group import (
    ROWS,
    group_input_gradient,
    group_logits,
    group_weight_gradient,
    row_total,
)
from sparse_xmc.ops.cpu_kernels._loss_label import derivatives, gradients, logits, losses
from sparse_xmc.ops.cpu_kernels._loss_terms import asymmetric_negative, asymmetric_positive
from sparse_xmc.ops.cpu_kernels._loss_update import update_biases, update_weights
from sparse_xmc.ops.cpu_kernels._pointers import advance, at_address, pointer, same_kind
from sparse_xmc.ops.cpu_kernels._simd import load, store
from sparse_xmc.ops.cpu_kernels._storage import ABSENT, read, read_offsets, write

MAX_DOUBLINGS = 1000  # 2^1000 bounds a product in float64, as 2^TILE_LABELS one in float32
GROUP_FROM = 4  # group size from which a group is worked on as one


@register_jitable
def fill(target, count, value):
    # target [count]
    for i in range(count):
        target[i] = value


@register_jitable
def _first(labels, count, label):
    """Position of the first positive whose label is at least ``label``."""
    # labels [count], ascending
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if labels[middle] < label:
            low = middle + 1
        else:
            high = middle
    return low


# What every label needs takes numbers: a struct is passed field by field, which takes longer than its work. What only
# the asymmetric loss needs takes structs.


@register_jitable
def _end(labels, count, position, label):
    """One past the last positive of a label whose first is at ``position``."""
    # labels [count], ascending
    while position < count and labels[position] == label:
        position += 1
    return position


@register_jitable
def _flip(rows, values, begin, end, first, count):
    """Changes the sign at a label's positives: loss(z, positive) = loss(-z, negative)."""
    # rows [nnz], values [width]
    for p in range(begin, end):
        b = rows[p] - first
        if b >= 0 and b < count:
            values[b] = -values[b]


@register_jitable
def _flip_logits(rows, values, kept, begin, end, first, count):
    """As ``_flip``; what becomes of the positives is kept too."""
    # rows, kept [nnz], values [width]
    for p in range(begin, end):
        b = rows[p] - first
        if b >= 0 and b < count:
            values[b] = kept[p] = -values[b]


@register_jitable
def _weight_positives(head, work, start, stop):
    """What the weights of the labels ``start .. stop`` add to the loss of their positives, whose logits were kept."""
    # eight at a time: losses [8] of logits [nnz], which has room for 8 more
    f, losses_of = head.f, work.product
    begin, end = _first(head.labels, f.nnz, start), _first(head.labels, f.nnz, stop)
    more = 0.0
    for at in range(begin, end, 8):
        losses(head.logits, losses_of, head.constants, at, f.loss == HINGE)
        for p in range(at, min(at + 8, end)):
            row = head.rows[p]
            if row < f.B:
                gained = (np.float64(head.pos_weight[head.labels[p]]) - 1.0) * np.float64(losses_of[p - at])
                more += gained * np.float64(work.row_weight[row]) if f.sample_weight != 0 else gained
    return more


@register_jitable
def _flip_slopes(rows, values, begin, end, first, count, weight):
    """As ``_flip`` for derivatives, those of positives multiplied by ``weight``."""
    # rows [nnz], values [width]
    for p in range(begin, end):
        b = rows[p] - first
        if b >= 0 and b < count:
            values[b] = -values[b] * weight


@register_jitable
def _asymmetric(head, work, values, label, begin, end, chunk):
    """Derivatives [width] of the asymmetric loss of a label, weights included, in the place of its logits; the loss goes to
    ``linear``, without the rows' weights."""
    # values [width]; product [width] is free under this loss: the logits of positives are put aside there
    for p in range(begin, end):
        b = head.rows[p] - chunk.first
        if b >= 0 and b < chunk.count:
            work.product[b], values[b] = values[b], -np.inf
    for b in range(chunk.count):
        value, slope = asymmetric_negative(np.float64(values[b]), head.n.gamma_neg, head.n.clip)
        work.linear[b] += value
        values[b] = slope
    weight = np.float64(head.pos_weight[label]) if head.f.pos_weight != 0 else 1.0
    for p in range(begin, end):
        b = head.rows[p] - chunk.first
        if b >= 0 and b < chunk.count:
            value, slope = asymmetric_positive(np.float64(work.product[b]), head.n.gamma_pos)
            work.linear[b] += weight * value
            values[b], work.product[b] = weight * slope, 0
    if head.f.sample_weight != 0:
        for b in range(chunk.count):
            values[b] *= chunk.row_weight[b]


@register_jitable
def _collect(work, chunk):
    """Moves a tile's loss over a chunk to the float64 collectors, and clears it. Weighted rows have collectors of their own,
    others share those of the first chunk."""
    for i in range(chunk.count):
        p = np.float64(work.product[i])
        work.products[chunk.place + i] += p + work.products[chunk.place + i] * p
        work.linears[chunk.place + i] += np.float64(work.linear[i])
    fill(work.product, CHUNK, 0)
    fill(work.linear, CHUNK, 0)


@register_jitable
def _logarithms(work, collectors):
    """Sum of log1p of the collected products, as their rows are weighted; they are cleared."""
    result = 0.0
    for i in range(collectors):
        result += np.float64(work.row_weight[i]) * math.log1p(work.products[i])
    fill(work.products, collectors, 0)
    return result


@register_jitable
def _row(label, group_size):
    """The row of indices of a label."""
    return label if group_size == 1 else label // group_size


@register_jitable
def _gather(table, offsets, K, width, out):
    """Copies the rows of a group to consecutive places: ``table [D, width]``, ``offsets [K]`` to ``out [K, width]``."""
    for k in range(K):
        row, target = advance(table, offsets[k]), advance(out, k * width)
        for b in range(0, width, 16):
            store(target, b, load(row, b, 16))


def _labels_chunk(head, work, tile, chunk, positive, lanes):
    """A tile of labels against a chunk of the batch. Each is finished before the next starts: its rows of ``x`` are
    still in the L1 cache when its gradients need them.

    ``dw [n, K] = keep * dw + rate * gradient``: ``dw`` is ``w`` if a gradient is applied as it arises.
    """


@overload(_labels_chunk, prefer_literal=True)
def _(head, work, tile, chunk, positive, lanes):
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def impl(head, work, tile, chunk, positive, lanes):
        # tile.w, tile.dw [n, K], tile.b, tile.db [n]; chunk.table, chunk.sums [D, width]; z [width]
        f, n, K, z = head.f, head.n, head.f.K, work.z
        hinge, need_x, need_weight = f.loss == HINGE, f.need_x != 0, f.need_weight != 0
        asymmetric, weighted = f.loss == ASYMMETRIC, f.pos_weight != 0
        first_row = _row(tile.first, f.group_size)
        num_rows = _row(tile.first + tile.n - 1, f.group_size) - first_row + 1
        # indices [num_rows, K] -> where their rows of the slab start
        read_offsets(np.uint64(f.indices), f.index_code, first_row * K, num_rows * K, width, work.offsets)
        for i in range(tile.n):
            label = tile.first + i
            at, wi = advance(work.offsets, (_row(label, f.group_size) - first_row) * K), advance(tile.w, i * K)
            store(z, 0, logits(chunk.table, at, wi, K, tile.b[i], width))
            begin = positive
            positive = _end(head.labels, f.nnz, begin, label)
            if asymmetric:
                _asymmetric(head, work, z, label, begin, positive, chunk)
            elif begin < positive and weighted:
                _flip_logits(head.rows, z, head.logits, begin, positive, chunk.first, chunk.count)
            elif begin < positive:
                _flip(head.rows, z, begin, positive, chunk.first, chunk.count)
            active = asymmetric or derivatives(
                z, 1, width, work.product, work.linear, chunk.row_weight, head.constants, hinge, head.backward
            )  # fmt: skip
            used = head.backward and (active or n.keep != 1)
            if used and begin < positive and not asymmetric:
                if weighted:
                    _flip_slopes(head.rows, z, begin, positive, chunk.first, chunk.count, head.pos_weight[label])
                else:
                    _flip(head.rows, z, begin, positive, chunk.first, chunk.count)
            if used:
                if chunk.count < width:
                    fill(advance(z, chunk.count), width - chunk.count, 0)
                d = load(z, 0, width)
                tile.db[i] += gradients(
                    chunk.table, chunk.sums, at, wi, advance(tile.dw, i * K), n.keep, n.rate, K, d, need_x, need_weight
                )  # fmt: skip

    return impl


@register_jitable
def _groups_chunk(head, work, tile, chunk, positive):
    """A tile of labels against a chunk of the batch, group by group, or part of one by part."""
    # tile.w, tile.dw [n, K], tile.b, tile.db [n]; chunk.table, chunk.sums [D, width]; work.group [K, width]; z [m, width]
    f, K, width, z = head.f, head.f.K, chunk.width, work.z
    asymmetric, weighted = f.loss == ASYMMETRIC, f.pos_weight != 0
    i = 0
    while i < tile.n:
        r = (tile.first + i) // f.group_size
        if i == 0 or (tile.first + i) % f.group_size == 0:
            read_offsets(np.uint64(f.indices), f.index_code, r * K, K, width, work.offsets)  # of the group's K rows
            _gather(chunk.table, work.offsets, K, width, work.group)
        m = min(tile.n - i, (r + 1) * f.group_size - tile.first - i, GROUP_LABELS)
        wi = advance(tile.w, i * K)
        group_logits(work.group, wi, K, advance(tile.b, i), z, m, width)
        end = positive
        for j in range(m):
            label, zj = tile.first + i + j, advance(z, j * width)
            begin, end = end, _end(head.labels, f.nnz, end, label)
            if asymmetric:
                _asymmetric(head, work, zj, label, begin, end, chunk)
            elif begin < end and weighted:
                _flip_logits(head.rows, zj, head.logits, begin, end, chunk.first, chunk.count)
            else:
                _flip(head.rows, zj, begin, end, chunk.first, chunk.count)
        active = asymmetric or derivatives(
            z, m, width, work.product, work.linear, chunk.row_weight, head.constants, f.loss == HINGE, head.backward
        )  # fmt: skip
        if head.backward and active:
            end = positive
            for j in range(m):
                label, dz = tile.first + i + j, advance(z, j * width)
                begin, end = end, _end(head.labels, f.nnz, end, label)
                if begin < end and weighted and not asymmetric:
                    _flip_slopes(head.rows, dz, begin, end, chunk.first, chunk.count, head.pos_weight[label])
                elif not asymmetric:
                    _flip(head.rows, dz, begin, end, chunk.first, chunk.count)
                fill(advance(dz, chunk.count), width - chunk.count, 0)
                tile.db[i + j] += row_total(dz, width)
            if f.need_weight:
                group_weight_gradient(work.group, z, advance(tile.dw, i * K), K, m, width)
            if f.need_x:
                group_input_gradient(chunk.sums, work.offsets, wi, z, K, m, width)
        positive = end
        i += m


@register_jitable
def _open_tile(head, work, first, n, stop, grouped):
    """Weights and biases of a tile in the dtype of the arithmetic, and room for their gradients, which are zero.

    Weights that have that dtype are used where they are, unless a group kernel, which reads 4 labels at a time, would
    read behind them.
    """
    f, K = head.f, head.f.K
    w = work.w
    in_place = f.direct != 0 and (not grouped or first + n + ROWS <= stop)
    if in_place:
        w = advance(same_kind(np.uint64(f.weight), w), first * K)
    else:
        read(np.uint64(f.weight), f.weight_code, first * K, n * K, w)  # [n, K]
    read(np.uint64(f.bias), f.bias_code, first, n, work.b)  # [n]
    if not f.at_once:
        fill(work.dw, n * K, 0)
    fill(work.db, n, 0)
    return Tile(first, n, w, w if f.at_once else work.dw, work.b, work.db, in_place)


@register_jitable
def _close_tile(head, work, tile):
    """Stores a tile's gradients, or applies them."""
    f, K = head.f, head.f.K
    for i in range(tile.n):
        tile.db[i] *= head.n.scale
    if not f.at_once:
        for i in range(tile.n * K):
            tile.dw[i] *= head.n.scale
    if f.mode == GRADIENTS:
        write(np.uint64(f.dw), f.dw_code, tile.first * K, tile.n * K, tile.dw)
        write(np.uint64(f.db), f.db_code, tile.first, tile.n, tile.db)
        return
    if not f.at_once:
        update_weights(head, work, tile)
    if f.bias_code != ABSENT:
        update_biases(head, work, tile)


@kernel
def sweep(fields, numbers, constants, part, start, stop):
    """Labels ``start .. stop``: adds up the loss in ``losses[part]`` and the input gradient in ``sums[part]``; ``mode`` says
    whether gradients of parameters are stored or applied, both after multiplication by ``scale``.

    fields, numbers: of ``Fields`` and ``Numbers``; constants: of the exponential, in the dtype of the arithmetic.
    """
    head = open_head(fields, numbers, constants, part)
    f = head.f
    work = open_work(head, part, constants.itemsize)
    size, grouped = tile_labels(f.K), f.group_size >= GROUP_FROM
    if f.need_x:
        fill(head.sums, f.size, 0)
    loss, doublings = 0.0, 0
    for first in range(start, stop, size):
        tile = _open_tile(head, work, first, min(size, stop - first), stop, grouped)
        positive = _first(head.labels, f.nnz, first)
        for c0 in range(0, f.B, CHUNK):
            count = min(CHUNK, f.B - c0)
            width = chunk_width(count)
            place = c0 if f.sample_weight != 0 else 0
            row_weight = advance(work.row_weight, place)
            chunk = Chunk(
                advance(head.slab, c0 * f.D), advance(head.sums, c0 * f.D), row_weight, place, c0, count, width
            )  # fmt: skip
            if grouped:
                _groups_chunk(head, work, tile, chunk, positive)
            elif width == 16:  # the width of a vector is part of the machine code
                _labels_chunk(head, work, tile, chunk, positive, 16)
            elif width == 32:
                _labels_chunk(head, work, tile, chunk, positive, 32)
            else:
                _labels_chunk(head, work, tile, chunk, positive, 64)
            if c0 == 0 or f.sample_weight == 0:  # else a row's collectors are its own
                if doublings + tile.n > MAX_DOUBLINGS:
                    loss += _logarithms(work, f.collectors)
                    doublings = 0
                doublings += tile.n
            _collect(work, chunk)
        if head.backward:
            _close_tile(head, work, tile)
    loss += _logarithms(work, f.collectors)
    for i in range(f.collectors):
        loss += np.float64(work.row_weight[i]) * work.linears[i]
    if f.pos_weight != 0 and f.loss != ASYMMETRIC:
        loss += _weight_positives(head, work, start, stop)
    at_address(np.uint64(f.losses), np.float64)[part] = loss


@kernel
def input_gradient(partial, scale, dx, start, stop):
    """``dx[:, start:stop] = scale * sum(partial)``, the parts added in ascending order; overwrites ``partial``."""
    # partial [parts, size of slab], dx [B, D]
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
