"""Fixed fan-in layer over sparse input rows (tf-idf, one-hot): ``x`` is ``torch.sparse_csr [B, D]``, without gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import LayerShape, Targets, check_constant, check_topology, validate_indices
from sparse_xmc.ops._backend import cpu_kernels, debugging
from sparse_xmc.ops._contract import Objective
from sparse_xmc.ops._dispatch import define, differentiated, direct, first_order
from sparse_xmc.ops._objective import FUSED_LOSSES, LossOptions, divisor, objective
from sparse_xmc.ops._targets import sorted_positives

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _forward(*arguments: Any) -> Tensor:
    return cpu_kernels("sparse_input").forward(*arguments)


def sparse_loss_gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(sum over rows and labels, dw, db); the gradients are empty unless asked for."""
    *rows_and_layer, pos_weight, sample_weight, loss, numbers, group_size, gradients = arguments
    goal = Objective(loss, pos_weight, sample_weight, *numbers)
    return cpu_kernels("sparse_input").loss_gradients(*rows_and_layer, goal, group_size, gradients)


def sparse_loss_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, gradients = arguments[4], arguments[6], arguments[-1]
    L = weight.shape[0] if gradients else 0
    return weight.new_empty(()), weight.new_empty(L, weight.shape[1]), weight.new_empty(L if bias is not None else 0)


sparse_input_forward = define(
    "sparse_input_forward(Tensor crow, Tensor col, Tensor values, SymInt in_features, Tensor weight, Tensor indices,"
    " Tensor? bias, SymInt group_size) -> Tensor",
    _forward,
    lambda crow, col, values, in_features, weight, *others: weight.new_empty(crow.shape[0] - 1, weight.shape[0]),
)
sparse_head_loss = define(
    "sparse_head_loss(Tensor crow, Tensor col, Tensor values, SymInt in_features, Tensor weight, Tensor indices,"
    " Tensor? bias, Tensor labels, Tensor rows, Tensor? pos_weight, Tensor? sample_weight, str loss, float[] numbers,"
    " SymInt group_size, bool gradients) -> (Tensor, Tensor, Tensor)",
    sparse_loss_gradients,
    sparse_loss_fake,
)


class _SparseInputLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
        crow, col, values, in_features, indices, *others = arguments
        needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        sweep = sparse_loss_gradients if direct(weight, crow, others[0]) else sparse_head_loss
        total, dw, db = sweep(crow, col, values, in_features, weight, indices, bias, *others, needed)
        ctx.save_for_backward(dw, db, weight, bias)
        return total

    @staticmethod
    @first_order
    def backward(ctx: Any, scale: Tensor, _: bool) -> tuple[Tensor | None, ...]:
        dw, db, *_ = ctx.saved_tensors
        need_weight, need_bias = ctx.needs_input_grad[:2]
        return (dw * scale if need_weight else None, db * scale if need_bias else None, *(None,) * 12)


def check_sparse_layer(x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, group_size: int) -> LayerShape:
    """Checks the arguments of the sparse-input ops; float32 only."""
    if not isinstance(x, Tensor) or x.layout != torch.sparse_csr or x.ndim != 2:
        raise TypeError(f"x must be a torch.sparse_csr matrix [B, in_features], got {getattr(x, 'layout', type(x))}")
    shape = check_topology(weight, indices, x.shape[1], group_size)
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32 for sparse input, got {tensor.dtype}")
        if tensor is not None and tensor.device.type != "cpu":
            raise ValueError(f"sparse input is served on a CPU only, {name} is on {tensor.device}: densify x instead")
    check_constant("x", x)
    if bias is not None and tuple(bias.shape) != (shape.L,):
        raise ValueError(f"bias must be [{shape.L}], got {list(bias.shape)}")
    if debugging():
        validate_indices(indices, shape.D)
    return shape


def fixed_fan_in_sparse_loss(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Targets,
    *,
    loss: str = "bce",
    reduction: str = "mean",
    group_size: int = 1,
    **options: Unpack[LossOptions],
) -> Tensor:
    """``fixed_fan_in_loss`` for sparse rows ``x`` (``torch.sparse_csr [B, D]``): value and gradients of weight and
    bias in one sweep.

    No ``[B, L]`` tensor is made. The arguments are those of ``fixed_fan_in_loss``, but for the softmaxes.

    Raises:
        ValueError, TypeError: as there; ``x`` requires a gradient, or tensors are not float32 on a CPU.
    """
    shape = check_sparse_layer(x, weight, indices, bias, group_size)
    if loss not in FUSED_LOSSES:
        raise ValueError(f"loss must be 'bce', 'squared_hinge' or 'asymmetric' for sparse input, got {loss!r}")
    goal = objective(loss, options, x.shape[0], weight)
    divided = divisor(reduction, x.shape[0], shape.L)
    total = _SparseInputLoss.apply(
        weight,
        bias,
        x.crow_indices(),
        x.col_indices(),
        x.values(),
        shape.D,
        indices,
        *sorted_positives(targets, x.shape[0], shape.L)[:2],
        *(goal.pos_weight, goal.sample_weight, loss, (goal.gamma_pos, goal.gamma_neg, goal.clip)),
        group_size,
    )
    return total if reduction == "sum" else total / divided


def fixed_fan_in_sparse_linear(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    *,
    group_size: int = 1,
) -> Tensor:
    """Logits ``[B, L]`` of sparse rows, for prediction.

    Raises:
        RuntimeError: a gradient would be needed, which is not defined.
    """
    shape = check_sparse_layer(x, weight, indices, bias, group_size)
    if differentiated(weight, bias):
        raise RuntimeError(
            "logits of sparse rows have no gradient: call it under torch.no_grad(), or train with the loss"
        )
    rows = (x.crow_indices(), x.col_indices(), x.values())
    forward = _forward if direct(*rows, weight, indices) else sparse_input_forward
    return forward(*rows, shape.D, weight, indices, bias, group_size)
