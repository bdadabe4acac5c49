"""What is derived from a topology, kept as long as the topology is unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sparse_xmc.ops._backend import capturing

Inverted = tuple[Tensor, Tensor]


class _Entry(NamedTuple):
    version: int
    in_features: int
    inverted: Inverted


_entries = WeakIdKeyDictionary()


def cached_inverse(indices: Tensor, in_features: int, invert: Callable[[Tensor, int], Inverted]) -> Inverted:
    """``invert(indices, in_features)``, computed once per state of ``indices``.

    An entry belongs to the tensor object and its version counter: every in-place operation of torch or of this
    package invalidates it, and it goes with its tensor. Inference tensors have no version and are not remembered, nor is
    what a CUDA graph will compute when it is replayed.
    """
    if indices.is_inference():
        return invert(indices, in_features)
    entry: _Entry | None = _entries.get(indices)
    if entry is None or entry.version != indices._version or entry.in_features != in_features:
        entry = _Entry(indices._version, in_features, invert(indices, in_features))
        if not capturing(indices):
            _entries[indices] = entry
    return entry.inverted
