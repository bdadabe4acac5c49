"""The layer in operators that ONNX knows, which ``forward`` takes while ``torch.onnx.export`` traces it.

``torch.onnx.export(model, (x,), dynamo=True, opset_version=18)`` then works as for any model; 8-bit weights need opset 19.
The gathered inputs exist as ``[B, R, K]`` when the program runs, so that it serves batches of a few rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gather_form(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """``ops.fixed_fan_in_linear`` as a gather and products, in x's dtype."""
    L, K = weight.shape
    weight = weight.to(x.dtype) if weight_scale is None else (weight.float() * weight_scale[:, None]).to(x.dtype)
    gathered = x[..., indices.long()]  # [..., R, K]
    if group_size == 1:
        y = (gathered * weight).sum(-1)
    else:
        padded = F.pad(weight, (0, 0, 0, -L % group_size)).view(-1, group_size, K)
        y = torch.matmul(padded, gathered.unsqueeze(-1)).flatten(-3)[..., :L]
    return y if bias is None else y + bias.to(x.dtype)
