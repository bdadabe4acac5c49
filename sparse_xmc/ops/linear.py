"""Fixed fan-in linear layer: ``y[b, l] = bias[l] + sum_k weight[l, k] * x[b, indices[l // G, k]]``.

Forward is an SpMM with an ELLPACK matrix, the input gradient a transposed SpMM, the weight gradient an SDDMM.
``_FixedFanInLinear`` ties them together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import autocast, check_layer, compute_dtype, logits_stride, validate_indices
from sparse_xmc.ops._backend import debugging, kernels
from sparse_xmc.ops._dispatch import define, differentiated, direct, first_order, recorded, straight


def _forward(x: Tensor, *arguments: Any) -> Tensor:
    return kernels("linear", x).forward(x, *arguments)


def _backward_input(dy: Tensor, *arguments: Any) -> Tensor:
    return kernels("linear", dy).backward_input(dy, *arguments)


def _backward_weight(dy: Tensor, *arguments: Any) -> Tensor:
    return kernels("linear", dy).backward_weight(dy, *arguments)


linear_forward = define(
    "linear_forward(Tensor x, Tensor weight, Tensor indices, Tensor? bias, SymInt group_size,"
    " Tensor? weight_scale=None) -> Tensor",
    _forward,
    lambda x, weight, *arguments: x.new_empty_strided(
        (x.shape[0], weight.shape[0]), (logits_stride(x.device, weight.shape[0]), 1)
    ),
)
linear_backward_input = define(
    "linear_backward_input(Tensor dy, Tensor weight, Tensor indices, SymInt in_features, SymInt group_size,"
    " bool deterministic) -> Tensor",
    _backward_input,
    lambda dy, weight, indices, in_features, *arguments: dy.new_empty(dy.shape[0], in_features),
)
linear_backward_weight = define(
    "linear_backward_weight(Tensor dy, Tensor x, Tensor indices, SymInt group_size, ScalarType dtype) -> Tensor",
    _backward_weight,
    lambda dy, x, indices, group_size, dtype: dy.new_empty(dy.shape[1], indices.shape[1], dtype=dtype),
)


class _FixedFanInLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        indices: Tensor,
        bias: Tensor | None,
        group_size: int,
        deterministic: bool,
        eager: bool,
    ) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[:2]
        laid_out = None
        if eager:
            linear = kernels("linear", x)
            laid_out = linear.lay_out(x) if need_weight else None
            y = linear.forward(x, weight, indices, bias, group_size, None, laid_out)
        else:
            y = linear_forward(x, weight, indices, bias, group_size)
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None, indices, laid_out)
        bias_dtype = None if bias is None else bias.dtype
        ctx.others = group_size, deterministic, x.shape[1], weight.dtype, bias_dtype, eager
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor, eager: bool) -> tuple[Tensor | None, ...]:
        x, weight, indices, laid_out = ctx.saved_tensors
        group_size, deterministic, in_features, weight_dtype, bias_dtype, plain_forward = ctx.others
        needed = ctx.needs_input_grad
        dx = dw = db = None
        if eager and plain_forward:
            linear = kernels("linear", dy)
            if needed[0]:
                dx = linear.backward_input(dy, weight, indices, in_features, group_size, deterministic)
            if needed[1]:
                dw = linear.backward_weight(dy, x, indices, group_size, weight_dtype, laid_out)
        else:
            if needed[0]:
                dx = linear_backward_input(dy, weight, indices, in_features, group_size, deterministic)
            if needed[1]:
                dw = linear_backward_weight(dy, x, indices, group_size, weight_dtype)
        if needed[3]:
            wide = compute_dtype(dy.dtype)
            db = dy.sum(0) if dy.dtype == wide else dy.sum(0, dtype=wide)
            db = db if bias_dtype == wide else db.to(bias_dtype)
        return dx, dw, None, db, None, None, None


_apply = straight(_FixedFanInLinear)


def fixed_fan_in_linear(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int = 1,
    deterministic: bool | None = None,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """Applies a linear layer in which every label has exactly ``K`` incoming connections.

    Equivalent to ``x @ W.T + bias`` where ``W [L, D]`` is zero except ``W[l, indices[l // group_size, k]] = weight[l, k]``.
    Sums are accumulated in float32 (float64 for float64 inputs) and rounded once.

    Args:
        x: input ``[..., D]``: float32, float16, bfloat16 or float64. Under autocast it is cast to the autocast dtype.
        weight: ``[L, K]``, any float dtype (float64 only together with a float64 ``x``).
        indices: ``[ceil(L / group_size), K]``, uint16 (``D <= 65,536``) or int32, distinct within a row.
        bias: ``[L]`` or None.
        group_size: number ``G`` of neighbouring labels that share one row of ``indices``. The last group may be short.
        deterministic: whether the input gradient is bitwise reproducible on a GPU (an inverted index instead of
            atomics). None follows ``torch.are_deterministic_algorithms_enabled()``. On a CPU it always is.
        weight_scale: ``[L]`` float32, together with a float8_e4m3fn ``weight`` that it multiplies (``ops.quantize_weight``).
            Such weights serve inference: the result can't be differentiated.

    Returns:
        ``[..., L]`` in x's dtype.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.
        RuntimeError: 8-bit weights, while ``x`` or ``bias`` requires a gradient and autograd is on.

    Source:
        Fixed fan-in layer: Schultheis and Babbar, ECML-PKDD 2023, section 3. Shared rows: HASTE, ICML 2026.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> x, weight = torch.tensor([[1.0, 10.0, 100.0]]), torch.ones(2, 2)
        >>> indices = torch.tensor([[0, 1], [1, 2]], dtype=torch.uint16)
        >>> ops.fixed_fan_in_linear(x, weight, indices)
        tensor([[ 11., 110.]])
    """
    shape = check_layer(x, weight, indices, bias, group_size, weight_scale)
    if debugging():
        validate_indices(indices, shape.D)
    x = autocast(x)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    rows = x if x.ndim == 2 else x.reshape(-1, shape.D)
    eager = direct(rows, weight, indices)
    parameters = (weight, bias) if weight_scale is None else (bias,)
    if (recorded if eager else differentiated)(x, *parameters):
        if weight_scale is not None:
            raise RuntimeError("8-bit weights serve inference only: call it under torch.no_grad(), or detach x")
        apply = _apply if eager else _FixedFanInLinear.apply
        y = apply(rows, weight, indices, bias, group_size, deterministic, eager)
    else:
        forward = _forward if eager else linear_forward
        y = forward(rows, weight, indices, bias, group_size, weight_scale)
    return y if y.ndim == x.ndim else y.reshape(*x.shape[:-1], shape.L)
