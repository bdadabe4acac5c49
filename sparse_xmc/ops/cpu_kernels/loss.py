"""Fused head on the CPU: loss, gradients and weight update label tile by label tile; no ``[B, L]`` tensor, ever.

Arguments that all three functions share (plain detached tensors, already checked):

    x           [B, D], any strides, float32 | float16 | bfloat16 | float64; B may be 0
    weight      [L, K], contiguous, its own float dtype (float64 iff x is)
    indices     [ceil(L / G), K], contiguous, uint16 or int32
    bias        [L] or None, its own float dtype
    labels      [nnz] int64, ascending: the label of each positive. Entries outside [0, L) may stand at either end (the
                caller's data, not checked on a device) and must be ignored: find a tile's positives by searching for
                its first and one-past-last label.
    rows        [nnz] int32: the row of each positive, in [0, B]. Row B marks a duplicate, to be ignored.
    loss        "bce": sum of softplus(z) - t z with t in {0, 1}, derivative sigmoid(z) - t
                "squared_hinge": sum of max(0, 1 - t z)^2 with t in {-1, +1}, derivative -2 t max(0, 1 - t z)
    group_size  G; label l uses indices[l // G]; the last group may be short

Logits are never rounded to a narrow dtype: z, the derivative and all sums are float32 (float64 for float64 inputs).
"""

from torch import Tensor


def loss_forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: Tensor,
    loss: str,
    group_size: int,
) -> Tensor:
    """The sum of the loss over rows and labels: 0-dim float32 (float64 for float64 inputs)."""
    raise NotImplementedError


def loss_gradients(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: Tensor,
    loss: str,
    group_size: int,
    scale: Tensor,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``scale * loss_forward(...)`` in one sweep: (dx [B, D], dw [L, K], db [L]), None where not needed.

    ``scale`` is a 0-dim tensor in the accumulation dtype on x's device (upstream gradient / B, loss scale included). It
    multiplies the float32 sums before they are rounded, once, to the dtype of x, weight and bias.
    """
    raise NotImplementedError


def loss_step_(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    rows: Tensor,
    loss: str,
    group_size: int,
    dx_scale: Tensor,
    dw_scale: Tensor,
    momentum_buffer: Tensor | None,
    second_moment: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    bias_second_moment: Tensor | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    decay: float,
    gain: float,
    correction: float,
    eps: float,
    stochastic: bool,
    seed: int,
    step: int,
    need_loss: bool,
    need_x: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Loss, input gradient and the update of ``weight``, ``bias`` and the optimizer's state in one sweep, in place.

    Returns (sum of the loss as in ``loss_forward`` or None, dx [B, D] in x's dtype or None). dx is
    ``dx_scale * d sum / dx`` at the OLD weights, rounded once.

    The update, in float32 (float64 for float64 inputs), for each label with ``g = dw_scale * d sum / dw`` ``[K]``::

        v = decay * v + gain * mean_k(g^2)                           if second_moment is given
        u = g / (sqrt(correction * v) + eps)                         (u = g without second_moment)
        u = u + weight_decay * w
        m = momentum * m + u                                         if momentum_buffer is given (u = m from here)
        w = w - lr * u

    The bias follows the same rule with its own state and without weight decay (mean over its single gradient). That is
    torch.optim.SGD without second_moment; row-wise Adagrad with decay = gain = correction = 1; a row-wise Adam-like
    second moment with decay = beta2, gain = 1 - beta2, correction = 1 / (1 - beta2^t).

    dx_scale, dw_scale: 0-dim tensors in the accumulation dtype on x's device. If dw_scale is not finite then nothing
        is updated (weight, bias and state keep their bits), without a host sync; loss and dx are returned as they come.
    momentum_buffer:      [L, K] in weight's dtype, or None
    second_moment:        [L] in the accumulation dtype, or None
    bias_momentum_buffer: [L] in bias's dtype, or None (None if bias is)
    bias_second_moment:   [L] in the accumulation dtype, or None (None if bias is)
    stochastic: how bfloat16/float16 weight, bias and momentum buffers are rounded when stored: stochastically
        (unbiased, subnormals included) or to nearest even. A finite value saturates at the largest finite one and never
        becomes inf; inf and nan pass through. Ignored for float32/float64 tensors.
    seed, step: random bits for stochastic rounding are Philox4x32 with 7 rounds, key = seed (64 bits), counter =
        (label, slot // 8, step mod 2^32, stream). Stream 0: weight, 1: momentum_buffer, 2: bias, 3: its momentum (slot 0).
        Slot k takes 16 bits: half (k % 2) (0 = low) of word (k % 8) // 2. A value lies a fraction f above the
        representable one next to it towards zero (f in units of their distance); with u the 16 bits it is rounded away
        from zero iff u >= 65536 - round(65536 f) (bfloat16: add u to the float32 bits and drop the low 16).
    need_loss, need_x: what is not needed is not computed.
    """
    raise NotImplementedError
