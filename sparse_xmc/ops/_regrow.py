"""Where new connections go when data decides: lists of features per row, best first, for blocks of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_xmc.ops._arguments import LayerShape, check_float, compute_dtype, num_index_rows
from sparse_xmc.ops._backend import kernels
from sparse_xmc.ops._contract import Layer, Needed, Objective, Positives, Scaling
from sparse_xmc.ops._targets import sorted_positives
from sparse_xmc.ops.linear import linear_backward_weight

BLOCK_ELEMENTS = 1 << 21  # of [labels, features] at a time


@dataclass(frozen=True)
class RegrowBatch:
    """What gradients or centroids are computed from.

    Args:
        x: input of the layer ``[B, D]``.
        dy: gradient ``[B, L]`` with respect to the layer's output, if it exists (``regrow="gradient"``).
        targets: CSR ``[B, L]``. Gradients are then those of ``loss`` and no ``[B, L]`` tensor is made.
        bias: ``[L]`` of the layer, for the gradients of ``loss``.
        loss: "bce" or "squared_hinge".

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear, ops
        >>> head = FixedFanInLinear(64, 100, fan_in=16, seed=0)
        >>> targets = torch.eye(100)[[4, 99]].to_sparse_csr()
        >>> batch = ops.RegrowBatch(torch.randn(2, 64), targets=targets)
        >>> int(head.rewire_(fraction=0.25, regrow="gradient", batch=batch, seed=1))
        400
    """

    x: Tensor
    dy: Tensor | None = None
    targets: Tensor | None = None
    bias: Tensor | None = None
    loss: str = "bce"

    def _check_dtype(self, name: str, tensor: Tensor, weight: Tensor) -> None:
        check_float(f"batch.{name}", tensor)
        if (tensor.dtype == torch.float64) != (weight.dtype == torch.float64):
            raise TypeError(f"batch.{name} and weight must both be float64 or neither: {tensor.dtype}, {weight.dtype}")

    def check(self, regrow: str, shape: LayerShape, weight: Tensor) -> None:
        self._check_dtype("x", self.x, weight)
        if self.x.ndim != 2 or self.x.shape[1] != shape.D or self.x.device != weight.device or not self.x.shape[0]:
            raise ValueError(
                f"batch.x must be [B > 0, {shape.D}] on {weight.device}, got {list(self.x.shape)} on {self.x.device}"
            )
        if regrow == "informed" and (self.targets is None or self.dy is not None):
            raise ValueError("regrow='informed' needs batch.targets and no batch.dy")
        if (self.dy is None) == (self.targets is None):
            raise ValueError("regrow='gradient' needs exactly one of batch.dy and batch.targets")
        if self.dy is not None:
            self._check_dtype("dy", self.dy, weight)
            if tuple(self.dy.shape) != (self.x.shape[0], shape.L) or self.dy.device != weight.device:
                raise ValueError(
                    f"batch.dy must be {[self.x.shape[0], shape.L]} on {weight.device}, "
                    f"got {list(self.dy.shape)} on {self.dy.device}"
                )
        if self.bias is not None:
            self._check_dtype("bias", self.bias, weight)
            if tuple(self.bias.shape) != (shape.L,) or self.bias.device != weight.device:
                raise ValueError(
                    f"batch.bias must be [{shape.L}] on {weight.device}, got {list(self.bias.shape)} on {self.bias.device}"
                )
        if self.loss not in ("bce", "squared_hinge"):
            raise ValueError(f"batch.loss must be 'bce' or 'squared_hinge', got {self.loss!r}")

    def positives(self, out_features: int) -> Positives:
        assert self.targets is not None
        return sorted_positives(self.targets, self.x.shape[0], out_features)


def over_groups(scores: Tensor, group_size: int) -> Tensor:
    """Sums ``[L, N]`` over groups: ``[R, N]``. The last group may be short."""
    if group_size == 1:
        return scores
    L, width = scores.shape
    R = num_index_rows(L, group_size)
    return F.pad(scores, (0, 0, 0, R * group_size - L)).view(R, group_size, width).sum(1)


def row_blocks(shape: LayerShape, group_size: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of indices; ``[labels, width]`` of each stays below ``BLOCK_ELEMENTS`` (or is one row's)."""
    step = max(1, BLOCK_ELEMENTS // (width * group_size))
    for start in range(0, shape.R, step):
        yield start, min(start + step, shape.R)


class Centroids:
    """Contrast of labels against all rows, block by block: ``|mean of x over the positives - mean over all|``."""

    def __init__(self, x: Tensor, positives: Positives) -> None:
        self.x, self.labels, self.rows = x, positives.labels, positives.rows
        self.mean = x.float().mean(0) if x.dtype != torch.float64 else x.mean(0).float()
        valid = (self.rows < x.shape[0]).int()
        self.seen = F.pad(valid.cumsum(0), (1, 0))

    def contrast(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """``[stop - start, D]`` float32 for the labels from ``start``, zero without positives; and their counts."""
        edges = torch.arange(start, stop + 1, device=self.x.device)
        offsets = torch.searchsorted(self.labels, edges)
        count = self.seen[offsets].diff()[:, None]
        sums = kernels("informed_indices", self.x).label_sums(self.x, self.rows, offsets)
        contrast = (sums / count.clamp(min=1) - self.mean).abs_()
        return contrast.masked_fill_(count == 0, 0.0), count


def _gradients(
    batch: RegrowBatch,
    positives: Positives | None,
    weight: Tensor,
    indices: Tensor,
    listed: Tensor,
    group_size: int,
    first: int,
) -> Tensor:
    """|dL/dw| of the labels from ``first`` on at the features ``listed [rows, C]``: ``[labels, C]``."""
    last = first + weight.shape[0]
    if batch.dy is not None:
        dw = linear_backward_weight(
            batch.dy[:, first:last].contiguous(), batch.x, listed, group_size, compute_dtype(weight.dtype)
        )
        return dw.abs()
    assert positives is not None
    # the candidates become connections of weight zero of this block: the fused sweep leaves out [B, labels]
    wide = torch.cat([weight, weight.new_zeros(weight.shape[0], listed.shape[1])], dim=1)
    both = torch.cat([indices.int(), listed.int()], dim=1).to(indices.dtype)
    bias = None if batch.bias is None else batch.bias[first:last]
    _, dw, _ = kernels("loss", batch.x).loss_gradients(
        batch.x,
        Layer(wide, both, bias, group_size),
        positives.block(first, last),
        Objective(batch.loss),
        Scaling(),
        Needed(False, True, False),
    )
    assert dw is not None
    return dw[:, weight.shape[1] :].abs()


def candidate_blocks(
    batch: RegrowBatch,
    weight: Tensor,
    indices: Tensor,
    shape: LayerShape,
    group_size: int,
    regrow: str,
    most: int,
    candidates: int | None,
    seed: int,
    first_row: int,
) -> Iterator[tuple[int, int, Tensor]]:
    """Yields ``(start, stop, features)`` with ``features [stop - start, most]`` int32: best first, none held."""
    free = shape.D - shape.K
    positives = None if batch.targets is None else batch.positives(shape.L)
    module = kernels("prune_regrow", weight)
    if regrow == "gradient":
        width = min(free, max(most, 4 * shape.K if candidates is None else candidates))
    else:
        width, (centroids, ones) = most, (Centroids(batch.x, positives), torch.ones((), device=weight.device))  # type: ignore[arg-type]
    for start, stop in row_blocks(shape, group_size, shape.K + width if regrow == "gradient" else shape.D):
        first, last = start * group_size, min(stop * group_size, shape.L)
        held = indices[start:stop]
        listed = module.free_candidates(held, shape.D, width, seed, first_row + start)
        if regrow == "gradient":
            score = _gradients(batch, positives, weight[first:last], held, listed, group_size, first)
            best = over_groups(score.float(), group_size).topk(most, dim=1).indices
            yield start, stop, listed.int().gather(1, best)
        else:
            contrast, _ = centroids.contrast(first, last)
            score = over_groups(contrast, group_size)
            known = score.sum(1, keepdim=True) > 0
            score.scatter_(1, held.long(), -ones.expand(held.shape))
            best = score.topk(most, dim=1).indices.int()
            yield start, stop, torch.where(known, best, listed.int())
