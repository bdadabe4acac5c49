"""``F.embedding_bag`` over the transposed input: every label is a bag of K rows of ``x.T``, weighted."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.weights import EllWeights, Weights


class EmbeddingBag(LinearProvider):
    name = "embedding_bag"
    label = "F.embedding_bag"
    colour = "#009e73"

    def unsupported(self, point: Point) -> str | None:
        if point.device == "cpu" and point.dtype == "bfloat16" and point.mode not in ("forward", "topk"):
            return "torch has no bfloat16 gradient of per_sample_weights on the CPU"
        return None

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.K) + point.L * point.K * 12

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        bags = problem.label_indices
        weight = problem.weight.clone()
        weights = EllWeights(weight, bags, point.D, 1, problem.bias)

        def linear(x: Tensor) -> Tensor:
            y = F.embedding_bag(bags, x.t().contiguous(), per_sample_weights=weight, mode="sum").t()
            return y if weights.bias is None else y + weights.bias

        return linear, weights


PROVIDERS = (EmbeddingBag(),)
