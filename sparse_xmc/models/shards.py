"""Parameters of which this rank holds a part, as ``fully_shard`` leaves them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def local_rows(parameter: Tensor) -> tuple[Tensor, int]:
    """What this rank holds of a parameter, and the number of its first row; a whole one as it is."""
    if type(parameter).__name__ != "DTensor":
        return parameter, 0
    cut: Any = parameter
    held = cut.__create_chunk_list__()  # what torch.distributed.checkpoint asks
    return cut.to_local(), held[0].offsets[0] if held else 0
