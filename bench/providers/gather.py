"""The naive gather: ``einsum`` over ``x[:, indices]``, which holds ``[B, L, K]`` numbers. Fits small points only."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.weights import EllWeights, Weights


class GatherEinsum(LinearProvider):
    name = "gather_einsum"
    label = "gather + einsum"
    colour = "#9467bd"

    def predicted_bytes(self, point: Point) -> int:
        copies = 1 if point.mode in ("forward", "topk") else 3
        gathered = copies * point.B * point.L * point.K * point.itemsize
        return matrices_bytes(point, point.L * point.K) + point.L * point.K * 8 + gathered

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        columns, weight = problem.label_indices, problem.weight.clone()
        weights = EllWeights(weight, columns, point.D, 1, problem.bias)

        def linear(x: Tensor) -> Tensor:
            y = torch.einsum("blk,lk->bl", x[:, columns], weight)
            return y if weights.bias is None else y + weights.bias

        return linear, weights


PROVIDERS = (GatherEinsum(),)
