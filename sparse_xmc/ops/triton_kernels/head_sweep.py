"""One sweep of the fused head over all labels: the launches before, in and behind it, and the memory between them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_xmc.ops._backend import capturing
from sparse_xmc.ops._contract import Layer, Objective, Positives, Scaling
from sparse_xmc.ops._topology_cache import cached_inverse
from sparse_xmc.ops.triton_kernels import head_search, linear_dense, linear_inverted
from sparse_xmc.ops.triton_kernels._launch import Plans, ready, stream_of
from sparse_xmc.ops.triton_kernels.head_plan import SHARED, Call, Part, Plan, Wanted
from sparse_xmc.ops.triton_kernels.transpose import transpose_indices
from sparse_xmc.ops.update import Update

_PLANS = Plans()
_NO_UPDATE = Update()


class _Memory(NamedTuple):
    """What the launches of a sweep share (``head_plan.SHARED``): tensors, or addresses in the block that is one allocation
    for all of it. ``bad``: whether x holds inf or nan."""

    xt: Any
    starts: Any
    dxt: Any
    dz: Any
    old_weight: Any
    sums: Any
    scale: Any
    correction: Any
    bad: Tensor | None
    block: Tensor | None


def sweep(
    x: Tensor,
    layer: Layer,
    positives: Positives,
    objective: Objective,
    scaling: Scaling,
    wanted: Wanted,
    update: Update | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """All labels once: (loss / divisor | None, dx | None); parameters' gradients are stored, or applied by ``update``."""
    weight, indices, bias, group_size = layer
    if not (weight.is_contiguous() and indices.is_contiguous() and (bias is None or bias.is_contiguous())):
        # parameters that are updated are contiguous: the ops see to that
        layer = Layer(
            weight.contiguous(), indices.contiguous(), None if bias is None else bias.contiguous(), group_size
        )
    call = Call(x, layer, positives, objective, scaling, wanted, update)
    key = call.key()
    plan = _PLANS.get(key)
    if plan is None:
        plan, settled = head_search.choose(call, run)
        if settled:
            _PLANS.keep(key, plan)
    return run(call, plan)


def run(call: Call, plan: Plan) -> tuple[Tensor | None, Tensor | None]:
    """Carries out a call as planned."""
    x, (weight, indices, bias, _), positives, goal = call.x, call.layer, call.positives, call.objective
    scaling, update = call.scaling, call.update or _NO_UPDATE
    stream = ready(
        x, weight, indices, bias, positives.labels, positives.rows, goal.pos_weight, goal.sample_weight,
        scaling.upstream, scaling.loss_scale, *update[:4], update.applied, update.correction,
        update.lr if isinstance(update.lr, Tensor) else None, update.step if isinstance(update.step, Tensor) else None,
    )  # fmt: skip
    memory = _allocate(call, plan, stream)
    try:
        _prepare(call, plan, memory, stream)
        for number, part in enumerate(plan.parts):
            _sweep_labels(call, plan, memory, number, part, stream)
        if plan.way in ("private", "dense"):
            memory = memory._replace(dxt=memory.dxt.sum(0))
        return _finish(call, plan, memory, stream)
    except BaseException:
        _flag_of.cache_clear()  # nobody has taken it back to 0
        raise


@functools.cache
def _flag_of(device: torch.device, stream: int) -> Tensor:
    """Whether x holds inf or nan: 0-dim int32 that is 0 between sweeps of a stream."""
    return torch.zeros((), dtype=torch.int32, device=device)


