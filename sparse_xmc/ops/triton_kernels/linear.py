"""Launchers of the fixed fan-in linear layer: which kernel family serves a call.

==================  ===========================  ========================================================
                    G = 1                        G > 1
==================  ===========================  ========================================================
``forward``         gather, multiply-add         gather once per group, ``tl.dot``
``backward_input``  atomic row per connection    ``tl.dot``, then one atomic row per connection of a group
the same, determ.   inverted index over labels   ``tl.dot``, then inverted index over the groups' sums
``backward_weight`` gather, row sums             gather once per group, ``tl.dot``
==================  ===========================  ========================================================
"""

import torch
from torch import Tensor

from sparse_xmc.ops.triton_kernels import linear_gather, linear_group, linear_inverted
from sparse_xmc.ops.triton_kernels.transpose import transpose_indices


def forward(x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, group_size: int) -> Tensor:
    """x [B, D] -> y [B, L] in x's dtype."""
    weight, indices = weight.contiguous(), indices.contiguous()
    bias = None if bias is None else bias.contiguous()
    if group_size == 1:
        return linear_gather.forward(x, weight, indices, bias)
    return linear_group.forward(x, weight, indices, bias, group_size)


def backward_input(
    dy: Tensor, weight: Tensor, indices: Tensor, in_features: int, group_size: int, deterministic: bool
) -> Tensor:
    """dy [B, L], any strides -> dx [B, D] in dy's dtype."""
    weight, indices = weight.contiguous(), indices.contiguous()
    if deterministic:
        inverted = transpose_indices(indices, in_features)
        return linear_inverted.backward_input(dy, weight, indices, in_features, group_size, *inverted)
    if group_size == 1:
        return linear_gather.backward_input(dy, weight, indices, in_features)
    return linear_group.backward_input(dy, weight, indices, in_features, group_size)


def backward_weight(dy: Tensor, x: Tensor, indices: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``."""
    indices = indices.contiguous()
    if group_size == 1:
        return linear_gather.backward_weight(dy, x, indices, dtype)
    return linear_group.backward_weight(dy, x, indices, group_size, dtype)
