"""torch.sparse: CSR forward, transposed CSR product for the input, ``sampled_addmm`` for the weight gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.weights import EllWeights, Weights


class _CsrLinear(torch.autograd.Function):
    """``y = (W @ x.T).T`` with a CSR ``W`` made of ``crow``, ``col`` and the trainable ``values [L * K]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, crow: Tensor, col: Tensor, num_labels: int) -> Tensor:
        matrix = torch.sparse_csr_tensor(crow, col, values, (num_labels, x.shape[1]), check_invariants=False)
        ctx.save_for_backward(x)
        ctx.matrix = matrix
        return (matrix @ x.t().contiguous()).t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        dyt = dy.t().contiguous()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = (ctx.matrix.t() @ dyt).t()
        if ctx.needs_input_grad[1]:
            dw = torch.sparse.sampled_addmm(ctx.matrix, dyt, x, beta=0.0).values()
        return dx, dw, None, None, None


class TorchCsr(LinearProvider):
    name = "torch_csr"
    label = "torch.sparse CSR"
    colour = "#0072b2"

    def unsupported(self, point: Point) -> str | None:
        if point.device == "cpu" and point.dtype not in ("float32", "float64"):
            return f"torch's CPU sampled_addmm and CSR products take float32 and float64, not {point.dtype}"
        return None

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.K) + point.L * point.K * 8 + point.B * point.L * point.itemsize

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        L, K = point.L, point.K
        order = problem.label_indices.sort(dim=1)
        col = order.values.reshape(-1)
        values = problem.weight.gather(1, order.indices).reshape(-1)
        index_dtype = torch.int32 if L * K < 2**31 else torch.int64
        crow = torch.arange(0, L * K + 1, K, device=col.device, dtype=index_dtype)
        col = col.to(index_dtype)
        weights = EllWeights(values, order.values, point.D, 1, problem.bias, stored_indices=(crow, col))

        def linear(x: Tensor) -> Tensor:
            y = _CsrLinear.apply(x, values, crow, col, L)
            return y if weights.bias is None else y + weights.bias

        return linear, weights


PROVIDERS = (TorchCsr(),)