def _allocate(call: Call, plan: Plan, stream: int | None) -> _Memory:
    device, update = call.x.device, call.update
    bad = block = None
    found: list[Any]
    if update is not None:
        # the stream's own flag is 0 now, a graph's has to become so in every replay
        own = not capturing(call.x)
        if own:
            bad = _flag_of(device, stream_of(call.x) if stream is None else stream)
        else:
            bad = torch.zeros((), dtype=torch.int32, device=device)
    if stream is not None and plan.way in ("atomic", "none") and plan.compiled:
        block = torch.empty(plan.block, dtype=torch.uint8, device=device)
        start = block.data_ptr()
        found = [None if place is None else start + place for place in plan.places]
    else:
        found = [None if name not in plan.memory else plan.memory[name].allocate(device) for name in SHARED]
    if update is not None and update.applied is None:
        found[-1] = update.correction
    return _Memory._make((*found, bad, block))


def _prepare(call: Call, plan: Plan, memory: _Memory, stream: int | None) -> None:
    x, scaling, update, labels = call.x, call.scaling, call.update, call.positives.labels
    plan.prepare(
        stream, x, *x.stride(), memory.xt, memory.dxt if plan.way in ("atomic", "rows") else None, labels,
        memory.starts, memory.bad, scaling.upstream, None if update is None else scaling.loss_scale, memory.scale,
        *((None, None) if update is None else (update.applied, memory.correction)),
        *x.shape, plan.stride, labels.shape[0], plan.buckets, plan.transposing, scaling.divisor,
        0.0 if update is None else update.decay,
    )  # fmt: skip


def _sweep_labels(call: Call, plan: Plan, memory: _Memory, number: int, part: Part, stream: int | None) -> None:
    """Launches the head over a part of the labels and, in the ways "rows" and "dense", sums their input gradient."""
    layer, goal, wanted, update = call.layer, call.objective, call.wanted, call.update or _NO_UPDATE
    (B, D), (L, K), stride = call.x.shape, layer.weight.shape, plan.stride
    if plan.way == "dense":
        memory.old_weight.zero_()
    lr, step, lr_ptr, step_ptr = update.lr, update.step, None, None
    if isinstance(lr, Tensor):
        lr, lr_ptr = 0, lr
    if isinstance(step, Tensor):
        step, step_ptr = 0, step
    labels, rows, _, _ = call.positives
    part.launch(
        stream, memory.xt, *layer[:3], labels, rows, memory.starts, goal.pos_weight, goal.sample_weight,
        memory.sums if number == 0 or memory.sums is None else memory.sums[number],
        memory.dxt, memory.dz, memory.old_weight, wanted.dw, wanted.db,
        memory.scale, memory.bad, *update[:4], memory.correction, lr_ptr, step_ptr,
        B, D, stride, L, *part.tiles, goal.gamma_pos, goal.gamma_neg, goal.clip,
        lr, update.momentum, update.weight_decay, update.decay, update.gain, update.eps, _signed(update.seed),
        step % (1 << 32),
    )  # fmt: skip
    dz, old, out = memory.dz, memory.old_weight, memory.dxt
    if plan.way == "dense":
        linear_dense.add_product_(dz[: part.last - part.first, :B], old, out)
    elif plan.way == "rows":
        index = cached_inverse(layer.indices, D, transpose_indices)
        linear_inverted.sum_connections_(*index, dz, old, out, part.first, part.last, K, K, weight_start=part.first * K)


def _signed(seed: int) -> int:
    """The 64 bits of ``seed`` as a signed integer."""
    seed %= 1 << 64
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _finish(call: Call, plan: Plan, memory: _Memory, stream: int | None) -> tuple[Tensor | None, Tensor | None]:
    x, scaling, update = call.x, call.scaling, call.update
    dx = loss = None
    if memory.dxt is not None:
        # asking is less than naming a format
        dx = torch.empty_like(x) if x.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)
    if memory.sums is not None:
        loss = torch.empty_like(plan.scalar)
    if plan.finish is not None:
        plan.finish(
            stream, memory.dxt, dx, memory.sums, loss, scaling.upstream, memory.scale, memory.bad,
            None if update is None else update.applied, *x.shape, plan.stride,
            0 if loss is None else len(plan.parts) * plan.programs, scaling.divisor,
        )  # fmt: skip
    return loss, dx
