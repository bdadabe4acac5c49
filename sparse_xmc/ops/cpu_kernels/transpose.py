"""CPU kernel of the inverted index: a counting sort, in parallel over ranges of rows."""

import torch
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy


@kernel
def _count(indices, counts, part, start, stop):
    # indices [R, K], counts [parts, D]
    mine = counts[part]
    for r in range(start, stop):
        for k in range(indices.shape[1]):
            mine[indices[r, k]] += 1


@kernel
def _place(indices, cursors, positions, part, start, stop):
    # indices [R, K], cursors [parts, D], positions [R * K]
    K, mine = indices.shape[1], cursors[part]
    for r in range(start, stop):
        for k in range(K):
            feature = indices[r, k]
            positions[mine[feature]] = r * K + k
            mine[feature] += 1


def transpose_indices(indices: Tensor, in_features: int) -> tuple[Tensor, Tensor]:
    """(offsets [D + 1] int64, positions [R * K]), ascending within a feature, for any number of threads."""
    indices = indices.contiguous()
    parts = threads.split(indices.shape[0], threads.num_threads())
    tasks = [(part, *span) for part, span in enumerate(parts)]
    counts = torch.zeros(len(parts), in_features, dtype=torch.int64, device="cpu")
    threads.run(_count, tasks, *map(as_numpy, (indices, counts)))
    offsets = torch.zeros(in_features + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(counts.sum(0), 0, out=offsets[1:])
    cursors = offsets[:-1] + counts.cumsum(0) - counts
    dtype = torch.int32 if indices.numel() < 2**31 else torch.int64
    positions = torch.empty(indices.numel(), dtype=dtype, device="cpu")
    threads.run(_place, tasks, *map(as_numpy, (indices, cursors, positions)))
    return offsets, positions
