"""Structured sparsity that torch has products for: BSR blocks and 2:4. The pattern is theirs, the number of connections
per label that of the point (BSR) or D / 2 (2:4, which knows no other)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.provider import Case, Provider, Unsupported
from bench.weights import DenseWeights, Weights

_BLOCK = 16


@dataclass
class BlockWeights(Weights):
    """BSR ``[L, D]``: ``blocks [rows * n, 16, 16]`` at ``columns [rows, n]`` (in units of blocks)."""

    blocks: Tensor
    columns: Tensor
    crow: Tensor
    num_labels: int
    in_features: int
    bias: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [self.blocks]

    def index_tensors(self) -> list[Tensor]:
        return [self.columns, self.crow]

    def sparse(self) -> Tensor:
        rows = self.columns.shape[0] * _BLOCK
        return torch.sparse_bsr_tensor(
            self.crow, self.columns.reshape(-1), self.blocks, (rows, self.in_features), check_invariants=False
        )

    def matrix(self) -> Tensor:
        rows, n = self.columns.shape
        dense = torch.zeros(rows, self.in_features // _BLOCK, _BLOCK, _BLOCK, dtype=torch.float64)
        index = self.columns.cpu().long()[:, :, None, None].expand(rows, n, _BLOCK, _BLOCK)
        dense.scatter_(1, index, self.blocks.detach().cpu().double().reshape(rows, n, _BLOCK, _BLOCK))
        return dense.transpose(1, 2).reshape(rows * _BLOCK, self.in_features)[: self.num_labels]

    def project(self, dense_gradient: Tensor) -> list[Tensor]:
        raise NotImplementedError("torch has no gradient of a BSR product")

    def multiplications(self) -> int:
        return self.blocks.numel()


class TorchBsr(Provider):
    name = "torch_bsr"
    label = "torch.sparse BSR 16x16"
    colour = "#8c564b"
    modes: Sequence[str] = ("forward",)

    def unsupported(self, point: Point) -> str | None:
        if point.D % _BLOCK or point.K % _BLOCK:
            return f"BSR blocks of {_BLOCK} need D and K to be multiples of {_BLOCK}, got D={point.D}, K={point.K}"
        if point.device == "cpu" and point.dtype not in ("float32", "float64"):
            return f"torch's CPU BSR product takes float32 and float64, not {point.dtype}"
        return None

    def predicted_bytes(self, point: Point) -> int:
        return (point.L * point.K + 2 * point.B * point.L) * point.itemsize

    def build(self, point: Point, problem: Problem) -> Case:
        rows, n = -(-point.L // _BLOCK), point.K // _BLOCK
        generator = torch.Generator(problem.device).manual_seed(problem.seed)
        keys = torch.rand(rows, point.D // _BLOCK, generator=generator, device=problem.device)
        columns = keys.topk(n, dim=1).indices.sort(dim=1).values.to(torch.int32)
        crow = torch.arange(0, rows * n + 1, n, dtype=torch.int32, device=problem.device)
        blocks = problem.normal(8, rows * n, _BLOCK, _BLOCK, scale=point.K**-0.5)
        weights = BlockWeights(blocks, columns, crow, point.L, point.D)
        matrix, x = weights.sparse(), problem.x
        return Case(lambda: {"y": (matrix @ x.t().contiguous())[: point.L].t()}, weights)


class SemiStructured(Provider):
    name = "semi_structured_2_4"
    label = "torch 2:4 semi-structured"
    colour = "#c49c94"
    modes: Sequence[str] = ("forward",)

    def unsupported(self, point: Point) -> str | None:
        if point.device != "cuda":
            return "2:4 sparsity needs the sparse tensor cores of a GPU"
        if point.dtype not in ("float16", "bfloat16"):
            return f"torch's 2:4 products take float16 and bfloat16, not {point.dtype}"
        if point.D % 64 or point.B % 16:
            return f"2:4 products need D in multiples of 64 and B of 16, got D={point.D}, B={point.B}"
        if torch.version.hip is not None or torch.cuda.get_device_capability() < (8, 0):
            return "2:4 sparsity needs an NVIDIA GPU of compute capability 8.0 or newer"
        return None

    def predicted_bytes(self, point: Point) -> int:
        return (4 * point.L * point.D + 2 * point.B * point.L) * point.itemsize

    def build(self, point: Point, problem: Problem) -> Case:
        from torch.sparse import to_sparse_semi_structured

        padded = -(-point.L // 64) * 64
        weight = problem.normal(9, padded, point.D, scale=point.D**-0.5)
        pairs = weight.view(padded, point.D // 4, 4)
        pairs[..., (0, 2)] = 0  # two of every four
        try:
            sparse = to_sparse_semi_structured(weight)
        except (RuntimeError, NotImplementedError) as error:
            raise Unsupported(f"torch cannot compress to 2:4 here: {error}") from error
        stored = tuple(t for t in (sparse.packed, sparse.meta) if t is not None)
        weights = DenseWeights(weight[: point.L] if point.L <= 4096 else stored[0], stored=stored)
        x = problem.x
        return Case(lambda: {"y": torch.nn.functional.linear(x, sparse)[:, : point.L]}, weights)


PROVIDERS = (TorchBsr(), SemiStructured())
