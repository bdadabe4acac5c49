"""What is decided about a sweep of the fused head before it runs: tiles, parts of the labels, and the launches."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops._contract import Layer, Objective, Positives, Scaling
from sparse_xmc.ops.triton_kernels import head_tiling, input_gradient, linear_dense
from sparse_xmc.ops.triton_kernels._dot import TRITON_DTYPES, fp32_precision
from sparse_xmc.ops.triton_kernels._launch import Launch, cdiv, padded
from sparse_xmc.ops.triton_kernels._surround import finish_kernel, prepare_kernel
from sparse_xmc.ops.triton_kernels.head_kernel import fused_head
from sparse_xmc.ops.triton_kernels.head_tiling import Tiling, operands
from sparse_xmc.ops.update import Update

PRIVATE_BYTES = 1 << 28  # private buffers of the input gradient, all together
MAX_PRIVATE = 512
MAX_PROGRAMS = 1 << 16  # so many partial sums of the loss, which one program adds up
SHARED = ("xt", "starts", "dxt", "dz", "old_weight", "sums", "scale", "correction")
_BLOCK = 64  # rows and features of a tile that is transposed
_BUCKETS = 1024  # of positives that one program finds


class Wanted(NamedTuple):
    """What a sweep is to find beside the update: the loss, the gradient of x, and where those of parameters go."""

    loss: bool = False
    x: bool = False
    dw: Tensor | None = None
    db: Tensor | None = None


class Call(NamedTuple):
    """The arguments of a sweep; weights, indices and bias are contiguous."""

    x: Tensor
    layer: Layer
    positives: Positives
    objective: Objective
    scaling: Scaling
    wanted: Wanted
    update: Update | None

    @property
    def need_weight(self) -> bool:
        """Whether gradients of the weights are computed, to be stored or applied."""
        return self.update is not None or self.wanted.dw is not None or self.wanted.db is not None

    def problem(self) -> input_gradient.Problem:
        """What the ways to the input gradient look at."""
        (B, D), weight = self.x.shape, self.layer.weight
        return input_gradient.Problem(B, weight.shape[0], D, weight.shape[1], self.x.dtype, weight.dtype)

    def key(self) -> tuple[Any, ...]:
        """All that a plan follows from."""
        x, (weight, indices, bias, group_size), goal, wanted = self.x, self.layer, self.objective, self.wanted
        upstream, scale = self.scaling.upstream, self.scaling.loss_scale
        return (
            x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.dtype, indices.dtype,
            bias is not None and bias.dtype, group_size, goal.loss, goal.pos_weight is None, goal.sample_weight is None,
            wanted.loss, wanted.x, wanted.dw is None, wanted.db is None, upstream is not None and upstream.dtype,
            scale is not None and scale.dtype, None if self.update is None else _kind(self.update),
            input_gradient.choice(), group_size > 1 and fp32_precision(),
        )  # fmt: skip


def _kind(update: Update) -> tuple[Any, ...]:
    momentum, moment, bias_momentum, bias_moment = update[:4]
    return (
        momentum is not None and momentum.dtype, moment is not None and moment.dtype,
        bias_momentum is not None and bias_momentum.dtype, bias_moment is not None and bias_moment.dtype,
        isinstance(update.lr, Tensor), isinstance(update.step, Tensor), update.applied is None,
        update.correction is not None and update.correction.dtype, update.stochastic,
    )  # fmt: skip


class Shared(NamedTuple):
    """A tensor that lives as long as a sweep."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    zeros: bool = False

    @property
    def nbytes(self) -> int:
        """Its size in a block of memory, aligned."""
        return -(-math.prod(self.shape) * self.dtype.itemsize // 256) * 256

    def allocate(self, device: torch.device) -> Tensor:
        """The tensor, zero where it has to be."""
        return (torch.zeros if self.zeros else torch.empty)(self.shape, dtype=self.dtype, device=device)


class Part(NamedTuple):
    """A launch of the head: labels ``first`` to ``last - 1``, which are ``tiles``."""

    first: int
    last: int
    tiles: tuple[int, int]
    launch: Launch


class Plan(NamedTuple):
    """How a kind of call is carried out.

    way: of the input gradient. programs: of a part; the last one may have fewer. buckets: of positives. transposing: programs
    of ``prepare`` that transpose x. stride: of x feature-major. memory: what the launches share, by the names of ``SHARED``;
    places, block: the same in one block of so many bytes. scalar: of the loss's dtype and device.
    """

    way: str
    tiling: Tiling
    parts: tuple[Part, ...]
    programs: int
    buckets: int
    transposing: int
    stride: int
    prepare: Launch
    finish: Launch | None
    memory: dict[str, Shared]
    places: tuple[int | None, ...]
    block: int
    scalar: Tensor

    @property
    def compiled(self) -> bool:
        """Whether all launches skip Triton's binding."""
        first, last = self.parts[0].launch, self.parts[-1].launch
        if self.prepare.compiled is None or first.compiled is None or last.compiled is None:
            return False
        return self.finish is None or self.finish.compiled is not None


def first_tiling(call: Call, way: str) -> Tiling:
    """The first guess for a way to the input gradient."""
    x, (L, K) = call.x, call.layer.weight.shape
    update, few_registers = call.update, False
    equal, narrow = x.dtype == call.layer.weight.dtype, x.element_size() == 2
    if equal and narrow and way == "atomic":
        adaptive = update is not None and update.second_moment is not None
        # float16 sums are shifted, which beside momenta and more than 32 labels takes more
        momentum = update is not None and update.momentum_buffer is not None
        few_registers = not (adaptive or (momentum and x.dtype == torch.float16 and call.layer.group_size > 32))
    return head_tiling.tiling(
        x.shape[0], L, K, call.layer.group_size, x.dtype,
        one_label=way == "private", few_registers=few_registers, wider=narrow and not equal,
        room=head_tiling.has_room(x.device), lanes=head_tiling.lanes_of(x.device),
    )  # fmt: skip


def make(call: Call, way: str, tiles: Tiling) -> Plan:
    """The plan of a call that goes this way with these tiles."""
    (B, D), L = call.x.shape, call.layer.weight.shape[0]
    stride, chunked = padded(B), way in input_gradient.OF_SINGLE_LABELS
    chunk = input_gradient.labels_at_once(way, call.problem(), tiles.block_l) if chunked else L
    programs = min(tiles.tiles, cdiv(chunk, tiles.block_l) if chunked else tiles.tiles, _most_programs(call, way))
    launches: dict[int, Launch] = {}
    parts = []
    for first in range(0, L, chunk):
        last = min(first + chunk, L)
        places = (0, tiles.tiles) if tiles.dot else (first // tiles.block_l, cdiv(last, tiles.block_l))
        number = places[1] - places[0]
        if number not in launches:
            launches[number] = Launch(
                fused_head, (min(programs, number),), **_constants(call, way, tiles, number, programs)
            )
        parts.append(Part(first, last, places, launches[number]))
    buckets = cdiv(L, tiles.width)
    transposing = cdiv(D, _BLOCK) * cdiv(stride, _BLOCK)
    blocks = {"BLOCK_B": _BLOCK, "BLOCK_D": _BLOCK, "num_warps": 4}
    prepare = Launch(
        prepare_kernel, (transposing + cdiv(buckets + 1, _BUCKETS),), WIDTH=tiles.width, BLOCK_S=_BUCKETS, **blocks
    )
    finish = None
    if way != "none" or call.wanted.loss or call.update is not None:
        finish = Launch(finish_kernel, (1 if way == "none" else max(1, transposing),), BLOCK_S=2048, **blocks)
    memory = _memory(call, way, parts, programs, buckets)
    ends = list(itertools.accumulate(part.nbytes for part in memory.values()))
    starts = dict(zip(memory, [0, *ends], strict=False))
    shared = tuple(starts.get(name) for name in SHARED)
    scalar = torch.empty((), dtype=compute_dtype(call.x.dtype), device=call.x.device)
    return Plan(
        way, tiles, tuple(parts), programs, buckets, transposing, stride, prepare, finish, memory, shared, ends[-1], scalar
    )  # fmt: skip


def _memory(call: Call, way: str, parts: list[Part], programs: int, buckets: int) -> dict[str, Shared]:
    """What the launches of a sweep share, by the names of ``fused_head``'s and ``prepare_kernel``'s arguments."""
    x, weight, update = call.x, call.layer.weight, call.update
    (B, D), acc = x.shape, compute_dtype(x.dtype)
    stride = padded(B)
    out = {"xt": Shared((D, stride), x.dtype), "starts": Shared((buckets + 1,), torch.int32)}
    copies = {"private": programs, "dense": linear_dense.splits(D, stride)}.get(way)
    if way != "none":
        out["dxt"] = Shared((D, stride) if copies is None else (copies, D, stride), acc, copies is not None)
    if way in input_gradient.OF_SINGLE_LABELS:
        out["dz"] = Shared((parts[0].last, stride), input_gradient.dz_dtype(x.dtype))
        out["old_weight"] = Shared((parts[0].last, D if way == "dense" else weight.shape[1]), weight.dtype)
    if call.wanted.loss:
        # the last part may have fewer programs, which leave theirs as it is
        out["sums"] = Shared((len(parts), programs), acc, parts[-1].launch.grid[0] < programs)
    if call.need_weight:
        out["scale"] = Shared((), acc)
    if update is not None and update.applied is not None:
        out["correction"] = Shared((), acc)
    return out


def _most_programs(call: Call, way: str) -> int:
    if way != "private":
        return MAX_PROGRAMS
    (B, D), acc = call.x.shape, compute_dtype(call.x.dtype)
    return max(1, min(MAX_PRIVATE, PRIVATE_BYTES // max(1, D * padded(B) * acc.itemsize)))


def _constants(call: Call, way: str, plan: Tiling, tiles: int, programs: int) -> dict[str, Any]:
    x, layer, update = call.x, call.layer, call.update
    (B, D), K = x.shape, layer.weight.shape[1]
    operand, terms, precision = operands(x.dtype, layer.weight.dtype) if plan.dot else (None, 1, None)
    narrow = operand is not None and TRITON_DTYPES[torch.float16] == operand
    return {
        "K": K,
        "G": layer.group_size,
        "LOSS": call.objective.loss,
        "NEED_WEIGHT": call.need_weight,
        "UPDATE": update is not None,
        "STOCHASTIC": update is not None and update.stochastic,
        "DX": way,
        "EVEN": plan.block_k == K and B % plan.block_b == 0 and (plan.dot or plan.block_l == 1),
        "SINGLE": programs >= tiles,
        "WIDE": D * padded(B) >= 1 << 31,
        "WIDTH": plan.width,
        "DOT": operand,
        "TERMS": terms,
        "PRECISION": precision,
        "SHIFT": 2.0**14 if narrow and call.objective.loss != "squared_hinge" else 1.0,
        "BLOCK_L": plan.block_l,
        "BLOCK_K": plan.block_k,
        "BLOCK_B": plan.block_b,
        "HINTS": plan.hints,
        "num_warps": plan.num_warps,
        "num_stages": plan.num_stages,
        **({} if plan.maxnreg is None or torch.version.hip else {"maxnreg": plan.maxnreg}),
    }
