"""Fused head on the GPU: loss, gradients and weight update label tile by label tile; no ``[B, L]`` tensor, ever.

The interface and the loss functions stand in ``ops/_contract.py``, the update rule in ``ops/update.py``. Each program
owns a label tile (``loss_gather``: a few labels; ``loss_group``: labels that share their connections) and walks over the
batch with its weights and their gradient in registers. The input gradient is added to a feature-major float32 buffer
with atomics, or, under ``torch.use_deterministic_algorithms``, in a fixed order to a bounded number of private buffers.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE, compute_dtype
from sparse_xmc.ops._backend import interpreting
from sparse_xmc.ops._contract import Gradients, Layer, Needed, Objective, Positives, Scaling
from sparse_xmc.ops.triton_kernels._compile_case import CompileCase
from sparse_xmc.ops.triton_kernels._dot import TRITON_DTYPES, fp32_precision
from sparse_xmc.ops.triton_kernels._launch import batch_major, feature_major, on_device
from sparse_xmc.ops.triton_kernels.loss_gather import gather_tile
from sparse_xmc.ops.triton_kernels.loss_group import group_tile
from sparse_xmc.ops.update import Update

MAX_DOT_FAN_IN = 256
MAX_FAN_IN = 8192
PRIVATE_BYTES = 1 << 28  # input gradient buffers of the deterministic variant, all together
MAX_PRIVATE = 512


@triton.jit(do_not_specialize=["B", "L", "nnz", "search_steps", "num_tiles"])
def _fused_head(
    xt_ptr,  # [D, stride], zeros from column B on
    weight_ptr,  # [L, K]
    indices_ptr,  # [ceil(L / G), K]
    bias_ptr,  # [L] | None
    labels_ptr,  # [nnz] ascending
    rows_ptr,  # [nnz]
    sums_ptr,  # [programs] | None
    dxt_ptr,  # [D, stride], or [programs, D, stride] without atomics | None
    dw_ptr,  # [L, K] | None
    db_ptr,  # [L] | None
    scale_ptr,  # 0-dim | None
    weight_momentum_ptr,  # [L, K] | None
    weight_moment_ptr,  # [L] | None
    bias_momentum_ptr,  # [L] | None
    bias_moment_ptr,  # [L] | None
    correction_ptr,  # 0-dim | None: 1
    B,
    D,
    stride: tl.int64,
    L,
    nnz,
    search_steps,
    num_tiles,
    lr: tl.float64,
    momentum: tl.float64,
    weight_decay: tl.float64,
    decay: tl.float64,
    gain: tl.float64,
    eps: tl.float64,
    seed: tl.int64,
    step: tl.int64,
    K: tl.constexpr,
    G: tl.constexpr,
    LOSS: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    UPDATE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ATOMIC: tl.constexpr,
    OFFSET: tl.constexpr,
    DOT: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    NEED_LOSS: tl.constexpr = sums_ptr is not None
    first = tl.program_id(0).to(tl.int64)
    count = tl.num_programs(0)
    if not ATOMIC:
        dxt_ptr += first * D * stride
    ACC: tl.constexpr = tl.float64 if xt_ptr.dtype.element_ty == tl.float64 else tl.float32
    correction = tl.full((), 1.0, ACC)
    if correction_ptr is not None:
        correction = tl.load(correction_ptr)
    total = tl.full((), 0.0, ACC)
    for tile in range(first, num_tiles, count):
        if DOT is None:
            total += gather_tile(
                tile, xt_ptr, weight_ptr, indices_ptr, bias_ptr, labels_ptr, rows_ptr, dxt_ptr, dw_ptr, db_ptr, scale_ptr,
                weight_momentum_ptr, weight_moment_ptr, bias_momentum_ptr, bias_moment_ptr,
                B, stride, L, nnz, search_steps, lr, momentum, weight_decay, decay, gain, correction, eps, seed, step,
                K, G, LOSS, NEED_LOSS, NEED_WEIGHT, UPDATE, STOCHASTIC, ATOMIC, OFFSET, BLOCK_L, BLOCK_K, BLOCK_B,
            )  # fmt: skip
        else:
            total += group_tile(
                tile, xt_ptr, weight_ptr, indices_ptr, bias_ptr, labels_ptr, rows_ptr, dxt_ptr, dw_ptr, db_ptr, scale_ptr,
                weight_momentum_ptr, weight_moment_ptr, bias_momentum_ptr, bias_moment_ptr,
                B, stride, L, nnz, search_steps, lr, momentum, weight_decay, decay, gain, correction, eps, seed, step,
                K, G, LOSS, NEED_LOSS, NEED_WEIGHT, UPDATE, STOCHASTIC, ATOMIC, OFFSET, DOT, TERMS, PRECISION, SHIFT,
                BLOCK_L, BLOCK_K, BLOCK_B,
            )  # fmt: skip
        if not ATOMIC:
            tl.debug_barrier()  # the next tile's read-modify-write may touch what another thread has just written
    if NEED_LOSS:
        tl.store(sums_ptr + first, total)


class Tiling(NamedTuple):
    """Block sizes of one launch. dot: whether a tile is a group of labels (``loss_group``)."""

    dot: bool
    tiles: int
    block_l: int
    block_k: int
    block_b: int
    num_warps: int


def tiling(B: int, L: int, K: int, G: int, dtype: torch.dtype, deterministic: bool = False) -> Tiling:
    """Tile shape and sizes, a pure function of shapes and x's dtype. The batch enters by powers of two only."""
    batch = triton.next_power_of_2(max(B, 1))
    if G > 1 and K <= MAX_DOT_FAN_IN and dtype != torch.float64:
        block_k = max(16, triton.next_power_of_2(K))
        block_l = min(max(16, triton.next_power_of_2(G)), max(16, 4096 // block_k), 64)
        widest = 4096 if dtype != torch.float32 else 1024
        block_b = min(max(16, batch), max(16, widest // block_k), max(16, 2048 // block_l), 64)
        tiles = triton.cdiv(L, G) * triton.cdiv(G, block_l)
        return Tiling(True, tiles, block_l, block_k, block_b, 4)
    # 32 elements per thread; several labels only where a label has too few for a warp
    block_k = max(8, triton.next_power_of_2(K))
    if block_k > MAX_FAN_IN:
        raise ValueError(f"the Triton fused head takes a fan_in up to {MAX_FAN_IN}, got {K}")
    block_b = min(max(16, batch), max(1, 8192 // block_k), 64)
    block_l = max(1, (16384 if interpreting() else 1024) // (block_k * block_b))
    if deterministic:
        block_l = 1  # two labels of a tile may add to the same feature
    return Tiling(
        False, triton.cdiv(L, block_l), block_l, block_k, block_b, max(1, block_l * block_k * block_b // 1024)
    )


def operands(activation: torch.dtype, weight: torch.dtype) -> tuple[tl.dtype, int, str]:
    """How ``tl.dot`` multiplies: dtype of its operands, how many of them make up a float32 number, float32 precision.

    Equal 16-bit dtypes, and 16-bit with 8-bit, are multiplied as they are. bfloat16 activations take a wider weight as
    three bfloat16 numbers, exactly. All else is multiplied as float32: with TensorFloat-32 where torch allows it, else
    as bfloat16 triples.
    """
    if activation != torch.float32 and weight in (activation, QUANTIZED_DTYPE):
        return TRITON_DTYPES[activation], 1, "ieee"
    if activation == torch.bfloat16:
        return tl.bfloat16, 3, "ieee"
    exact = "ieee" if interpreting() else "bf16x6"  # the interpreter knows no triples
    return tl.float32, 1, "tf32" if fp32_precision() == "tf32" else exact


def _sweep(
    x: Tensor,
    layer: Layer,
    positives: Positives,
    objective: Objective,
    *,
    need_loss: bool,
    need_x: bool = False,
    scale: Tensor | None = None,
    dw: Tensor | None = None,
    db: Tensor | None = None,
    update: Update | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """One launch over all labels. Returns (sum of the loss | None, unscaled input gradient [D, padded(B)] | None).

    ``scale`` multiplies the gradients of weight and bias. They are stored in ``dw`` and ``db``, or applied by ``update``.
    """
    if objective.loss == "asymmetric" or objective.pos_weight is not None or objective.sample_weight is not None:
        raise NotImplementedError("weights of labels and rows and the asymmetric loss have no Triton kernel yet")
    (B, D), (L, K), G = x.shape, layer.weight.shape, layer.group_size
    acc, in_place = compute_dtype(x.dtype), update is not None
    rule = Update() if update is None else update
    weight, indices, bias, _ = layer
    if not in_place:
        weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    deterministic = need_x and torch.are_deterministic_algorithms_enabled()
    plan = tiling(B, L, K, G, x.dtype, deterministic)
    operand, terms, precision = operands(x.dtype, weight.dtype) if plan.dot else (None, 1, None)
    xt = feature_major(x)
    programs = plan.tiles
    dxt = None
    if need_x and deterministic:
        buffer_bytes = xt.numel() * acc.itemsize
        programs = max(1, min(plan.tiles, PRIVATE_BYTES // max(1, buffer_bytes), MAX_PRIVATE))
        dxt = torch.zeros(programs, *xt.shape, dtype=acc, device=x.device)
    elif need_x:
        dxt = torch.zeros(xt.shape, dtype=acc, device=x.device)
    sums = torch.empty(programs, dtype=acc, device=x.device) if need_loss else None
    nnz = positives.labels.shape[0]
    with on_device(x):
        _fused_head[(programs,)](
            xt, weight, indices.contiguous(), bias, positives.labels, positives.rows, sums, dxt, dw, db, scale,
            *rule[:4], rule.correction, B, D, xt.shape[1], L, nnz, nnz.bit_length(), plan.tiles, rule.lr, rule.momentum,
            rule.weight_decay, rule.decay, rule.gain, rule.eps, _signed(rule.seed), rule.step % (1 << 32),
            K=K, G=G, LOSS=objective.loss, NEED_WEIGHT=in_place or dw is not None or db is not None, UPDATE=in_place,
            STOCHASTIC=rule.stochastic, ATOMIC=not deterministic,
            OFFSET=tl.int32 if xt.numel() < 1 << 31 else tl.int64, DOT=operand, TERMS=terms, PRECISION=precision,
            SHIFT=2.0**14 if objective.loss == "bce" and operand == tl.float16 else 1.0,
            BLOCK_L=plan.block_l, BLOCK_K=plan.block_k, BLOCK_B=plan.block_b, num_warps=plan.num_warps,
        )  # fmt: skip
    total = sums.sum(dtype=torch.float64).to(acc) if sums is not None else None
    if dxt is not None and deterministic:
        dxt = dxt.sum(0)
    return total, dxt


def _signed(seed: int) -> int:
    """The 64 bits of ``seed`` as a signed integer."""
    seed %= 1 << 64
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _scale(scaling: Scaling, x: Tensor) -> Tensor:
    """``upstream / divisor``, 0-dim on x's device."""
    one = (
        torch.ones((), dtype=compute_dtype(x.dtype), device=x.device) if scaling.upstream is None else scaling.upstream
    )
    return one / scaling.divisor


def _corrected(update: Update, scale: Tensor) -> Update:
    """An update whose correction follows from the count of updates, which counts this one unless it is skipped."""
    if update.applied is None:
        return update
    update.applied.add_(scale.isfinite())
    return update._replace(correction=(1 / (1 - update.decay**update.applied)).to(scale.dtype))


def _input_gradient(dxt: Tensor | None, scale: Tensor, x: Tensor) -> Tensor | None:
    return None if dxt is None else batch_major(dxt.mul_(scale), x.shape[0], x.dtype)


def loss_forward(x: Tensor, layer: Layer, positives: Positives, objective: Objective, divisor: float) -> Tensor:
    """The sum of the loss over rows and labels, divided by ``divisor``."""
    total, _ = _sweep(x, layer, positives, objective, need_loss=True)
    assert total is not None
    return total / divisor


def loss_gradients(
    x: Tensor, layer: Layer, positives: Positives, objective: Objective, scaling: Scaling, needed: Needed
) -> Gradients:
    """Gradients of the loss: (dx, dw, db), None where not needed."""
    weight, _, bias, _ = layer
    dw = torch.empty(weight.shape, dtype=weight.dtype, device=x.device) if needed.weight else None
    db = torch.empty(bias.shape, dtype=bias.dtype, device=x.device) if needed.bias and bias is not None else None
    scale = _scale(scaling, x)
    _, dxt = _sweep(x, layer, positives, objective, need_loss=False, need_x=needed.x, scale=scale, dw=dw, db=db)
    return _input_gradient(dxt, scale, x), dw, db


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
    """Loss, input gradient at the old weights, and the update of weight, bias and state in place."""
    scale = own = _scale(scaling, x)
    if scaling.loss_scale is not None:
        assert scaling.upstream is not None
        own = scaling.upstream / scaling.loss_scale.to(scale.dtype) / scaling.divisor
    if x.numel():
        own = own + (0 * x).sum(dtype=own.dtype)  # NaN, at which nothing is updated, if x holds inf or NaN
    total, dxt = _sweep(
        *(x, layer, positives, objective), need_loss=need_loss, need_x=need_x, scale=own, update=_corrected(update, own)
    )
    return total if total is None else total / scaling.divisor, _input_gradient(dxt, scale, x)


def compile_cases() -> Iterator[CompileCase]:
    """The step in every dtype and tile, with every kind of state once; gradients once per tile."""
    half, wide = torch.bfloat16, torch.float32
    for dtypes, K, G in (
        ((half, half), 32, 1),
        ((wide, wide), 32, 1),
        ((torch.float64, torch.float64), 32, 1),
        ((half, half), 64, 32),
        ((half, half), 128, 64),
        ((half, wide), 64, 32),
        ((wide, wide), 64, 32),
    ):
        yield _step_case(dtypes, K, G, "bce")
    for K, G in ((32, 1), (64, 32)):
        yield _step_case((half, half), K, G, "squared_hinge", momentum=True, moment=True)
        yield _step_case((half, half), K, G, "bce", moment=True)
        yield _step_case((half, half), K, G, "bce", deterministic=True)
        problem = (*_meta_problem(half, half, K, G), Objective(), Scaling(), Needed(True, True, True))
        yield CompileCase(f"gradients[K={K},G={G}]", functools.partial(loss_gradients, *problem))


def _meta_problem(dtype: torch.dtype, weight_dtype: torch.dtype, K: int, G: int) -> tuple[Tensor, Layer, Positives]:
    B, D, L, nnz = 128, 768, 20_011, 640
    sizes = ((B, D), (L, K), (-(-L // G), K), (L,), (nnz,), (nnz,))
    dtypes = (dtype, weight_dtype, torch.uint16, weight_dtype, torch.int64, torch.int32)
    x, weight, indices, bias, labels, rows = (
        torch.empty(*size, dtype=d, device="meta") for size, d in zip(sizes, dtypes, strict=True)
    )
    return x, Layer(weight, indices, bias, G), Positives(labels, rows, B, L)


def _step_case(
    dtypes: tuple[torch.dtype, torch.dtype],
    K: int,
    G: int,
    loss: str,
    *,
    momentum: bool = False,
    moment: bool = False,
    deterministic: bool = False,
) -> CompileCase:
    x, layer, positives = _meta_problem(*dtypes, K, G)
    scale = torch.empty((), dtype=compute_dtype(dtypes[0]), device="meta")
    moments = [torch.empty(layer.weight.shape[0], dtype=scale.dtype, device="meta") if moment else None for _ in "wb"]
    buffers = [torch.empty_like(tensor) if momentum and tensor is not None else None for tensor in layer[0:3:2]]
    update = Update(
        buffers[0], moments[0], buffers[1], moments[1], 0.1, 0.9, 1e-4, 0.9, 0.1, 1e-8,
        correction=scale if moment else None, seed=1, step=2,
    )  # fmt: skip

    def launch() -> None:
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(deterministic)
        try:
            loss_step_(x, layer, positives, Objective(loss), Scaling(2.0), update, need_loss=True, need_x=True)
        finally:
            torch.use_deterministic_algorithms(before)

    names = "-".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))
    state = ",momentum" * momentum + ",moment" * moment + ",deterministic" * deterministic
    return CompileCase(f"step[{names},K={K},G={G},{loss}{state}]", launch)
