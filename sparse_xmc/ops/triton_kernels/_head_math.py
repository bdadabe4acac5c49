"""Device code of the fused head that both tile shapes share: loss, input gradient, weight gradient or update in place."""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._rounding import round_nearest, round_stored

# added to the logits of rows and labels that do not exist: their loss and derivative become exactly 0
ABSENT = tl.constexpr(-1e30)


@triton.jit
def _log1p(e):
    """log(1 + e) for e in [0, 1], relative error below 4e-7 (float32)."""
    if e.dtype == tl.float64:
        u = 1.0 + e
        return tl.log(u) + (e - (u - 1.0)) / u
    else:
        p = 0.04408961534500122 + e * -0.008539204485714436
        p = -0.10768169164657593 + e * p
        p = 0.17745240032672882 + e * p
        p = -0.24495461583137512 + e * p
        p = 0.33275479078292847 + e * p
        p = -0.4999740421772003 + e * p
        p = 0.9999998211860657 + e * p
        return e * p


@triton.jit
def loss_terms(y, LOSS: tl.constexpr, NEED_LOSS: tl.constexpr):
    """(loss, derivative by y), both functions of ``y``: the logit of a negative, minus the logit of a positive.

    The loss is 0 if it is not needed. nan passes through.
    """
    value = tl.zeros(y.shape, y.dtype)
    if LOSS == "bce":
        e = tl.exp(-tl.abs(y))
        s = 1.0 / (1.0 + e)
        slope = tl.where(y < 0.0, e * s, s)
        if NEED_LOSS:
            value = tl.maximum(y, 0.0) + _log1p(e)
    else:
        tl.static_assert(LOSS == "squared_hinge")
        excess = 1.0 + y
        excess = tl.where(excess < 0.0, 0.0, excess)
        slope = 2.0 * excess
        if NEED_LOSS:
            value = excess * excess
    return value, slope


@triton.jit
def update_tile(
    param_ptr,
    momentum_ptr,
    moment_ptr,
    offsets,
    label,
    mask,
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
    """One optimizer step with ``gradient [N, WIDTH]`` on the parameters at ``offsets``, in place, where ``mask``.

    momentum_ptr may be None; moment_ptr (one scalar per label) may be None. COUNT: connections of a label, for the mean
    of the squared gradient. The rule stands in ``ops/update.py``.
    """
    WIDTH: tl.constexpr = gradient.shape[1]
    ACC: tl.constexpr = gradient.dtype
    value = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(ACC)
    known = tl.max(mask.to(tl.int32), 1) > 0
    if moment_ptr is not None:
        v = tl.load(moment_ptr + label, mask=known, other=0.0)
    if momentum_ptr is not None:
        buffer = tl.load(momentum_ptr + offsets, mask=mask, other=0.0).to(ACC)
    # several warps may hold a value: all of them need the old one, and one of them stores the new one
    tl.debug_barrier()
    direction = gradient
    if moment_ptr is not None:
        square = tl.sum(tl.where(mask, gradient * gradient, 0.0), 1) / COUNT
        v = tl.full((1,), decay, ACC) * v + tl.full((1,), gain, ACC) * square
        tl.store(moment_ptr + label, v, mask=known)
        root = tl.sqrt(tl.full((1,), correction, ACC) * v) + tl.full((1,), eps, ACC)
        direction = direction / root[:, None]
    direction += tl.full((1, 1), weight_decay, ACC) * value
    if momentum_ptr is not None:
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
        usable = known & (tl.abs(tl.zeros(label.shape, db.dtype) + scale) < float("inf"))
        update_tile(
            weight_ptr, weight_momentum_ptr, weight_moment_ptr, offsets, label, connected & usable[:, None],
            dw * scale, lr, momentum, weight_decay, decay, gain, correction, eps, seed, step, K, 0, STOCHASTIC,
        )  # fmt: skip
        if bias_ptr is not None:
            update_tile(
                bias_ptr, bias_momentum_ptr, bias_moment_ptr, label[:, None], label, usable[:, None],
                (db * scale)[:, None], lr, momentum, 0.0, decay, gain, correction, eps, seed, step, 1, 2, STOCHASTIC,
            )  # fmt: skip
    else:
        if dw_ptr is not None:
            tl.store(dw_ptr + offsets, round_nearest(dw * scale, dw_ptr.dtype.element_ty), mask=connected)
        if db_ptr is not None:
            tl.store(db_ptr + label, round_nearest(db * scale, db_ptr.dtype.element_ty), mask=known)
