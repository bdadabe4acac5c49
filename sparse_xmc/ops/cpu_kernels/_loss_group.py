"""Arithmetic of the fused head for labels that share their connections: small dense products in registers.

``table [K, width]`` holds the group's rows of ``x``, ``z [labels, width]`` logits or their derivative; ``weight`` and
``dw`` are ``[labels, K]``. A product works on 4 rows by 16 or 8 columns, which is what the registers hold.
"""

from numba.extending import register_jitable

from sparse_xmc.ops.cpu_kernels._pointers import advance
from sparse_xmc.ops.cpu_kernels._simd import fma, load, splat, store, total
from sparse_xmc.ops.cpu_kernels._simd_blocks import totals

ROWS = 4  # labels that group_logits computes at once: weight, bias and z must have room for a multiple


@register_jitable
def group_logits(table, weight, K, bias, z, labels, width):
    """``z = bias + weight @ table``."""
    # table [K, width], weight [labels, K], bias [labels], z [labels, width]
    for i in range(0, labels, ROWS):
        w0, w1 = advance(weight, i * K), advance(weight, (i + 1) * K)
        w2, w3 = advance(weight, (i + 2) * K), advance(weight, (i + 3) * K)
        for b in range(0, width, 16):
            z0, z1, z2, z3 = splat(bias[i], 16), splat(bias[i + 1], 16), splat(bias[i + 2], 16), splat(bias[i + 3], 16)
            for k in range(K):
                x = load(table, k * width + b, 16)
                z0 = fma(splat(w0[k], 16), x, z0)
                z1 = fma(splat(w1[k], 16), x, z1)
                z2 = fma(splat(w2[k], 16), x, z2)
                z3 = fma(splat(w3[k], 16), x, z3)
            at = i * width + b
            store(z, at, z0)
            store(z, at + width, z1)
            store(z, at + 2 * width, z2)
            store(z, at + 3 * width, z3)


@register_jitable
def group_weight_gradient(table, dz, dw, K, labels, width):
    """``dw += dz @ table^T``."""
    # table [K, width], dz [labels, width], dw [labels, K]
    zero = splat(dz[0] - dz[0], 8)
    pairs, quads = labels // 2 * 2, K // 4 * 4
    for i in range(0, pairs, 2):
        d, e, out = advance(dz, i * width), advance(dz, (i + 1) * width), advance(dw, i * K)
        for k in range(0, quads, 4):
            x = advance(table, k * width)
            d0 = d1 = d2 = d3 = e0 = e1 = e2 = e3 = zero
            for b in range(0, width, 8):
                u, v = load(d, b, 8), load(e, b, 8)
                row = load(x, b, 8)
                d0, e0 = fma(u, row, d0), fma(v, row, e0)
                row = load(x, b + width, 8)
                d1, e1 = fma(u, row, d1), fma(v, row, e1)
                row = load(x, b + 2 * width, 8)
                d2, e2 = fma(u, row, d2), fma(v, row, e2)
                row = load(x, b + 3 * width, 8)
                d3, e3 = fma(u, row, d3), fma(v, row, e3)
            store(out, k, load(out, k, 4) + totals(d0, d1, d2, d3))
            store(out, K + k, load(out, K + k, 4) + totals(e0, e1, e2, e3))
    for i in range(labels):
        for k in range(quads if i < pairs else 0, K):
            d0 = zero
            for b in range(0, width, 8):
                d0 = fma(load(dz, i * width + b, 8), load(table, k * width + b, 8), d0)
            dw[i * K + k] += total(d0)


@register_jitable
def group_input_gradient(sums, offsets, weight, dz, K, labels, width):
    """Adds ``weight^T @ dz`` to the rows of sums."""
    # sums [D, width], offsets [K], weight [labels, K], dz [labels, width]
    quads = K // 4 * 4
    for b in range(0, width, 16):
        for k in range(0, quads, 4):
            w = advance(weight, k)
            s0, s1 = load(sums, offsets[k] + b, 16), load(sums, offsets[k + 1] + b, 16)
            s2, s3 = load(sums, offsets[k + 2] + b, 16), load(sums, offsets[k + 3] + b, 16)
            for i in range(labels):
                d = load(dz, i * width + b, 16)
                s0 = fma(splat(w[i * K], 16), d, s0)
                s1 = fma(splat(w[i * K + 1], 16), d, s1)
                s2 = fma(splat(w[i * K + 2], 16), d, s2)
                s3 = fma(splat(w[i * K + 3], 16), d, s3)
            store(sums, offsets[k] + b, s0)
            store(sums, offsets[k + 1] + b, s1)
            store(sums, offsets[k + 2] + b, s2)
            store(sums, offsets[k + 3] + b, s3)
        for k in range(quads, K):
            s0 = load(sums, offsets[k] + b, 16)
            for i in range(labels):
                s0 = fma(splat(weight[i * K + k], 16), load(dz, i * width + b, 16), s0)
            store(sums, offsets[k] + b, s0)


@register_jitable
def row_total(row, width):
    """Sum of a row."""
    acc = load(row, 0, 8)
    for b in range(8, width, 8):
        acc = acc + load(row, b, 8)
    return total(acc)
