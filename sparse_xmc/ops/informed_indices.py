"""Informed connectivity: a label's connections start at the features where its positives stand out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import (
    LayerShape,
    check_float,
    check_positive_int,
    check_seed,
    check_targets,
    index_dtype,
    num_index_rows,
)
from sparse_xmc.ops._regrow import Centroids, over_groups, row_blocks
from sparse_xmc.ops._targets import sorted_positives
from sparse_xmc.ops.init_indices import init_indices


@torch.no_grad()
def informed_indices(
    x: Tensor, targets: Tensor, fan_in: int, *, group_size: int = 1, seed: int = 0, first_row: int = 0
) -> Tensor:
    """The ``fan_in`` features of each label with the largest |mean over its positives - mean over all rows|.

    That is where the dense gradient of the loss is largest at the first step. Groups take the features of the largest
    sum of these contrasts over their labels; rows whose labels have no positive get random ones. Labels are walked in
    blocks: time ``O(nnz * D + L * D)``, memory beyond inputs and output a few tens of MB, and never ``[L, D]``.

    Args:
        x: features ``[N, D]``, float.
        targets: ``torch.sparse_csr`` ``[N, L]``; its values are ignored.
        fan_in: ``K``, at most ``D``.
        group_size: labels that share a row of the result.
        seed: of the connections of rows without positives.
        first_row: the result is that of rows ``first_row`` and following of a larger layer, ``targets`` its columns.

    Returns:
        ``[ceil(L / group_size), K]``, best feature first: uint16 where ``D <= 65,536``, else int32.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device, or ``x`` is not finite.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> x = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
        >>> targets = torch.tensor([[1, 0], [0, 1], [0, 1]]).to_sparse_csr()
        >>> ops.informed_indices(x, targets, 2)[0]  # the row of label 0 differs from all rows in features 0 and 1
        tensor([0, 1], dtype=torch.uint16)
    """
    check_float("x", x)
    if x.layout != torch.strided:
        raise TypeError(f"x must be dense, got layout {x.layout}")
    if x.ndim != 2 or not x.shape[0] or not x.shape[1]:
        raise ValueError(f"x must be [N, D] with at least one row and feature, got shape {list(x.shape)}")
    check_positive_int("fan_in", fan_in)
    check_positive_int("group_size", group_size)
    N, D = x.shape
    if fan_in > D:
        raise ValueError(f"fan_in must not exceed in_features, got fan_in={fan_in}, x {list(x.shape)}")
    if not isinstance(targets, Tensor) or targets.ndim != 2:
        raise TypeError(f"targets must be a torch.sparse_csr tensor [N, L], got {type(targets).__name__}")
    L = targets.shape[1]
    check_targets(targets, N, L)
    if targets.device != x.device:
        raise ValueError(f"targets must be on x's device {x.device}, got {targets.device}")
    if not all(map(math.isfinite, map(float, torch.aminmax(x)))):
        row = int(torch.nonzero(~torch.isfinite(x).all(dim=1))[0])
        raise ValueError(f"x must be finite: row {row} holds NaN or infinity, and every label's mean would")
    shape = LayerShape(L, fan_in, D, num_index_rows(L, group_size))
    indices = init_indices(shape.R, D, fan_in, seed=check_seed(seed), device=x.device, first_row=first_row)
    centroids = Centroids(x, sorted_positives(targets, N, L))
    for start, stop in row_blocks(shape, group_size, D):
        contrast, _ = centroids.contrast(start * group_size, min(stop * group_size, L))
        score = over_groups(contrast, group_size)
        known = score.sum(1, keepdim=True) > 0
        best = score.topk(fan_in, dim=1).indices
        indices[start:stop] = torch.where(known, best, indices[start:stop].long()).to(index_dtype(D))
    return indices
