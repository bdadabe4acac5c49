"""Device code that ends a label tile of the fused head: weight gradients are stored, or applied in place."""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._rounding import round_nearest, round_stored


@triton.jit
def _step_(
    param_ptr,
    momentum_ptr,
    moment_ptr,
    first,
    member,
    offsets,
    mask,
    gradient,
    update,
    BIAS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One optimizer step with ``gradient [N, WIDTH]`` on the parameters of labels ``first + member``, in place, where ``mask``.

    momentum_ptr and moment_ptr (one scalar per label) may be None. offsets: from the parameters of label ``first``.
    """
    WIDTH: tl.constexpr = gradient.shape[1]
    ACC: tl.constexpr = gradient.dtype
    COUNT: tl.constexpr = 1 if BIAS else TILE.K  # for the mean of the squared gradient
    STOCHASTIC: tl.constexpr = TILE.STOCHASTIC
    STREAM: tl.constexpr = 2 if BIAS else 0  # of random numbers; the momentum takes the next one
    label = (first + member).to(tl.uint32)
    param_ptr += first * COUNT
    value = tl.load(param_ptr + offsets, mask=mask, other=0.0).to(ACC)  # [N, WIDTH]
    known = tl.max(mask.to(tl.int32), 1) > 0
    if moment_ptr is not None:
        moment_ptr += first
        v = tl.load(moment_ptr + member, mask=known, other=0.0)  # [N]
    if momentum_ptr is not None:
        momentum_ptr += first * COUNT
        buffer = tl.load(momentum_ptr + offsets, mask=mask, other=0.0).to(ACC)  # [N, WIDTH]
    # several warps may hold a value: all of them need the old one, and one of them stores the new one
    tl.debug_barrier()
    direction = gradient
    if moment_ptr is not None:
        square = tl.sum(tl.where(mask, gradient * gradient, 0.0), 1) / COUNT
        v = tl.full((1,), update.decay, ACC) * v + tl.full((1,), update.gain, ACC) * square
        tl.store(moment_ptr + member, v, mask=known)
        root = tl.sqrt(tl.full((1,), update.correction, ACC) * v) + tl.full((1,), update.eps, ACC)
        direction = direction / root[:, None]
    if not BIAS:
        direction += tl.full((1, 1), update.weight_decay, ACC) * value
    if momentum_ptr is not None:
        direction = tl.full((1, 1), update.momentum, ACC) * buffer + direction
        STATE: tl.constexpr = momentum_ptr.dtype.element_ty
        stored = round_stored(
            direction, update.seed, label, update.step, STATE, STREAM + 1, WIDTH, STOCHASTIC
        )  # fmt: skip
        tl.store(momentum_ptr + offsets, stored, mask=mask)
    new = value - tl.full((1, 1), update.lr, ACC) * direction
    DTYPE: tl.constexpr = param_ptr.dtype.element_ty
    stored = round_stored(new, update.seed, label, update.step, DTYPE, STREAM, WIDTH, STOCHASTIC)
    tl.store(param_ptr + offsets, stored, mask=mask)


@triton.jit
def finish_tile(layer, gradients, update, first, member, known, offsets, connected, dw, db, TILE: tl.constexpr):
    """Applies (UPDATE) or stores the scaled gradient of the labels ``first + member [N]``: dw ``[N, BLOCK_K]``, db ``[N]``.

    offsets: of the weights from those of label ``first``. A scale that is not finite changes nothing in place.
    """
    scale = gradients.scale
    if TILE.UPDATE:
        usable = known & (tl.abs(tl.zeros(member.shape, db.dtype) + scale) < float("inf"))
        _step_(
            layer.weight, update.weight_momentum, update.weight_moment, first, member, offsets,
            connected & usable[:, None], dw * scale, update, False, TILE,
        )  # fmt: skip
        if layer.bias is not None:
            _step_(
                layer.bias, update.bias_momentum, update.bias_moment, first, member, member[:, None],
                usable[:, None], (db * scale)[:, None], update, True, TILE,
            )  # fmt: skip
    else:
        if gradients.dw is not None:
            narrow = round_nearest(dw * scale, gradients.dw.dtype.element_ty)
            tl.store(gradients.dw + first * TILE.K + offsets, narrow, mask=connected)
        if gradients.db is not None:
            narrow = round_nearest(db * scale, gradients.db.dtype.element_ty)
            tl.store(gradients.db + first + member, narrow, mask=known)
