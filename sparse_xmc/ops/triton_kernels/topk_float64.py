"""Top-k of float64 layers: logits of a chunk of labels at a time from the linear kernel, merged by sorting.

A float64 score and its label do not fit the 64-bit keys that ``topk.py`` compares, and float64 is there for checks.
"""

import torch
from torch import Tensor

from sparse_xmc.ops.triton_kernels import linear

_CHUNK = 1 << 22  # logits at a time


def topk(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    k: int,
    group_size: int,
    exclude_crow: Tensor | None,
    exclude_col: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The k best labels of each row: (scores [B, k] float64, labels [B, k] int64); see ``topk.topk``."""
    B, L = x.shape[0], weight.shape[0]
    scores, labels = x.new_empty(B, 0), torch.empty(B, 0, dtype=torch.int64, device=x.device)
    chunk = max(1, _CHUNK // (max(1, B) * group_size)) * group_size
    for start in range(0, L, chunk):
        stop = min(start + chunk, L)
        rows = indices[start // group_size : -(-stop // group_size)]
        part = linear.forward(x, weight[start:stop], rows, None if bias is None else bias[start:stop], group_size)
        label = torch.arange(start, stop, device=x.device).expand(B, -1)
        if exclude_crow is not None and exclude_col is not None:
            absent = _excluded(exclude_crow, exclude_col, start, stop)
            part, label = part.masked_fill_(absent, -torch.inf), label.masked_fill(absent, L)
        labels, order = torch.cat([labels, label], 1).sort(dim=1)
        scores, best = torch.cat([scores, part], 1).gather(1, order).sort(dim=1, descending=True, stable=True)
        scores, labels = scores[:, :k], labels.gather(1, best[:, :k])
    return scores, labels


def _excluded(crow: Tensor, col: Tensor, start: int, stop: int) -> Tensor:
    """Which of the labels ``start`` to ``stop`` are excluded: bool ``[B, stop - start]``, without waiting for the device."""
    B, width = len(crow) - 1, stop - start
    row = torch.searchsorted(crow[1:], torch.arange(len(col), device=col.device), right=True)
    column = torch.where((col >= start) & (col < stop), col - start, width)
    mask = torch.zeros(B, width + 1, dtype=torch.bool, device=col.device)
    return mask.index_put_((row, column), torch.ones((), dtype=torch.bool, device=col.device))[:, :width]
