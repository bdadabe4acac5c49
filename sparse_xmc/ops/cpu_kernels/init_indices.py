"""CPU kernel of ``init_indices``: Floyd's algorithm per row."""

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops._arguments import index_dtype
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy
from sparse_xmc.ops.cpu_kernels._sampling import LANES, draw, make_distinct, row_tasks


@kernel
def _init_indices(out, in_features, seed, first_row, start, stop):
    # out [R, K], drawn [K + 3, LANES], marks [D]
    K = out.shape[1]
    need, drawn = np.full(LANES, K, np.uint32), np.empty((K + 3, LANES), np.uint32)
    chosen, marks = np.empty(K, np.uint32), np.zeros(in_features, np.uint16)
    for row in range(start, stop):
        t = (row - start) % LANES
        if t == 0:
            draw(seed, first_row + row, 0, need, in_features, drawn)
        make_distinct(drawn, t, K, in_features, chosen, marks, np.uint16(row - start + 1))
        for k in range(K):
            out[row, k] = chosen[k]


def init_indices(
    num_rows: int, in_features: int, fan_in: int, seed: int, first_row: int, device: torch.device
) -> Tensor:
    """[num_rows, fan_in], distinct in every row; ``first_row`` is added to the row in the counter."""
    out = torch.empty(num_rows, fan_in, dtype=index_dtype(in_features), device=device)
    threads.run(_init_indices, row_tasks(num_rows), as_numpy(out), in_features, seed, first_row)
    return out
