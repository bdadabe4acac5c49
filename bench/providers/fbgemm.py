"""FBGEMM's table-batched embedding bags, what recommenders run on GPUs: a label is a bag of K weighted rows of ``x.T``."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.provider import Unsupported
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.weights import EllWeights, Weights


class TableBatchedBags(LinearProvider):
    """``pip install fbgemm-gpu`` (``fbgemm-gpu-cpu`` without a GPU), of a version for the installed torch."""

    name = "fbgemm_tbe"
    label = "FBGEMM TBE"
    colour = "#c5b0d5"

    def unsupported(self, point: Point) -> str | None:
        if point.dtype not in ("float32", "float16"):
            return f"dense table-batched bags have no {point.dtype}"
        if point.B % 4:
            return f"rows of the table must be a multiple of 4 wide, B={point.B} is not"
        return None if importlib.util.find_spec("fbgemm_gpu") else "fbgemm-gpu is not installed"

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.K) + point.L * point.K * 20

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        weight = problem.weight.clone()
        weights = EllWeights(weight, problem.label_indices, point.D, 1, problem.bias)
        bags = _bags(point)
        indices = problem.label_indices.reshape(-1).long()
        offsets = torch.arange(0, point.L * point.K + 1, point.K, device=indices.device)

        def linear(x: Tensor) -> Tensor:
            bags.weights = x.t().contiguous().view(-1)
            y = bags(indices, offsets, per_sample_weights=weight.view(-1).float()).t().to(x.dtype)
            return y if weights.bias is None else y + weights.bias

        return linear, weights


def _bags(point: Point) -> Any:
    """One table ``[D, B]`` whose content is set anew for every batch, so it must not be a parameter."""
    try:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen
    except (ImportError, OSError) as error:  # OSError: built for another torch
        raise Unsupported(f"fbgemm-gpu cannot be loaded: {error}") from error
    precision = SparseType.FP16 if point.dtype == "float16" else SparseType.FP32
    bags = DenseTableBatchedEmbeddingBagsCodegen(
        [(point.D, point.B)], weights_precision=precision, use_cpu=point.device == "cpu"
    ).to(point.device)
    del bags.weights
    return bags


PROVIDERS = (TableBatchedBags(),)
