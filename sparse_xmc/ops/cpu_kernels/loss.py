"""Fused head on the CPU: loss, gradients and weight update label tile by label tile; no ``[B, L]`` tensor, ever.

The interface and the loss functions stand in ``ops/_contract.py``, the update rule in ``ops/update.py``.
"""

import functools
import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops._contract import Gradients, Layer, Needed, Objective, Positives, Scaling
from sparse_xmc.ops.cpu_kernels import _loss_sweep
from sparse_xmc.ops.cpu_kernels._head_structs import (
    CHUNK,
    FORWARD,
    GRADIENTS,
    LOSSES,
    UPDATE,
    Fields,
    Numbers,
    chunk_width,
    scratch_size,
)
from sparse_xmc.ops.cpu_kernels._loss_sweep import GROUP_FROM
from sparse_xmc.ops.cpu_kernels._simd import exp_constants
from sparse_xmc.ops.cpu_kernels._slab import fill_slab
from sparse_xmc.ops.cpu_kernels._storage import location
from sparse_xmc.ops.update import Update

_SHARES = (4,) * 13 + (2, 1, 1)  # of the labels: short ranges at the end, so that threads end together
_PART_WORK = 1 << 18  # multiply-adds that make a range worth its sum
_SPAN_WORK = 1 << 15  # numbers that make a span of features worth a thread
_MAX_FEATURES = (1 << 32) // CHUNK - 1  # offsets into x are uint32
_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
_LARGEST = {number: float(np.finfo(number).max) for number in _NUMPY.values()}
_constants = functools.cache(exp_constants)


