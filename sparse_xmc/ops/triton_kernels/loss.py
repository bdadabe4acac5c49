"""Fused head on the GPU: loss, gradients and weight update label tile by label tile; no ``[B, L]`` tensor, ever.

The interface and the loss functions stand in ``ops/_contract.py``, the update rule in ``ops/update.py``. A sweep
(``head_sweep``) is three launches: ``_surround`` prepares and finishes, in between every program of ``head_kernel`` owns
label tiles (``loss_gather``: a few labels; ``loss_group``: labels that share their connections) and walks over the batch
with its weights and their gradient in registers.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops._contract import Gradients, Layer, Needed, Objective, Positives, Scaling
from sparse_xmc.ops.triton_kernels import input_gradient
from sparse_xmc.ops.triton_kernels._compile_case import CompileCase
from sparse_xmc.ops.triton_kernels.head_plan import Wanted
from sparse_xmc.ops.triton_kernels.head_sweep import sweep
from sparse_xmc.ops.update import Update

_LOSS = Wanted(loss=True)


def loss_forward(x: Tensor, layer: Layer, positives: Positives, objective: Objective, divisor: float) -> Tensor:
    """The sum of the loss over rows and labels, divided by ``divisor``."""
    loss, _ = sweep(x, layer, positives, objective, Scaling(divisor), _LOSS)
    assert loss is not None
    return loss


def loss_gradients(
    x: Tensor, layer: Layer, positives: Positives, objective: Objective, scaling: Scaling, needed: Needed
) -> Gradients:
    """Gradients of the loss: (dx, dw, db), None where not needed."""
    weight, _, bias, _ = layer
    whole = torch.contiguous_format
    dw = torch.empty_like(weight, memory_format=whole) if needed.weight else None
    db = torch.empty_like(bias, memory_format=whole) if needed.bias and bias is not None else None
    _, dx = sweep(x, layer, positives, objective, scaling, Wanted(x=needed.x, dw=dw, db=db))
    return dx, dw, db


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
    return sweep(x, layer, positives, objective, scaling, Wanted(loss=need_loss, x=need_x), update)


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
        # shapes at the edge: no multiples of 16, many labels or connections in a group
        ((half, half), 33, 1),
        ((half, half), 33, 32),
        ((half, half), 64, 100),
        ((wide, wide), 256, 32),
    ):
        yield _step_case(dtypes, K, G, "bce")
    for K, G in ((32, 1), (64, 32)):
        yield _step_case((half, half), K, G, "squared_hinge", momentum=True, moment=True)
        yield _step_case((half, half), K, G, "bce", moment=True)
        for way in ("rows", "dense") if G == 1 else ("private",):
            yield _step_case((half, half), K, G, "bce", way=way)
        yield _step_case((half, half), K, G, "bce", need_loss=False)
        yield CompileCase(f"gradients[K={K},G={G}]", functools.partial(_gradients, K, G))


def _gradients(K: int, G: int) -> None:
    problem = _meta_problem(torch.bfloat16, torch.bfloat16, K, G)
    with input_gradient.forced("atomic"):
        loss_gradients(*problem, Objective(), Scaling(), Needed(True, True, True))


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
    way: str = "atomic",
    need_loss: bool = True,
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
        with input_gradient.forced(way):
            loss_step_(x, layer, positives, Objective(loss), Scaling(2.0), update, need_loss=need_loss, need_x=True)

    names = "-".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))
    state = ",momentum" * momentum + ",moment" * moment + f",{way}" * (way != "atomic") + ",no loss" * (not need_loss)
    return CompileCase(f"step[{names},K={K},G={G},{loss}{state}]", launch)
