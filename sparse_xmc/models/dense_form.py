"""A fixed fan-in layer as a dense one or a CSR matrix, and from a dense one; a block of labels at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparse_xmc.ops._arguments import check_float
from sparse_xmc.ops._csr import csr_matrix

if TYPE_CHECKING:
    from sparse_xmc.models.linear import FixedFanInLinear

_BLOCK = 1 << 24  # elements of a dense block that are held at a time


def to_dense(layer: FixedFanInLinear) -> nn.Linear:
    check_float("weight", layer.weight)
    D, L, weight = layer.in_features, layer.out_features, layer.weight
    dense = nn.Linear(D, L, layer.bias is not None, device=weight.device, dtype=weight.dtype)
    dense.weight.zero_()
    block = max(1, _BLOCK // layer.fan_in)
    for start in range(0, L, block):
        stop = min(start + block, L)
        dense.weight[start:stop].scatter_(1, layer.label_indices(start, stop), weight[start:stop])
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense


def to_sparse_csr(layer: FixedFanInLinear) -> Tensor:
    check_float("weight", layer.weight)
    columns, order = layer.label_indices().sort(dim=1)
    offsets = torch.arange(layer.out_features + 1, device=columns.device) * layer.fan_in
    values = layer.weight.gather(1, order).flatten()
    return csr_matrix(offsets, columns.flatten(), values, (layer.out_features, layer.in_features))


def keep_largest_(layer: FixedFanInLinear, linear: nn.Linear) -> None:
    """Fills a layer with the connections of ``linear`` of largest (mean) magnitude."""
    D, G = layer.in_features, layer.group_size
    block = max(1, _BLOCK // (D * G)) * G
    for start in range(0, layer.out_features, block):
        rows = linear.weight[start : start + block]
        score = rows.abs().float()
        if G > 1:
            score = nn.functional.pad(score, (0, 0, 0, -len(rows) % G)).view(-1, G, D).sum(1)
        kept = score.topk(layer.fan_in, dim=1).indices.sort(dim=1).values
        first = start // G
        layer.indices[first : first + len(kept)] = kept.to(layer.indices.dtype)
        layer.weight[start : start + block] = rows.gather(1, kept.repeat_interleave(G, 0)[: len(rows)])
    if layer.bias is not None:
        layer.bias.copy_(linear.bias)
