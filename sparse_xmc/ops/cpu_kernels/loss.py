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

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.cpu_kernels import _loss_sweep, _threads
from sparse_xmc.ops.cpu_kernels._loss_sweep import CHUNK, FORWARD, GRADIENTS, GROUP_FROM, UPDATE, chunk_width, workspace
from sparse_xmc.ops.cpu_kernels._simd import exp_constants
from sparse_xmc.ops.cpu_kernels._storage import location

_SHARES = (4,) * 13 + (2, 1, 1)  # of the labels: short ranges at the end, so that threads end together
_PART_WORK = 1 << 18  # multiply-adds that make a range worth its sum
_MAX_FEATURES = (1 << 32) // CHUNK - 1  # offsets into x are uint32
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


class _Rule(NamedTuple):
    """How a sweep updates the parameters: see ``loss_step_``."""

    momentum_buffer: Tensor | None = None
    second_moment: Tensor | None = None
    bias_momentum_buffer: Tensor | None = None
    bias_second_moment: Tensor | None = None
    scalars: tuple[float, ...] = (0.0,) * 7  # lr, momentum, weight decay, decay, gain, correction, eps
    stochastic: bool = False
    seed: int = 0
    step: int = 0


def _label_ranges(L: int, parts: int, group_size: int) -> list[tuple[int, int]]:
    """Ranges of whole groups, at most ``parts`` and 16, each with its own sum for dx: the same for any number of threads,
    so that no result depends on it."""
    if parts < len(_SHARES):
        return _threads.split(L, parts, group_size)
    pieces = iter(_threads.split(L, sum(_SHARES), group_size))
    shares = [list(itertools.islice(pieces, share)) for share in _SHARES]
    return [(share[0][0], share[-1][1]) for share in shares if share]


