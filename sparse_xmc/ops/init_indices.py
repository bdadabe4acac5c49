"""Random connectivity: ``fan_in`` distinct features for every row."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import check_positive_int, index_dtype


def init_indices(
    num_rows: int, in_features: int, fan_in: int, *, seed: int, device: torch.device | str | None = None
) -> Tensor:
    """Draws ``fan_in`` distinct features out of ``in_features`` for each of ``num_rows`` rows, uniformly.

    Returns:
        ``[num_rows, fan_in]``: uint16 where ``in_features <= 65,536``, else int32.

    Raises:
        ValueError: ``fan_in > in_features`` or a size below 1.
    """
    for name, value in (("num_rows", num_rows), ("in_features", in_features), ("fan_in", fan_in)):
        check_positive_int(name, value)
    if fan_in > in_features:
        raise ValueError(f"fan_in must not exceed in_features, got fan_in={fan_in}, in_features={in_features}")
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(num_rows, fan_in, dtype=index_dtype(in_features))
    chunk = max(1, (1 << 24) // in_features)
    for start in range(0, num_rows, chunk):
        keys = torch.rand(min(chunk, num_rows - start), in_features, generator=generator)
        out[start : start + chunk] = keys.topk(fan_in, dim=1).indices.to(out.dtype)
    return out.to(device)
