"""Device code of the fused head that both tile shapes share: loss, input gradient, weight gradient or update in place."""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._rounding import round_nearest, round_stored


@triton.jit
def loss_terms(z, targets, LOSS: tl.constexpr, NEED_LOSS: tl.constexpr):
    """(loss, derivative) of logits ``z`` at boolean ``targets``; the loss is 0 if it is not needed. nan passes through."""
    value = tl.zeros(z.shape, z.dtype)
    if LOSS == "bce":
        e = tl.exp(-tl.abs(z))
        u = 1.0 + e
        s = 1.0 / u
        derivative = tl.where(z < 0.0, e * s, s) - targets.to(z.dtype)
        if NEED_LOSS:
            wrong = tl.where(targets, -z, z)
            # log(1 + e), with the digits of e that 1 + e has lost
            value = tl.where(wrong < 0.0, 0.0, wrong) + (tl.log(u) + (e - (u - 1.0)) * s)
    else:
        tl.static_assert(LOSS == "squared_hinge")
        sign = tl.where(targets, 1.0, -1.0).to(z.dtype)
        margin = 1.0 - sign * z
        margin = tl.where(margin < 0.0, 0.0, margin)
        derivative = -2.0 * sign * margin
        if NEED_LOSS:
            value = margin * margin
    return value, derivative


@triton.jit
def update_tile(
    param_ptr,
    momentum_ptr,
    moment_ptr,
    offsets,
    label,
    mask,
    value,
    gradient,
    lr,
    momentum,
    weight_decay,
    decay,
    gain,
    correction,
    eps,
    seed,
    step,
    COUNT,
    STREAM: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """One optimizer step on ``value [N, WIDTH]`` with its gradient, stored at ``offsets`` where ``mask``.

    momentum_ptr may be None; moment_ptr (one scalar per label) may be None. COUNT: connections of a label, for the mean
    of the squared gradient. The rule stands in ``cpu_kernels/loss.py``.
    """
    WIDTH: tl.constexpr = value.shape[1]
    ACC: tl.constexpr = value.dtype
    direction = gradient
    if moment_ptr is not None:
        known = tl.max(mask.to(tl.int32), 1) > 0
        square = tl.sum(tl.where(mask, gradient * gradient, 0.0), 1) / COUNT
        v = tl.load(moment_ptr + label, mask=known, other=0.0)
        v = tl.full((1,), decay, ACC) * v + tl.full((1,), gain, ACC) * square
        tl.store(moment_ptr + label, v, mask=known)
        root = tl.sqrt(tl.full((1,), correction, ACC) * v) + tl.full((1,), eps, ACC)
        direction = direction / root[:, None]
    direction += tl.full((1, 1), weight_decay, ACC) * value
    if momentum_ptr is not None:
        buffer = tl.load(momentum_ptr + offsets, mask=mask, other=0.0).to(ACC)
        direction = tl.full((1, 1), momentum, ACC) * buffer + direction
        STATE: tl.constexpr = momentum_ptr.dtype.element_ty
        stored = round_stored(direction, seed, label, step, STATE, STREAM + 1, WIDTH, STOCHASTIC)
        tl.store(momentum_ptr + offsets, stored, mask=mask)
    new = value - tl.full((1, 1), lr, ACC) * direction
    DTYPE: tl.constexpr = param_ptr.dtype.element_ty
    tl.store(param_ptr + offsets, round_stored(new, seed, label, step, DTYPE, STREAM, WIDTH, STOCHASTIC), mask=mask)


@triton.jit
def add_part(pointers, part, mask, ATOMIC: tl.constexpr):
    """Adds a tile's part of the input gradient; without atomics the memory must belong to this program."""
    if ATOMIC:
        tl.atomic_add(pointers, part, mask=mask, sem="relaxed")
    else:
        tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + part, mask=mask)


@triton.jit
def finish_tile(
    weight_ptr,
    bias_ptr,
    dw_ptr,
    db_ptr,
    scale_ptr,
    weight_momentum_ptr,
    weight_moment_ptr,
    bias_momentum_ptr,
    bias_moment_ptr,
    label,
    known,
    offsets,
    connected,
    weight,
    bias,
    dw,
    db,
    lr,
    momentum,
    weight_decay,
    decay,
    gain,
    correction,
    eps,
    seed,
    step,
    K: tl.constexpr,
    UPDATE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Applies (UPDATE) or stores the scaled gradient of a label tile: dw ``[N, BLOCK_K]``, db ``[N]``."""
    scale = tl.load(scale_ptr)
    if UPDATE:
        usable = tl.abs(scale) < float("inf")
        update_tile(
            weight_ptr, weight_momentum_ptr, weight_moment_ptr, offsets, label, connected & usable,
            weight, dw * scale, lr, momentum, weight_decay, decay, gain, correction, eps, seed, step, K, 0, STOCHASTIC,
        )  # fmt: skip
        if bias_ptr is not None:
            update_tile(
                bias_ptr, bias_momentum_ptr, bias_moment_ptr, label[:, None], label, (known & usable)[:, None],
                bias[:, None], (db * scale)[:, None], lr, momentum, 0.0, decay, gain, correction, eps, seed, step, 1, 2, STOCHASTIC,
            )  # fmt: skip
    else:
        if dw_ptr is not None:
            tl.store(dw_ptr + offsets, round_nearest(dw * scale, dw_ptr.dtype.element_ty), mask=connected)
        if db_ptr is not None:
            tl.store(db_ptr + label, round_nearest(db * scale, db_ptr.dtype.element_ty), mask=known)
