"""One sweep over a range of labels: logits, loss, its derivative, gradients and update, tile by tile.

Layout: ``slab`` holds ``x`` feature-major in chunks of 64 batch rows, chunk ``c`` being ``[D, width]`` from
``64 * c * D`` on. The last chunk may be 16 or 32 wide; rows beyond the batch are zero.
``sums`` (for dx) has the same layout.
"""

import math

import numpy as np
from numba.extending import overload, register_jitable

from sparse_xmc.ops.cpu_kernels._numeric import kernel
from sparse_xmc.ops.cpu_kernels._pointers import advance, pointer
from sparse_xmc.ops.cpu_kernels._simd import exp_minus_abs, fma, load, splat, store, total, where_positive
from sparse_xmc.ops.cpu_kernels._storage import ABSENT, read, read_offsets, write, write_stochastic

CHUNK = 64  # batch rows whose logits stay in registers: eight AVX2 registers
TILE_LABELS = 96  # 2^96 bounds the product of the softplus terms, which must not overflow float32
TILE_WEIGHTS = 4096
FORWARD, GRADIENTS, UPDATE = range(3)
GATHER_FROM = 4  # group size from which copying a group's rows of x pays off


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


def _logits(table, offsets, weight, K, bias, z, lanes):
    """``z[:lanes] = bias + sum_k weight[k] * table[offsets[k] + (0 .. lanes)]``."""


@overload(_logits, prefer_literal=True)
def _(table, offsets, weight, K, bias, z, lanes):
    width = lanes.literal_value

    def impl(table, offsets, weight, K, bias, z, lanes):
        acc = splat(bias, width)
        for k in range(K):
            acc = fma(splat(weight[k], width), load(table, offsets[k], width), acc)
        store(z, 0, acc)

    return impl


def _gradients(table, sums, offsets, weight, dw, K, dz, need_x, need_weight, lanes):
    """Adds ``sum_b dz[b] x[b]`` to dw and ``weight * dz`` to the rows of sums; returns the sum of dz."""


@overload(_gradients, prefer_literal=True)
def _(table, sums, offsets, weight, dw, K, dz, need_x, need_weight, lanes):
    width = lanes.literal_value

    def impl(table, sums, offsets, weight, dw, K, dz, need_x, need_weight, lanes):
        d = load(dz, 0, width)
        if need_x and need_weight:
            for k in range(K):
                at = offsets[k]
                dw[k] += total(d * load(table, at, width))
                store(sums, at, fma(d, splat(weight[k], width), load(sums, at, width)))
        elif need_weight:
            for k in range(K):
                dw[k] += total(d * load(table, offsets[k], width))
        elif need_x:
            for k in range(K):
                at = offsets[k]
                store(sums, at, fma(d, splat(weight[k], width), load(sums, at, width)))
        return total(d)

    return impl


def _derivative(z, dz, product, linear, width, hinge):
    """Loss of a label against "no positives" and its derivative, 16 rows at a time.

    BCE: softplus(z) = max(z, 0) + log(1 + e), e = exp(-|z|). ``linear`` collects the first part; ``product`` collects
    P = prod(1 + e) - 1 over labels by P + e + P e, exact for tiny e, so one log1p serves a whole tile of labels.
    Squared hinge: ``linear`` collects max(0, 1 + z)^2. Returns whether any derivative is nonzero.
    """


@overload(_derivative)
def _(z, dz, product, linear, width, hinge):
    number = z.dtype

    def impl(z, dz, product, linear, width, hinge):
        zero, one = splat(number(0), 16), splat(number(1), 16)
        active = zero
        for b in range(0, width, 16):
            a = load(z, b, 16)
            if hinge:
                margin = a + one
                margin = where_positive(margin, margin, zero)
                store(dz, b, margin + margin)
                store(linear, b, fma(margin, margin, load(linear, b, 16)))
                active = active + margin
            else:
                e = exp_minus_abs(a)
                part = one / (one + e)
                store(dz, b, where_positive(a, part, e * part))
                p = load(product, b, 16)
                store(product, b, fma(p, e, p + e))
                store(linear, b, load(linear, b, 16) + where_positive(a, a, zero))
        return not hinge or total(active) != number(0)

    return impl


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
def _collect(product, linear, count):
    """Sum of the tile's loss over ``count`` rows; clears the collectors."""
    result = 0.0
    for b in range(0, count, 8):
        joint = 0.0  # at most 2^(8 * 96)
        for i in range(b, min(b + 8, count)):
            p = np.float64(product[i])
            joint += p + joint * p
            result += np.float64(linear[i])
        result += math.log1p(joint)
    fill(product, CHUNK, 0)
    fill(linear, CHUNK, 0)
    return result


@register_jitable
def _gather(table, offsets, K, width, out):
    """Copies the rows of a group to consecutive places."""
    for k in range(K):
        row, target = advance(table, offsets[k]), advance(out, k * width)
        for b in range(width):
            target[b] = row[b]


@register_jitable
def _scatter(values, offsets, K, width, sums):
    """Adds consecutive rows to the group's rows of sums, and clears them."""
    for k in range(K):
        row, target = advance(values, k * width), advance(sums, offsets[k])
        for b in range(width):
            target[b] += row[b]
            row[b] = 0


