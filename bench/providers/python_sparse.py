"""What people use outside torch: SciPy's CSR product, and scikit-learn's linear classifiers made sparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.point import TOP_K, Point
from bench.problem import Problem
from bench.provider import Case, Provider, Unsupported
from bench.weights import EllWeights


class ScipyCsr(Provider):
    name = "scipy_csr"
    label = "SciPy CSR"
    colour = "#17becf"
    modes: Sequence[str] = ("forward", "backward_input")
    needs = "scipy"

    def unsupported(self, point: Point) -> str | None:
        if point.device != "cpu":
            return f"{self.needs} computes on the CPU only"
        if point.dtype not in ("float32", "float64"):
            return f"{self.needs} has no {point.dtype}"
        return None

    def predicted_bytes(self, point: Point) -> int:
        return point.L * point.K * (8 + 3 * point.itemsize) + 3 * point.B * point.L * point.itemsize

    def build(self, point: Point, problem: Problem) -> Case:
        try:
            return self._build(point, problem)
        except ImportError as error:
            raise Unsupported(f"{error.name} is not installed") from error

    def _build(self, point: Point, problem: Problem) -> Case:
        matrix, weights = _csr(point, problem)
        x = problem.x.numpy()
        if point.mode == "forward":
            return Case(lambda: {"y": torch.from_numpy((matrix @ x.T).T)}, weights)
        dy, transposed = problem.dy.numpy(), matrix.T
        return Case(lambda: {"dx": torch.from_numpy((transposed @ dy.T).T)}, weights)


class ScikitLearn(ScipyCsr):
    """``decision_function`` of a linear classifier after ``sparsify()``, as one-vs-rest models are served."""

    name = "sklearn"
    label = "scikit-learn decision_function"
    colour = "#bcbd22"
    modes: Sequence[str] = ("forward", "topk")
    needs = "scikit-learn"

    def _build(self, point: Point, problem: Problem) -> Case:
        from sklearn.linear_model import SGDClassifier

        matrix, weights = _csr(point, problem)
        model = SGDClassifier()
        model.classes_ = np.arange(point.L)
        model.coef_, model.n_features_in_ = matrix, point.D
        model.intercept_ = np.zeros(1, x_dtype(problem)) if problem.bias is None else problem.bias.numpy()
        x = problem.x.numpy()
        if point.mode == "forward":
            return Case(lambda: {"y": torch.from_numpy(model.decision_function(x))}, weights)
        return Case(lambda: _best(model.decision_function(x)), weights)


def x_dtype(problem: Problem) -> Any:
    return problem.x.numpy().dtype


def _best(scores: Any) -> dict[str, Tensor | list[Tensor]]:
    best = torch.from_numpy(scores).topk(TOP_K, dim=1)
    return {"scores": best.values, "labels": best.indices}


def _csr(point: Point, problem: Problem) -> tuple[Any, EllWeights]:
    import scipy.sparse as sp

    columns = problem.label_indices.numpy().reshape(-1)
    offsets = np.arange(0, point.L * point.K + 1, point.K)
    matrix = sp.csr_matrix((problem.weight.numpy().reshape(-1), columns, offsets), shape=(point.L, point.D))
    stored = tuple(torch.from_numpy(a) for a in (matrix.indptr, matrix.indices))
    return matrix, EllWeights(problem.weight, problem.label_indices, point.D, 1, problem.bias, stored_indices=stored)


PROVIDERS = (ScipyCsr(), ScikitLearn())
