"""Random connectivity: ``fan_in`` distinct features for every row."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import check_positive_int, check_seed, index_dtype
from sparse_xmc.ops._backend import kernels


def init_indices(
    num_rows: int,
    in_features: int,
    fan_in: int,
    *,
    seed: int,
    device: torch.device | str | None = None,
    first_row: int = 0,
) -> Tensor:
    """Draws ``fan_in`` distinct features out of ``in_features`` for each of ``num_rows`` rows.

    Every subset has the same chance; the order within a row means nothing. The result depends on the seed and the sizes
    only, and is the same on every device. Rows are drawn one by one: with ``first_row`` they are the rows ``first_row``
    to ``first_row + num_rows`` of a larger draw.

    Returns:
        ``[num_rows, fan_in]``: uint16 where ``in_features <= 65,536``, else int32.

    Raises:
        ValueError: ``fan_in > in_features``, a size below 1, or a negative ``first_row``.

    Examples:
        >>> from sparse_xmc import ops
        >>> indices = ops.init_indices(1000, 64, 16, seed=0)
        >>> indices.shape, indices.dtype
        (torch.Size([1000, 16]), torch.uint16)
        >>> len(set(indices[0].tolist()))
        16
    """
    for name, value in (("num_rows", num_rows), ("in_features", in_features), ("fan_in", fan_in)):
        check_positive_int(name, value)
    if fan_in > in_features:
        raise ValueError(f"fan_in must not exceed in_features, got fan_in={fan_in}, in_features={in_features}")
    if first_row < 0:
        raise ValueError(f"first_row must not be negative, got {first_row}")
    device = torch.device("cpu") if device is None else torch.device(device)
    like = torch.empty(0, device=device)
    if type(like) is not Tensor:  # a fake one: the trace wants shapes
        return torch.empty(num_rows, fan_in, dtype=index_dtype(in_features), device=device)
    return kernels("init_indices", like).init_indices(
        num_rows, in_features, fan_in, check_seed(seed), first_row, device
    )
