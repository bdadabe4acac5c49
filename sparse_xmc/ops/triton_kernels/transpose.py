"""Inverted index of a topology: for each feature, the connections that read it, in ascending order."""

import torch
from torch import Tensor


def transpose_indices(indices: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """Lists the positions of every feature in ``indices``. Deterministic, without waiting for the device.

    A stable sort of the features is the counting sort that this is: torch's is a radix sort on CUDA, ROCm and CPU.

    Args:
        indices: ``[R, K]`` uint16 or int32.
        in_features: ``D``.

    Returns:
        offsets: ``[D + 1]`` int64; feature ``d`` owns ``positions[offsets[d] : offsets[d + 1]]``.
        positions: ``[R * K]``, ``r * K + k``, ascending within a feature; int32 where ``R * K < 2^31``, else int64.
    """
    features, positions = indices.reshape(-1).int().sort(stable=True)
    bounds = torch.arange(in_features + 1, dtype=torch.int32, device=indices.device)
    offsets = torch.searchsorted(features, bounds)
    return offsets, positions if positions.numel() >= 2**31 else positions.int()