def _label_ranges(L: int, parts: int, group_size: int) -> list[tuple[int, int]]:
    """Ranges of whole groups, at most ``parts`` and 16, each with its own sum for dx: the same for any number of threads,
    so that no result depends on it."""
    if parts < len(_SHARES):
        return threads.split(L, parts, group_size)
    pieces = iter(threads.split(L, sum(_SHARES), group_size))
    shares = [list(itertools.islice(pieces, share)) for share in _SHARES]
    return [(share[0][0], share[-1][1]) for share in shares if share]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Sweep:
    """One pass over all labels, and the memory that it works in: O(B D) numbers. ``finite``: whether x is."""

    def __init__(self, x: Tensor, layer: Layer, positives: Positives, objective: Objective, need_x: bool) -> None:
        (self.B, self.D), (L, self.K) = x.shape, layer.weight.shape
        if self.D > _MAX_FEATURES:
            raise ValueError(f"x must have at most {_MAX_FEATURES:,} features, got {list(x.shape)}")
        self.x, self.need_x = x, need_x
        self.labels, self.rows = positives.labels.contiguous(), positives.rows.contiguous()
        self.dtype = compute_dtype(x.dtype)
        self.number = _NUMPY[self.dtype]
        self.layer = layer._replace(
            weight=layer.weight.contiguous(),
            indices=layer.indices.contiguous(),
            bias=None if layer.bias is None else layer.bias.contiguous(),
        )
        last = chunk_width((self.B - 1) % CHUNK + 1) if self.B else 0
        padded = (self.B - 1) // CHUNK * CHUNK + last if self.B else 0
        self.ranges = _label_ranges(L, L * self.K * padded // _PART_WORK, layer.group_size)
        self.objective = objective
        self.collectors = CHUNK if objective.sample_weight is None else padded
        self.size = self.D * padded
        self.memory = x.new_empty((1 + len(self.ranges)) * self.size if need_x else self.size, dtype=self.dtype)
        self.finite = fill_slab(x, self.memory.numpy(), CHUNK, last)

    def run(
        self,
        mode: int,
        *,
        scale: float = 1.0,
        dw: Tensor | None = None,
        db: Tensor | None = None,
        rule: Update = Update(),  # noqa: B008
        correction: float = 1.0,
    ) -> np.floating[Any]:
        """Returns the sum of the loss; ``dx`` may be asked for afterwards."""
        numbers = self._numbers(scale, rule, correction)
        direct = self.layer.weight.dtype == self.dtype
        at_once = (
            mode == UPDATE
            and direct
            and 0 < self.B <= CHUNK
            and self.layer.group_size < GROUP_FROM
            and rule.momentum_buffer is None
            and rule.second_moment is None
        )
        if at_once:
            keep, rate = 1 - numbers.lr * numbers.weight_decay, -numbers.lr * numbers.scale
            numbers = numbers._replace(keep=_in_range(keep, self.number), rate=_in_range(rate, self.number))
        goal, start, itemsize = self.objective, self.memory.data_ptr(), self.memory.itemsize
        parts, scratch_bytes = len(self.ranges), scratch_size(self.K, itemsize, self.collectors)
        losses = torch.empty(parts, dtype=torch.float64, device="cpu")
        nnz = self.labels.shape[0]
        logits_bytes = 0 if goal.pos_weight is None else (nnz + 8) * itemsize
        scratch = torch.empty(parts * scratch_bytes + logits_bytes, dtype=torch.uint8, device="cpu")
        weight, indices, bias = (location(tensor) for tensor in self.layer[:3])
        stored, stored_bias = location(dw), location(db)
        buffer, bias_buffer = location(rule.momentum_buffer), location(rule.bias_momentum_buffer)
        fields = Fields(
            slab=start,
            sums=start + self.size * itemsize,
            size=self.size,
            scratch=scratch.data_ptr(),
            scratch_size=scratch_bytes,
            losses=losses.data_ptr(),
            labels=self.labels.data_ptr(),
            rows=self.rows.data_ptr(),
            nnz=nnz,
            weight=weight[0],
            weight_code=weight[1],
            indices=indices[0],
            index_code=indices[1],
            bias=bias[0],
            bias_code=bias[1],
            dw=stored[0],
            dw_code=stored[1],
            db=stored_bias[0],
            db_code=stored_bias[1],
            buffer=buffer[0],
            buffer_code=buffer[1],
            moment=_address(rule.second_moment),
            bias_buffer=bias_buffer[0],
            bias_buffer_code=bias_buffer[1],
            bias_moment=_address(rule.bias_second_moment),
            pos_weight=_address(goal.pos_weight),
            logits=scratch.data_ptr() + parts * scratch_bytes,
            sample_weight=_address(goal.sample_weight),
            collectors=self.collectors,
            B=self.B,
            D=self.D,
            K=self.K,
            group_size=self.layer.group_size,
            loss=LOSSES[goal.loss],
            mode=mode,
            need_x=self.need_x,
            need_weight=mode == UPDATE or dw is not None,
            direct=direct,
            at_once=at_once,
            stochastic=rule.stochastic,
            seed=_signed(rule.seed),
            step=int(rule.step),
        )
        tasks = [(part, *labels) for part, labels in enumerate(self.ranges)]
        arrays = (np.array(fields, np.int64), np.array(numbers, self.number), _constants(self.number))
        threads.run(_loss_sweep.sweep, tasks, *arrays)
        return self.number(losses.numpy().sum())

    def _numbers(self, scale: float, rule: Update, correction: float) -> Numbers:
        goal = self.objective
        rates = (float(rule.lr), rule.momentum, rule.weight_decay, rule.decay, rule.gain, correction, rule.eps)
        return Numbers(scale, 1.0, 1.0, *rates, goal.gamma_pos, goal.gamma_neg, goal.clip)

    def dx(self, factor: float) -> Tensor:
        """``factor`` times the gradient of the input, its partial sums added in ascending order."""
        dx = torch.empty(self.B, self.D, dtype=self.dtype, device="cpu")
        partial = self.memory.numpy()[self.size :].reshape(len(self.ranges), self.size)
        spans = threads.split(self.D, min(threads.num_threads(), 1 + partial.size // _SPAN_WORK), 16)
        threads.run(_loss_sweep.input_gradient, spans, partial, self.number(factor), dx.numpy())
        return dx if dx.dtype == self.x.dtype else dx.to(self.x.dtype)

    def factors(self, scaling: Scaling) -> tuple[float, float]:
        """What the gradients of x and of updated parameters are multiplied by, rounded as a division of tensors is."""
        upstream = 1.0 if scaling.upstream is None else scaling.upstream.item()
        factor = self._rounded(upstream / scaling.divisor)
        if scaling.loss_scale is None:
            return factor, factor
        loss_scale = scaling.loss_scale.item()
        own = self._rounded(upstream / loss_scale) if loss_scale else math.nan
        return factor, self._rounded(own / scaling.divisor)

    def _rounded(self, value: float) -> float:
        """A quotient of two numbers of the arithmetic's dtype, rounded to it: what a division in that dtype gives."""
        return float(_in_range(value, self.number))


def _in_range(value: float, number: Any) -> Any:
    """``number(value)``, without a warning where that is inf."""
    return number(math.copysign(math.inf, value) if abs(value) > _LARGEST[number] else value)


def _signed(seed: int) -> int:
    """The 64 bits of ``seed`` as a signed integer."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _mean(total: Any, divisor: float) -> Tensor:
    """``total / divisor`` in total's dtype, 0-dim."""
    return torch.from_numpy(np.asarray(total / type(total)(divisor)))


def loss_forward(x: Tensor, layer: Layer, positives: Positives, objective: Objective, divisor: float) -> Tensor:
    """The sum of the loss over rows and labels, divided by ``divisor``."""
    return _mean(_Sweep(x, layer, positives, objective, False).run(FORWARD), divisor)


def loss_gradients(
    x: Tensor, layer: Layer, positives: Positives, objective: Objective, scaling: Scaling, needed: Needed
) -> Gradients:
    """Gradients of the loss in one sweep: (dx, dw, db), None where not needed."""
    weight, _, bias, _ = layer
    dw = weight.new_empty(weight.shape) if needed.weight else None
    db = bias.new_empty(bias.shape) if needed.bias and bias is not None else None
    sweep = _Sweep(x, layer, positives, objective, needed.x)
    factor, _ = sweep.factors(scaling)
    sweep.run(GRADIENTS, scale=factor, dw=dw, db=db)
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
    sweep = _Sweep(x, layer, positives, objective, need_x)
    factor, own = sweep.factors(scaling)
    if math.isfinite(own) and sweep.finite:
        total = sweep.run(UPDATE, scale=own, rule=update, correction=_correction(update))
    else:
        total = sweep.run(GRADIENTS)
    return _mean(total, scaling.divisor) if need_loss else None, sweep.dx(factor) if need_x else None


def _correction(update: Update) -> float:
    """Of the second moments; counts the update."""
    if update.applied is None:
        return 1.0 if update.correction is None else float(update.correction)
    count = update.applied.numpy()
    count += 1
    return 1 / (1 - update.decay ** float(count))
