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


def make_targets(dense: Tensor, index_dtype: torch.dtype = torch.int64) -> Tensor:
    """CSR matrix of a 0/1 matrix ``[B, L]``; an entry above 1 stands that many times in its row, not side by side."""
    counts = dense.numpy()
    rows = [[i for n in range(int(row.max(initial=0))) for i in range(len(row)) if row[i] > n] for row in counts]
    offsets = torch.tensor([0, *torch.tensor([len(r) for r in rows]).cumsum(0).tolist()], dtype=index_dtype)
    labels = torch.tensor([i for row in rows for i in row], dtype=index_dtype)
    return torch.sparse_csr_tensor(offsets, labels, torch.ones(len(labels)), dense.shape, check_invariants=False)


class LossGrads(NamedTuple):
    value: Tensor
    dx: Tensor
    dw: Tensor
    db: Tensor


def loss(
    problem: Problem,
    positive: Tensor,
    kind: str,
    *,
    pos_weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    gamma_pos: float = 0.0,
    gamma_neg: float = 4.0,
    clip: float = 0.05,
) -> LossGrads:
    """Sum of the loss over rows and labels, and its gradients, in float64. ``positive [B, L]`` is nonzero where so.

    The derivative by the logits is torch's own of the formula, but at a clipped probability, where it is 0.
    """
    x, weight, indices, bias, G = problem
    xd, known = x.detach().cpu().double(), positive.cpu() > 0
    W = dense_weight(weight, indices, x.shape[-1], G)
    z = (xd @ W.t() + bias.detach().cpu().double()).requires_grad_()
    log_p, log_rest = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    if kind == "bce":
        terms = torch.where(known, -log_p, -log_rest)
    elif kind == "squared_hinge":
        terms = torch.where(known, 1 - z, 1 + z).clamp(min=0).pow(2)
    else:
        q = torch.sigmoid(z) - clip
        inside = q > 0
        q = torch.where(inside, q, 0.5)
        log_clipped = log_rest if clip == 0 else torch.log1p(-q)
        negative = torch.where(inside, -(q**gamma_neg) * log_clipped, 0.0)
        terms = torch.where(known, -(torch.sigmoid(-z) ** gamma_pos) * log_p, negative)
    if pos_weight is not None:
        terms = torch.where(known, terms * pos_weight.cpu().double(), terms)
    if sample_weight is not None:
        terms = terms * sample_weight.cpu().double()[:, None]
    value = terms.sum()
    (dz,) = torch.autograd.grad(value, z)
    columns = indices.cpu().long()[torch.arange(W.shape[0]) // G]
    return LossGrads(value.detach(), dz @ W, (dz.t() @ xd).gather(1, columns), dz.sum(0))
