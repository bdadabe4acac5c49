"""Arithmetic of the fused head for one label and at most 64 rows of the batch: logits, loss, derivative, gradients."""

from numba import types
from numba.extending import overload

from sparse_xmc.ops.cpu_kernels._pointers import advance
from sparse_xmc.ops.cpu_kernels._simd import exp_minus_abs, fma, load, splat, store, total, where_positive
from sparse_xmc.ops.cpu_kernels._simd_blocks import add_scaled, dot_row, totals


def derivative(z, product, linear, row_weight, constants, b, hinge, backward):
    """Adds up the loss of logits ``z[b : b + 8]`` against "no positives", and if ``backward`` replaces them by its derivative
    times the rows' weights.

    BCE: softplus(z) = max(z, 0) + log(1 + e), e = exp(-|z|). ``linear`` collects the first part; ``product`` collects
    P = prod(1 + e) - 1 over labels by P + e + P e, exact for tiny e, so one log1p serves a whole tile of labels.
    Squared hinge: ``linear`` collects max(0, 1 + z)^2. Returns a vector that is zero if all derivatives are (hinge).
    """


@overload(derivative)
def _(z, product, linear, row_weight, constants, b, hinge, backward):
    number = z.dtype

    def impl(z, product, linear, row_weight, constants, b, hinge, backward):
        zero, one = splat(number(0), 8), splat(number(1), 8)
        a = load(z, b, 8)  # z, product, linear, row_weight [width]: eight rows of the batch
        if hinge:
            margin = a + one
            margin = where_positive(margin, margin, zero)
            store(z, b, (margin + margin) * load(row_weight, b, 8))
            store(linear, b, fma(margin, margin, load(linear, b, 8)))
            return margin
        e = exp_minus_abs(a, constants)
        if backward:
            part = load(row_weight, b, 8) / (one + e)
            store(z, b, where_positive(a, part, e * part))
        p = load(product, b, 8)
        store(product, b, fma(p, e, p + e))
        store(linear, b, load(linear, b, 8) + where_positive(a, a, zero))
        return zero

    return impl


def derivatives(z, labels, width, product, linear, row_weight, constants, hinge, backward):
    """``derivative`` of ``z [labels, width]``. Returns whether one of them is not zero, always for BCE."""


@overload(derivatives, inline="always")
def _(z, labels, width, product, linear, row_weight, constants, hinge, backward):
    number = z.dtype

    def impl(z, labels, width, product, linear, row_weight, constants, hinge, backward):
        active = splat(number(0), 8)
        for i in range(labels):
            row = advance(z, i * width)
            for b in range(0, width, 16):  # two at a time: the exponential is a long chain
                active = active + derivative(row, product, linear, row_weight, constants, b, hinge, backward)
                active = active + derivative(row, product, linear, row_weight, constants, b + 8, hinge, backward)
        return not hinge or total(active) != number(0)

    return impl


def losses(z, out, constants, b, hinge):
    """``out[:8]`` = the loss of each of the logits ``z[b : b + 8]`` against "no positives".

    With ``s = e / (2 + e)`` is ``log(1 + e) = 2 artanh(s)``, a series in ``s^2 <= 1/9``.
    """


@overload(losses)
def _(z, out, constants, b, hinge):
    number = z.dtype
    terms = 8 if number.bitwidth == 32 else 17

    def impl(z, out, constants, b, hinge):
        zero, one = splat(number(0), 8), splat(number(1), 8)
        a = load(z, b, 8)
        if hinge:
            margin = where_positive(a + one, a + one, zero)
            store(out, 0, margin * margin)
        else:
            e = exp_minus_abs(a, constants)
            s = e / (one + one + e)
            square = s * s
            series = zero
            for i in range(terms, 0, -1):
                series = fma(series, square, splat(number(1) / number(2 * i - 1), 8))
            store(out, 0, where_positive(a, a, zero) + (s + s) * series)

    return impl


def logits(table, offsets, weight, K, bias, lanes):
    """``bias + sum_k weight[k] * table[offsets[k] + (0 .. lanes)]``."""


@overload(logits, prefer_literal=True)
def _(table, offsets, weight, K, bias, lanes):
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def impl(table, offsets, weight, K, bias, lanes):
        acc = splat(bias, width)  # [width]
        for k in range(K):  # weight, offsets [K], table [D, width]
            acc = fma(splat(weight[k], width), load(table, offsets[k], width), acc)
        return acc

    return impl


def gradients(table, sums, offsets, weight, out, keep, rate, K, d, need_x, need_weight):
    """``out = keep * out + rate * sum_b d[b] x[b]``; adds ``weight * d`` to the rows of sums; returns the sum of d, a vector.

    ``out`` may be ``weight``: it is read before it changes.
    """


@overload(gradients, inline="always")
def _(table, sums, offsets, weight, out, keep, rate, K, d, need_x, need_weight):
    def impl(table, sums, offsets, weight, out, keep, rate, K, d, need_x, need_weight):
        # table, sums [D, width]; offsets, weight, out [K]; d [width]
        keeps, rates = splat(keep, 4), splat(rate, 4)
        quads = K // 4 * 4 if need_weight else 0
        for k in range(0, quads, 4):
            p0 = dot_row(d, table, offsets[k])
            if need_x:
                add_scaled(sums, offsets[k], d, weight[k])
            p1 = dot_row(d, table, offsets[k + 1])
            if need_x:
                add_scaled(sums, offsets[k + 1], d, weight[k + 1])
            p2 = dot_row(d, table, offsets[k + 2])
            if need_x:
                add_scaled(sums, offsets[k + 2], d, weight[k + 2])
            p3 = dot_row(d, table, offsets[k + 3])
            if need_x:
                add_scaled(sums, offsets[k + 3], d, weight[k + 3])
            store(out, k, fma(rates, totals(p0, p1, p2, p3), keeps * load(out, k, 4)))
        for k in range(quads, K):
            factor = weight[k]
            if need_weight:
                out[k] = keep * out[k] + rate * total(dot_row(d, table, offsets[k]))
            if need_x:
                add_scaled(sums, offsets[k], d, factor)
        return total(d)

    return impl
