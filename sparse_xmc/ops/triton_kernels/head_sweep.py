"""One sweep of the fused head over all labels: the launches before, in and behind it, and the memory between them."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops._contract import Layer, Objective, Positives, Scaling
from sparse_xmc.ops._topology_cache import cached_inverse
from sparse_xmc.ops.triton_kernels import input_gradient, linear_inverted
from sparse_xmc.ops.triton_kernels._dot import TRITON_DTYPES
from sparse_xmc.ops.triton_kernels._launch import cdiv, launch, on_device, padded
from sparse_xmc.ops.triton_kernels._surround import finish_kernel, prepare_kernel
from sparse_xmc.ops.triton_kernels.head_kernel import fused_head
from sparse_xmc.ops.triton_kernels.head_tiling import Tiling, operands, tiling
from sparse_xmc.ops.triton_kernels.transpose import transpose_indices
from sparse_xmc.ops.update import Update

PRIVATE_BYTES = 1 << 28  # private buffers of the input gradient, all together
MAX_PRIVATE = 512
MAX_PROGRAMS = 1 << 16  # so many partial sums of the loss, which one program adds up
_BLOCK = 64  # rows and features of a tile that is transposed
_BUCKETS = 1024  # of positives that one program finds


class Wanted(NamedTuple):
    """What a sweep is to find beside the update: the loss, the gradient of x, and where those of parameters go."""

    loss: bool = False
    x: bool = False
    dw: Tensor | None = None
    db: Tensor | None = None


class _Call(NamedTuple):
    """The arguments of a sweep and what was decided about it. way: of the input gradient (``input_gradient``)."""

    x: Tensor
    layer: Layer
    positives: Positives
    objective: Objective
    scaling: Scaling
    wanted: Wanted
    update: Update | None
    plan: Tiling
    way: str

    @property
    def in_place(self) -> bool:
        return self.update is not None

    @property
    def need_weight(self) -> bool:
        return self.in_place or self.wanted.dw is not None or self.wanted.db is not None


class _Memory(NamedTuple):
    """What the launches of one sweep share; see ``fused_head`` and ``prepare_kernel`` for shapes."""

    xt: Tensor
    dxt: Tensor | None
    starts: Tensor
    sums: Tensor | None  # [parts, programs]
    scale: Tensor | None
    bad: Tensor | None
    correction: Tensor | None


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
    layer = layer._replace(indices=layer.indices.contiguous())
    if update is None:
        bias = None if layer.bias is None else layer.bias.contiguous()
        layer = layer._replace(weight=layer.weight.contiguous(), bias=bias)
    (B, D), (L, K), G = x.shape, layer.weight.shape, layer.group_size
    way = input_gradient.way(B, L, D, K, G, x.dtype) if wanted.x else "none"
    adaptive = update is not None and update.second_moment is not None
    few_registers = x.dtype == layer.weight.dtype and x.element_size() == 2 and way == "atomic" and not adaptive
    plan = tiling(B, L, K, G, x.dtype, one_label=way == "private", few_registers=few_registers)
    call = _Call(x, layer, positives, objective, scaling, wanted, update, plan, way)
    chunk = input_gradient.labels_at_once(padded(B), x.dtype, plan.block_l) if way == "rows" else L
    parts = [(first, min(first + chunk, L)) for first in range(0, L, chunk)]
    programs = min(plan.tiles, cdiv(chunk, plan.block_l) if way == "rows" else plan.tiles, _most_programs(call))
    memory = _allocate(call, len(parts), programs)
    with on_device(x):
        try:
            _prepare(call, memory)
            for part, (first, last) in enumerate(parts):
                _sweep_labels(call, memory, part, programs, first, last)
            if way == "private" and memory.dxt is not None:
                memory = memory._replace(dxt=memory.dxt.sum(0))
            return _finish(call, memory)
        except BaseException:
            _flag.cache_clear()  # nobody has taken it back to 0
            raise


@functools.cache
def _flag(device: torch.device, stream: int) -> Tensor:
    """Whether x holds inf or nan: 0-dim int32 that is 0 between sweeps of a stream."""
    return torch.zeros((), dtype=torch.int32, device=device)


def _most_programs(call: _Call) -> int:
    if call.way != "private":
        return MAX_PROGRAMS
    (B, D), acc = call.x.shape, compute_dtype(call.x.dtype)
    return max(1, min(MAX_PRIVATE, PRIVATE_BYTES // max(1, D * padded(B) * acc.itemsize)))


def _allocate(call: _Call, parts: int, programs: int) -> _Memory:
    x, update, plan = call.x, call.update, call.plan
    (B, D), acc = x.shape, compute_dtype(x.dtype)
    shape = (D, padded(B))
    dxt = scale = bad = correction = None
    if call.way == "private":
        dxt = torch.zeros(programs, *shape, dtype=acc, device=x.device)
    elif call.way != "none":
        dxt = torch.empty(shape, dtype=acc, device=x.device)
    buckets = cdiv(call.layer.weight.shape[0], plan.width)
    sums = torch.empty(parts, programs, dtype=acc, device=x.device) if call.wanted.loss else None
    if call.need_weight:
        scale = torch.empty((), dtype=acc, device=x.device)
    if update is not None:
        bad = _flag(x.device, torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0)
        correction = update.correction
        if update.applied is not None:
            correction = torch.empty((), dtype=acc, device=x.device)
    xt = torch.empty(shape, dtype=x.dtype, device=x.device)
    return _Memory(
        xt, dxt, torch.empty(buckets + 1, dtype=torch.int32, device=x.device), sums, scale, bad, correction
    )  # fmt: skip


def _prepare(call: _Call, memory: _Memory) -> None:
    x, scaling, update, labels = call.x, call.scaling, call.update, call.positives.labels
    (B, D), buckets = x.shape, memory.starts.shape[0] - 1
    transposing = cdiv(D, _BLOCK) * cdiv(memory.xt.shape[1], _BLOCK)
    launch(
        prepare_kernel, (transposing + cdiv(buckets + 1, _BUCKETS),), x, *x.stride(), memory.xt,
        memory.dxt if call.way in ("atomic", "rows") else None, labels, memory.starts,
        memory.bad, scaling.upstream, scaling.loss_scale if call.in_place else None, memory.scale,
        *((None, None) if update is None else (update.applied, memory.correction)),
        B, D, memory.xt.shape[1], labels.shape[0], buckets, transposing, scaling.divisor,
        0.0 if update is None else update.decay,
        WIDTH=call.plan.width, BLOCK_B=_BLOCK, BLOCK_D=_BLOCK, BLOCK_S=_BUCKETS, num_warps=4,
    )  # fmt: skip


def _sweep_labels(call: _Call, memory: _Memory, part: int, programs: int, first: int, last: int) -> None:
    """Launches the head over the labels ``first`` to ``last - 1`` and, in the way "rows", sums their input gradient."""
    x, layer, plan = call.x, call.layer, call.plan
    (B, D), (L, K), stride = x.shape, layer.weight.shape, memory.xt.shape[1]
    tiles = (0, plan.tiles) if plan.dot else (first // plan.block_l, cdiv(last, plan.block_l))
    dz = old = None
    if call.way == "rows":
        dz = torch.empty(last - first, stride, dtype=input_gradient.dz_dtype(x.dtype), device=x.device)
        old = torch.empty(last - first, K, dtype=layer.weight.dtype, device=x.device)
    sums = None if memory.sums is None else memory.sums[part]
    goal, wanted, update = call.objective, call.wanted, call.update or Update()
    lr, lr_ptr = _number_or_pointer(update.lr)
    step, step_ptr = _number_or_pointer(update.step)
    launch(
        fused_head, (programs,), memory.xt, layer.weight, layer.indices, layer.bias, *call.positives[:2], memory.starts,
        goal.pos_weight, goal.sample_weight, sums, memory.dxt, dz, old, wanted.dw, wanted.db,
        memory.scale, memory.bad, *update[:4], memory.correction, lr_ptr, step_ptr,
        B, D, stride, L, *tiles, goal.gamma_pos, goal.gamma_neg, goal.clip,
        lr, update.momentum, update.weight_decay, update.decay, update.gain, update.eps, _signed(update.seed),
        step % (1 << 32), **_constants(call, memory, tiles[1] - tiles[0], programs),
    )  # fmt: skip
    if dz is not None and memory.dxt is not None:
        index = cached_inverse(layer.indices, D, transpose_indices)
        linear_inverted.sum_connections(*index, dz, old, memory.dxt, first, last, K, K, weight_start=first * K)


def _constants(call: _Call, memory: _Memory, tiles: int, programs: int) -> dict[str, Any]:
    x, layer, plan = call.x, call.layer, call.plan
    B, K = x.shape[0], layer.weight.shape[1]
    operand, terms, precision = operands(x.dtype, layer.weight.dtype) if plan.dot else (None, 1, None)
    narrow = operand is not None and TRITON_DTYPES[torch.float16] == operand
    return {
        "K": K,
        "G": layer.group_size,
        "LOSS": call.objective.loss,
        "NEED_WEIGHT": call.need_weight,
        "UPDATE": call.in_place,
        "STOCHASTIC": call.update is not None and call.update.stochastic,
        "DX": call.way,
        "EVEN": plan.block_k == K and B % plan.block_b == 0 and (plan.dot or plan.block_l == 1),
        "SINGLE": programs >= tiles,
        "WIDE": memory.xt.numel() >= 1 << 31,
        "WIDTH": plan.width,
        "DOT": operand,
        "TERMS": terms,
        "PRECISION": precision,
        "SHIFT": 2.0**14 if narrow and call.objective.loss != "squared_hinge" else 1.0,
        "BLOCK_L": plan.block_l,
        "BLOCK_K": plan.block_k,
        "BLOCK_B": plan.block_b,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
        **({} if plan.maxnreg is None or torch.version.hip else {"maxnreg": plan.maxnreg}),
    }


def _number_or_pointer(value: Any) -> tuple[Any, Tensor | None]:
    """A hyperparameter as the kernel takes it: a number, or a tensor that it reads when it runs."""
    return (0, value) if isinstance(value, Tensor) else (value, None)


def _signed(seed: int) -> int:
    """The 64 bits of ``seed`` as a signed integer."""
    seed %= 1 << 64
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _finish(call: _Call, memory: _Memory) -> tuple[Tensor | None, Tensor | None]:
    x, scaling, (B, D), stride = call.x, call.scaling, call.x.shape, memory.xt.shape[1]
    dx = loss = None
    programs = 1
    if memory.dxt is not None:
        dx = torch.empty(B, D, dtype=x.dtype, device=x.device)
        programs = max(1, cdiv(D, _BLOCK) * cdiv(stride, _BLOCK))
    if memory.sums is not None:
        loss = torch.empty((), dtype=memory.sums.dtype, device=x.device)
    if dx is not None or loss is not None or call.in_place:
        launch(
            finish_kernel, (programs,), memory.dxt, dx, memory.sums, loss, scaling.upstream, memory.scale, memory.bad,
            None if call.update is None else call.update.applied, B, D, stride,
            0 if memory.sums is None else memory.sums.numel(), scaling.divisor,
            BLOCK_B=_BLOCK, BLOCK_D=_BLOCK, BLOCK_S=2048, num_warps=4,
        )  # fmt: skip
    return loss, dx
