"""CPU kernel of ``init_indices``: Floyd's algorithm per row."""

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.ops._arguments import index_dtype
from sparse_xmc.ops.cpu_kernels import _threads
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, kernel
from sparse_xmc.ops.cpu_kernels._sampling import sample_distinct


@kernel
def _init_indices(out, in_features, seed, first_row, start, stop):
    marks = np.zeros(in_features, np.uint8)
    for row in range(start, stop):
        sample_distinct(seed, first_row + row, 0, out.shape[1], in_features, out[row], marks)


def init_indices(
    num_rows: int, in_features: int, fan_in: int, seed: int, first_row: int, device: torch.device
) -> Tensor:
    """[num_rows, fan_in], distinct in every row; ``first_row`` is added to the row in the counter."""
    out = torch.empty(num_rows, fan_in, dtype=index_dtype(in_features), device=device)
    tasks = _threads.split(num_rows, 4 * _threads.num_threads())
    _threads.run(_init_indices, tasks, as_numpy(out), in_features, seed, first_row)
    return out
