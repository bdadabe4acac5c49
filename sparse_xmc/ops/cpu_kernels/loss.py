"""Fused head on the CPU: loss, gradients and weight update label tile by label tile; no ``[B, L]`` tensor, ever.

The interface and the loss functions stand in ``ops/_contract.py``, the update rule in ``ops/update.py``.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops._contract import Gradients, Layer, Needed, Objective, Positives, Scaling
from sparse_xmc.ops.cpu_kernels import _loss_sweep, _threads
from sparse_xmc.ops.cpu_kernels._loss_sweep import CHUNK, FORWARD, GRADIENTS, GROUP_FROM, UPDATE, chunk_width, workspace
from sparse_xmc.ops.cpu_kernels._simd import exp_constants
from sparse_xmc.ops.cpu_kernels._storage import location
from sparse_xmc.ops.update import Update

_SHARES = (4,) * 13 + (2, 1, 1)  # of the labels: short ranges at the end, so that threads end together
_PART_WORK = 1 << 18  # multiply-adds that make a range worth its sum
_MAX_FEATURES = (1 << 32) // CHUNK - 1  # offsets into x are uint32
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


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
        layer: Layer,
        positives: Positives,
        objective: Objective,
    ) -> None:
        (self.B, self.D), (self.L, self.K) = x.shape, layer.weight.shape
        self.x, self.group_size, self.hinge = x.detach(), layer.group_size, objective.loss == "squared_hinge"
        self.dtype = compute_dtype(x.dtype)
        if self.D > _MAX_FEATURES:
            raise ValueError(f"x must have at most {_MAX_FEATURES:,} features, got {list(x.shape)}")
        self.tensors = [None if t is None else t.contiguous() for t in layer[:3]]
        self.positives = (positives.labels.detach().numpy(), positives.rows.detach().numpy())

    def run(
        self,
        mode: int,
        *,
        need_x: bool = False,
        need_weight: bool = False,
        scale: float = 1.0,
        dw: Tensor | None = None,
        db: Tensor | None = None,
        rule: Update = Update(),  # noqa: B008
        correction: float = 1.0,
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
        assert self.tensors[0] is not None
        direct = self.tensors[0].dtype == self.dtype
        rates = (float(rule.lr), rule.momentum, rule.weight_decay, rule.decay, rule.gain, correction, rule.eps)
        scalars = tuple(map(number, rates))
        at_once = (
            mode == UPDATE
            and direct
            and 0 < self.B <= CHUNK
            and self.group_size < GROUP_FROM
            and rule.momentum_buffer is None
            and rule.second_moment is None
        )
        lr, _, weight_decay, *_ = rates
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
            *(scalars, bias_scalars, rule.stochastic, np.uint64(rule.seed % (1 << 64)), np.uint64(int(rule.step))),
            *(at_once, keep, rate),
        )
        return torch.tensor(losses.sum(), dtype=self.dtype)

    def dx(self, scale: float) -> Tensor:
        """``scale`` times the gradient of the input, its partial sums added in ascending order."""
        dx = torch.empty(self.B, self.D, dtype=self.dtype)
        spans = _threads.split(self.D, _threads.num_threads(), 16)
        number = _NUMPY[self.dtype](float(scale))
        _threads.run(_loss_sweep.input_gradient, spans, self.partial.numpy(), number, dx.numpy())
        return dx.to(self.x.dtype)


def _factors(scaling: Scaling, dtype: torch.dtype) -> tuple[float, float]:
    """What the gradients of x and of updated parameters are multiplied by, rounded as the tensors' division would be."""
    number: Any = _NUMPY[dtype]
    upstream = number(1 if scaling.upstream is None else float(scaling.upstream))
    loss_scale = number(1 if scaling.loss_scale is None else float(scaling.loss_scale))
    with np.errstate(all="ignore"):
        return float(upstream / number(scaling.divisor)), float(upstream / loss_scale / number(scaling.divisor))


def loss_forward(x: Tensor, layer: Layer, positives: Positives, objective: Objective, divisor: float) -> Tensor:
    """The sum of the loss over rows and labels, divided by ``divisor``."""
    return _Sweep(x, layer, positives, objective).run(FORWARD) / divisor


def loss_gradients(
    x: Tensor, layer: Layer, positives: Positives, objective: Objective, scaling: Scaling, needed: Needed
) -> Gradients:
    """Gradients of the loss in one sweep: (dx, dw, db), None where not needed."""
    weight, _, bias, _ = layer
    dw = torch.empty(weight.shape, dtype=weight.dtype) if needed.weight else None
    db = torch.empty(bias.shape, dtype=bias.dtype) if needed.bias and bias is not None else None
    sweep = _Sweep(x, layer, positives, objective)
    factor, _ = _factors(scaling, sweep.dtype)
    sweep.run(GRADIENTS, need_x=needed.x, need_weight=needed.weight, scale=factor, dw=dw, db=db)
    return sweep.dx(factor) if needed.x else None, dw, db


def loss_step_(
    x: Tensor,
    layer: Layer,
    positives: Positives,
    objective: Objective,
    scaling: Scaling,
    update: Update,
    *,
    need_loss: bool,
    need_x: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Loss, input gradient at the old weights, and the update of weight, bias and state in one sweep, in place."""
    sweep = _Sweep(x, layer, positives, objective)
    factor, own = _factors(scaling, sweep.dtype)
    if math.isfinite(own) and bool(x.isfinite().all()):
        correction = 1.0 if update.correction is None else float(update.correction)
        if update.applied is not None:
            update.applied.add_(1)
            correction = 1 / (1 - update.decay ** float(update.applied))
        total = sweep.run(UPDATE, need_x=need_x, need_weight=True, scale=own, rule=update, correction=correction)
    else:
        total = sweep.run(GRADIENTS, need_x=need_x)
    return total / scaling.divisor if need_loss else None, sweep.dx(factor) if need_x else None
