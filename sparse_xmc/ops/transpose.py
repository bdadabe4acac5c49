"""Inverted index of a topology: for every feature the connections that read it."""

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import INDEX_DTYPES, check_positive_int, check_tensor, index_dtype, validate_indices
from sparse_xmc.ops._backend import debugging, kernels
from sparse_xmc.ops._dispatch import define, direct
from sparse_xmc.ops._topology_cache import cached_inverse


def _transpose(indices: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    return kernels("transpose", indices).transpose_indices(indices, in_features)


def _fake(indices: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    connections = indices.shape[0] * indices.shape[1]
    dtype = torch.int32 if connections < 2**31 else torch.int64
    return indices.new_empty(in_features + 1, dtype=torch.int64), indices.new_empty(connections, dtype=dtype)


transpose_op = define(
    "transpose_indices(Tensor indices, SymInt in_features) -> (Tensor, Tensor)",
    _transpose,
    _fake,
)


def transpose_indices(indices: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """Lists the connections of every feature. Deterministic.

    In eager code the result is remembered until ``indices`` changes or goes away, so it must not be written to.

    Args:
        indices: ``[R, K]`` uint16 or int32.
        in_features: ``D``.

    Returns:
        offsets: ``[D + 1]`` int64; feature ``d`` owns ``positions[offsets[d] : offsets[d + 1]]``.
        positions: ``[R * K]``, ``r * K + k``, ascending within a feature; int32 where ``R * K < 2^31``, else int64.

    Raises:
        ValueError, TypeError: an argument has the wrong shape or dtype.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> ops.transpose_indices(torch.tensor([[0, 1], [1, 2]], dtype=torch.uint16), 3)  # feature 1: connections 1 and 2
        (tensor([0, 1, 3, 4]), tensor([0, 1, 2, 3], dtype=torch.int32))
    """
    check_tensor("indices", indices)
    check_positive_int("in_features", in_features)
    if indices.dtype not in INDEX_DTYPES:
        raise TypeError(f"indices must be {index_dtype(in_features)}, got {indices.dtype}")
    if indices.ndim != 2 or indices.numel() == 0:
        raise ValueError(
            f"indices must be [rows, fan_in] with at least one connection, got shape {list(indices.shape)}"
        )
    if debugging():
        validate_indices(indices, in_features)
    if not direct(indices):
        return transpose_op(indices, in_features)
    return cached_inverse(indices, in_features, _transpose)