@register_jitable
def _update(
    tensor, code, buffer, buffer_code, moment, values, g, count, scratch, label, rule, stochastic, seed, step, stream
):
    """Updates the ``count`` parameters of a label in place, and its state; ``values`` holds them decoded."""
    lr, momentum, weight_decay, decay, gain, correction, eps = rule
    first = label * count
    if moment.shape[0] > 0:
        square = g[0] * g[0]
        for k in range(1, count):
            square += g[k] * g[k]
        moment[label] = decay * moment[label] + gain * (square / count)
        root = math.sqrt(correction * moment[label]) + eps
        for k in range(count):
            g[k] /= root
    for k in range(count):
        g[k] += weight_decay * values[k]
    if buffer_code != ABSENT:
        read(buffer, buffer_code, first, count, scratch)
        for k in range(count):
            g[k] += momentum * scratch[k]
        if stochastic:
            write_stochastic(buffer, buffer_code, first, count, g, seed, label, step, stream + 1)
        else:
            write(buffer, buffer_code, first, count, g)
    for k in range(count):
        values[k] -= lr * g[k]
    if stochastic:
        write_stochastic(tensor, code, first, count, values, seed, label, step, stream)
    else:
        write(tensor, code, first, count, values)


def workspace(K):
    """Sizes of a part's scratch memory: floats, offsets."""
    return 2 * tile_labels(K) * (K + 1) + 4 * CHUNK + K + 2 * K * CHUNK, 2 * K


@kernel
def sweep(
    slab_array, partial, losses, floats, integers, B, D, K, group_size, hinge, mode, need_x, need_weight, scale,
    weight, weight_code, indices, index_code, bias, bias_code, labels, rows, dw_out, dw_code, db_out, db_code,
    buffer, buffer_code, moment, bias_buffer, bias_buffer_code, bias_moment,
    rule, bias_rule, stochastic, seed, step, part, start, stop,
):  # fmt: skip
    """Labels ``start .. stop``: adds up the loss in ``losses[part]`` and dx in ``partial[part]``; ``mode`` says whether
    gradients are stored (``dw_out``, ``db_out``) or applied by ``rule``, both after multiplication by ``scale``."""
    size = tile_labels(K)
    gathered = group_size >= GATHER_FROM
    partial[part, :] = 0
    slab, total_sums = pointer(slab_array), advance(pointer(partial), part * partial.shape[1])
    offsets = advance(pointer(integers), part * 2 * K)
    w = advance(pointer(floats), part * floats.shape[1])
    dw = advance(w, size * K)
    b = advance(dw, size * K)
    db = advance(b, size)
    z = advance(db, size)
    dz, product, linear = advance(z, CHUNK), advance(z, 2 * CHUNK), advance(z, 3 * CHUNK)
    scratch = advance(z, 4 * CHUNK)
    table, sums, at = slab, total_sums, offsets
    if gathered:
        table, at = advance(scratch, K), advance(offsets, K)
        sums = advance(table, K * CHUNK)
        fill(sums, K * CHUNK, 0)
    fill(b, size, 0)
    fill(product, CHUNK, 0)
    fill(linear, CHUNK, 0)
    loss = 0.0
    for l0 in range(start, stop, size):
        n = min(size, stop - l0)
        read(weight, weight_code, l0 * K, n * K, w)
        read(bias, bias_code, l0, n, b)
        fill(dw, n * K, 0)
        fill(db, n, 0)
        first_positive = _first(labels, l0)
        for c0 in range(0, B, CHUNK):
            count = min(CHUNK, B - c0)
            width = chunk_width(count)
            positive = first_positive
            for i in range(n):
                label = l0 + i
                wi, dwi = advance(w, i * K), advance(dw, i * K)
                if i == 0 or label % group_size == 0:
                    read_offsets(indices, index_code, label // group_size * K, K, width, c0 * D, offsets)
                    if gathered:
                        _gather(slab, offsets, K, width, table)
                        for k in range(K):
                            at[k] = k * width
                begin = positive
                while positive < labels.shape[0] and labels[positive] == label:
                    positive += 1
                if width == 16:
                    _logits(table, at, wi, K, b[i], z, 16)
                elif width == 32:
                    _logits(table, at, wi, K, b[i], z, 32)
                else:
                    _logits(table, at, wi, K, b[i], z, 64)
                _flip(z, rows, begin, positive, c0, count)
                active = _derivative(z, dz, product, linear, width, hinge)
                if mode != FORWARD and active:
                    fill(advance(dz, count), width - count, 0)
                    _flip(dz, rows, begin, positive, c0, count)
                    if width == 16:
                        db[i] += _gradients(table, sums, at, wi, dwi, K, dz, need_x, need_weight, 16)
                    elif width == 32:
                        db[i] += _gradients(table, sums, at, wi, dwi, K, dz, need_x, need_weight, 32)
                    else:
                        db[i] += _gradients(table, sums, at, wi, dwi, K, dz, need_x, need_weight, 64)
                if gathered and need_x and (i == n - 1 or (label + 1) % group_size == 0):
                    _scatter(sums, offsets, K, width, total_sums)
            loss += _collect(product, linear, count)
        if mode == FORWARD:
            continue
        for i in range(n * K):
            dw[i] *= scale
        for i in range(n):
            db[i] *= scale
        if mode == GRADIENTS:
            write(dw_out, dw_code, l0 * K, n * K, dw)
            write(db_out, db_code, l0, n, db)
        else:
            for i in range(n):
                _update(
                    weight, weight_code, buffer, buffer_code, moment, advance(w, i * K), advance(dw, i * K), K,
                    scratch, l0 + i, rule, stochastic, seed, step, 0,
                )  # fmt: skip
                if bias_code != ABSENT:
                    _update(
                        bias, bias_code, bias_buffer, bias_buffer_code, bias_moment, advance(b, i), advance(db, i), 1,
                        scratch, l0 + i, bias_rule, stochastic, seed, step, 2,
                    )  # fmt: skip
    losses[part] = loss
