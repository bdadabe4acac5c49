"""TorchRec's table-batched embedding bags in Triton, the nearest peer of the gather kernels: a label is a bag of K weighted
rows of ``x.T``. Their backward updates the table, which is the input here, so only the forward pass is the same work."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.provider import Unsupported
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.weights import EllWeights, Weights

_MODULE = "torchrec.distributed.triton_tbe.triton_table_batched_embeddings"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TritonBags(LinearProvider):
    """``pip install torchrec`` of a version that has the module, with the fbgemm-gpu that it needs."""

    name = "torchrec_triton_tbe"
    label = "TorchRec Triton TBE"
    colour = "#8c6bb1"
    modes: Sequence[str] = ("forward",)

    def unsupported(self, point: Point) -> str | None:
        if point.device != "cuda":
            return "TorchRec's Triton kernels run on GPUs only"
        if point.dtype not in _DTYPES:
            return f"TorchRec's Triton tables have no {point.dtype}"
        return None if importlib.util.find_spec("torchrec") else "torchrec is not installed"

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.K) + point.L * point.K * 20

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        try:
            tables = importlib.import_module(_MODULE).TritonTableBatchedEmbeddingBags
        except (ImportError, OSError) as error:  # OSError: built for another torch
            raise Unsupported(f"TorchRec's Triton tables cannot be loaded: {error}") from error
        weight, dtype = problem.weight.clone(), _DTYPES[point.dtype]
        weights = EllWeights(weight, problem.label_indices, point.D, 1, problem.bias)
        bags = tables(
            [(point.D, point.B)], weights_precision=dtype, output_dtype=dtype, learning_rate=0.0, device=weight.device
        )
        indices = problem.label_indices.reshape(-1).long()
        offsets = torch.arange(0, point.L * point.K + 1, point.K, device=indices.device)

        def linear(x: Tensor) -> Tensor:
            bags.weight = x.t().contiguous().view(-1)
            y = bags(indices, offsets, per_sample_weights=weight.view(-1).float()).t()
            return y if weights.bias is None else y + weights.bias

        return linear, weights


PROVIDERS = (TritonBags(),)
