"""Dense float64 oracle: scatters the connections into ``[L, D]`` and multiplies. Independent of the package."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    """Inputs of a fixed fan-in layer."""

    x: Tensor
    weight: Tensor
    indices: Tensor
    bias: Tensor
    group_size: int


def make_problem(
    B: int,
    L: int,
    D: int,
    K: int,
    G: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    index_dtype: torch.dtype = torch.uint16,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Problem:
    """Random layer and input; the values are representable in ``dtype``."""
    g = torch.Generator().manual_seed(seed)
    rows = -(-L // G)
    indices = torch.stack([torch.randperm(D, generator=g)[:K] for _ in range(rows)]).to(index_dtype)
    x = torch.randn(B, D, generator=g, dtype=torch.float64).to(dtype)
    weight = (torch.randn(L, K, generator=g, dtype=torch.float64) / K**0.5).to(dtype)
    bias = torch.randn(L, generator=g, dtype=torch.float64).to(dtype)
    return Problem(x.to(device), weight.to(device), indices.to(device), bias.to(device), G)


def dense_weight(weight: Tensor, indices: Tensor, in_features: int, group_size: int = 1) -> Tensor:
    """``[L, D]`` float64 on the CPU."""
    L, K = weight.shape
    columns = indices.cpu().long()[torch.arange(L) // group_size]
    dense = torch.zeros(L, in_features, dtype=torch.float64)
    return dense.index_put((torch.arange(L)[:, None].expand(L, K), columns), weight.detach().cpu().double())


class LinearGrads(NamedTuple):
    y: Tensor
    dx: Tensor
    dw: Tensor
    db: Tensor


def linear(problem: Problem, dy: Tensor) -> LinearGrads:
    """Output and gradients of ``(y * dy).sum()`` in float64."""
    x, weight, indices, bias, G = problem
    xd, dyd = x.detach().cpu().double(), dy.detach().cpu().double()
    W = dense_weight(weight, indices, x.shape[-1], G)
    y = xd @ W.t() + bias.detach().cpu().double()
    columns = indices.cpu().long()[torch.arange(W.shape[0]) // G]
    return LinearGrads(y, dyd @ W, (dyd.t() @ xd).gather(1, columns), dyd.sum(0))


def assert_accurate(name: str, got: Tensor, truth: Tensor, peer: Tensor, *, ulps: float = 4.0) -> None:
    """Asserts that ``got`` is no further from the float64 ``truth`` than ``peer`` (the same expression in eager torch
    and got's dtype) plus a few ulps of the largest value."""
    assert got.shape == truth.shape, f"{name}: shape {list(got.shape)}, expected {list(truth.shape)}"
    if truth.numel() == 0:
        return
    eps = torch.finfo(got.dtype).eps
    error = (got.detach().cpu().double() - truth).abs()
    allowed = (peer.detach().cpu().double() - truth).abs().max() + ulps * eps * truth.abs().max()
    worst = error.argmax() if not error.isnan().any() else error.isnan().float().argmax()
    where = torch.unravel_index(worst, truth.shape)
    assert bool((error <= allowed).all()), (
        f"{name}: at {[int(i) for i in where]} got {got.detach().cpu()[where]}, truth {truth[where]}, "
        f"error {error[where]:.3g} > allowed {allowed:.3g}"
    )
