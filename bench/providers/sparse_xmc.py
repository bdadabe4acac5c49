"""sparse_xmc itself: the layer with logits."""

from __future__ import annotations

from bench.problem import Problem
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.registry import Point, register
from bench.weights import EllWeights, Weights
from sparse_xmc import ops


class SparseXmc(LinearProvider):
    name = "sparse_xmc"
    label = "sparse_xmc"
    deterministic: bool | None = None

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.K) + 4 * point.L * point.K // point.G

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        weight, indices, bias = problem.weight.clone(), problem.indices, problem.bias
        weights = EllWeights(weight, indices, point.D, point.G, bias)

        def linear(x):
            return ops.fixed_fan_in_linear(
                x, weight, indices, bias, group_size=point.G, deterministic=self.deterministic
            )

        return linear, weights


register(SparseXmc())