class _Sweep:
    """One pass over all labels, and the memory that it works in: O(B D) numbers."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        indices: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        rows: Tensor,
        loss: str,
        group_size: int,
    ) -> None:
        (self.B, self.D), (self.L, self.K) = x.shape, weight.shape
        self.x, self.group_size, self.hinge = x.detach(), group_size, loss == "squared_hinge"
        self.dtype = compute_dtype(x.dtype)
        if self.D > _MAX_FEATURES:
            raise ValueError(f"x must have at most {_MAX_FEATURES:,} features, got {list(x.shape)}")
        self.tensors = [None if t is None else t.contiguous() for t in (weight, indices, bias)]
        self.positives = (labels.detach().numpy(), rows.detach().numpy())

    def run(
        self,
        mode: int,
        *,
        need_x: bool = False,
        need_weight: bool = False,
        scale: float = 1.0,
        dw: Tensor | None = None,
        db: Tensor | None = None,
        rule: _Rule = _Rule(),  # noqa: B008
    ) -> Tensor:
        """Returns the 0-dim sum of the loss; ``dx`` may be asked for afterwards."""
        padded = (self.B - 1) // CHUNK * CHUNK + chunk_width((self.B - 1) % CHUNK + 1) if self.B else 0
        ranges = _label_ranges(self.L, self.L * self.K * padded // _PART_WORK, self.group_size)
        # one allocation: x and the sums keep clear of each other in a physically indexed cache
        memory = torch.empty(1 + len(ranges), self.D * padded if need_x else 0, dtype=self.dtype)
        slab = memory[0] if need_x else torch.empty(self.D * padded, dtype=self.dtype)
        self.partial = memory[1:]
        if padded > self.B:
            slab.zero_()
        for first in range(0, self.B, CHUNK):
            rows = self.x[first : first + CHUNK]
            width = chunk_width(rows.shape[0])
            block = slab[first * self.D : (first + width) * self.D].view(self.D, width)
            block[:, : rows.shape[0]].copy_(rows.t())
        number = _NUMPY[self.dtype]
        losses = np.zeros(len(ranges))
        floats, integers = (
            torch.empty(len(ranges), n, dtype=kind).numpy()
            for n, kind in zip(workspace(self.K), (self.dtype, torch.uint32), strict=True)
        )
        direct = self.tensors[0].dtype == self.dtype
        scalars = tuple(number(s) for s in rule.scalars)
        at_once = (
            mode == UPDATE
            and direct
            and 0 < self.B <= CHUNK
            and self.group_size < GROUP_FROM
            and rule.momentum_buffer is None
            and rule.second_moment is None
        )
        lr, _, weight_decay, *_ = rule.scalars
        with np.errstate(over="ignore"):
            keep, rate = map(number, (1 - lr * weight_decay, -lr * scale) if at_once else (1, 1))
        bias_scalars = (*scalars[:2], number(0), *scalars[3:])
        state = [
            *location(rule.momentum_buffer),
            np.empty(0, number) if rule.second_moment is None else rule.second_moment.detach().numpy(),
            *location(rule.bias_momentum_buffer),
            np.empty(0, number) if rule.bias_second_moment is None else rule.bias_second_moment.detach().numpy(),
        ]
        _threads.run(
            _loss_sweep.sweep,
            [(part, *labels) for part, labels in enumerate(ranges)],
            *(
                slab.numpy(),
                self.partial.numpy(),
                losses,
                np.zeros((len(ranges), 2 * CHUNK)),
                floats,
                integers,
                exp_constants(number),
                self.B,
                self.D,
                self.K,
                self.group_size,
                self.hinge,
            ),
            *(mode, need_x, need_weight, number(scale)),
            *location(self.tensors[0]),
            direct,
            *(item for tensor in self.tensors[1:] for item in location(tensor)),
            *self.positives,
            *(*location(dw), *location(db), *state),
            *(scalars, bias_scalars, rule.stochastic, np.uint64(rule.seed % (1 << 64)), np.uint64(rule.step)),
            *(at_once, keep, rate),
        )
        return torch.tensor(losses.sum(), dtype=self.dtype)

    def dx(self, scale: Tensor) -> Tensor:
        """``scale`` times the gradient of the input, its partial sums added in ascending order."""
        dx = torch.empty(self.B, self.D, dtype=self.dtype)
        spans = _threads.split(self.D, _threads.num_threads(), 16)
        number = _NUMPY[self.dtype](float(scale))
        _threads.run(_loss_sweep.input_gradient, spans, self.partial.numpy(), number, dx.numpy())
        return dx.to(self.x.dtype)


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
    return _Sweep(x, weight, indices, bias, labels, rows, loss, group_size).run(FORWARD)


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
    dw = torch.empty(weight.shape, dtype=weight.dtype) if need_weight else None
    db = torch.empty(bias.shape, dtype=bias.dtype) if need_bias and bias is not None else None
    sweep = _Sweep(x, weight, indices, bias, labels, rows, loss, group_size)
    sweep.run(GRADIENTS, need_x=need_x, need_weight=need_weight, scale=float(scale), dw=dw, db=db)
    return sweep.dx(scale) if need_x else None, dw, db


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
    correction: Tensor | None,
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
    torch.optim.SGD without second_moment; row-wise Adagrad with decay = gain = 1; a row-wise Adam-like second
    moment with decay = beta2, gain = 1 - beta2, correction = 1 / (1 - beta2^t).

    dx_scale, dw_scale: 0-dim tensors in the accumulation dtype on x's device. If dw_scale is not finite then nothing
        is updated (weight, bias and state keep their bits), without a host sync; loss and dx are returned as they come.
    momentum_buffer:      [L, K] in weight's dtype, or None
    second_moment:        [L] in the accumulation dtype, or None
    bias_momentum_buffer: [L] in bias's dtype, or None (None if bias is)
    bias_second_moment:   [L] in the accumulation dtype, or None (None if bias is)
    correction:           0-dim in the accumulation dtype on x's device, or None for 1
    stochastic: how bfloat16/float16 weight, bias and momentum buffers are rounded when stored: stochastically
        (unbiased, subnormals included) or to nearest even. A finite value saturates at the largest finite one and never
        becomes inf; inf and nan pass through. Ignored for float32/float64 tensors.
    seed, step: random bits for stochastic rounding are Philox4x32 with 7 rounds, key = seed (64 bits), counter =
        (label, slot // 8, step mod 2^32, stream). Stream 0: weight, 1: momentum_buffer, 2: bias, 3: its momentum
        (slot 0). Slot k takes 16 bits: half (k % 2) (0 = low) of word (k % 8) // 2. A value lies a fraction f above the
        representable one next to it towards zero (f in units of their distance); with u the 16 bits it is rounded away
        from zero iff u >= 65536 - round(65536 f) (bfloat16: add u to the float32 bits and drop the low 16).
    need_loss, need_x: what is not needed is not computed.
    """
    scalars = (lr, momentum, weight_decay, decay, gain, 1.0 if correction is None else float(correction), eps)
    state = (momentum_buffer, second_moment, bias_momentum_buffer, bias_second_moment)
    rule = _Rule(*state, scalars, stochastic, seed, step)
    sweep = _Sweep(x, weight, indices, bias, labels, rows, loss, group_size)
    scale = float(dw_scale)
    if math.isfinite(scale):
        total = sweep.run(UPDATE, need_x=need_x, need_weight=True, scale=scale, rule=rule)
    else:
        total = sweep.run(GRADIENTS, need_x=need_x)
    return total if need_loss else None, sweep.dx(dx_scale) if need_x else None
