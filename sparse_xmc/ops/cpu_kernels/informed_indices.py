"""CPU kernel of label centroids: sums of the rows of ``x`` over the positives of each label."""

import torch
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, decode


@kernel
def _label_sums(x, rows, offsets, sums, start, stop):
    # x [N, D], rows [nnz] (N: none), offsets [labels + 1], sums [labels, D] float32
    for label in range(start, stop):
        total = sums[label]
        total[:] = 0
        for entry in range(offsets[label], offsets[label + 1]):
            row = rows[entry]
            if row < x.shape[0]:
                for d in range(x.shape[1]):
                    total[d] += decode(x[row, d])


def label_sums(x: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """x [N, D], rows [nnz] (N = none), offsets [labels + 1] -> [labels, D] float32."""
    sums = torch.empty(offsets.shape[0] - 1, x.shape[1], dtype=torch.float32, device="cpu")
    tasks = threads.split(sums.shape[0], 8 * threads.num_threads())
    threads.run(_label_sums, tasks, *map(as_numpy, (x.contiguous(), rows, offsets, sums)))
    return sums
