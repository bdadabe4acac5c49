"""Former home of optimizers and rewire schedule: names that programs import from here work for one more release."""

import sys
import warnings

from sparse_xmc.optim import FusedAdagrad, FusedAdam, FusedOptimizer, FusedSGD, fused, row_sparse
from sparse_xmc.optim.row_sparse import RowSparseAdagrad
from sparse_xmc.topology import schedule
from sparse_xmc.topology.schedule import RewireSchedule

warnings.warn(
    "sparse_xmc.training is deprecated: optimizers are in sparse_xmc.optim, RewireSchedule in sparse_xmc.topology",
    DeprecationWarning,
    stacklevel=2,
)
for _name, _module in (("optim", fused), ("row_sparse", row_sparse), ("schedule", schedule)):
    sys.modules[f"{__name__}.{_name}"] = _module

__all__ = ["FusedAdagrad", "FusedAdam", "FusedOptimizer", "FusedSGD", "RewireSchedule", "RowSparseAdagrad"]
