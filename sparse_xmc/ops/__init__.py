"""The kernels, as ``torch.autograd.Function`` ops behind plain functions."""

from sparse_xmc._renamed import renamed
from sparse_xmc.ops import _old_schemas  # noqa: F401
from sparse_xmc.ops._arguments import Targets
from sparse_xmc.ops._contract import Positives
from sparse_xmc.ops._objective import Loss, LossOptions, Reduction
from sparse_xmc.ops._regrow import RegrowBatch
from sparse_xmc.ops._targets import sort_targets
from sparse_xmc.ops.informed_indices import informed_indices
from sparse_xmc.ops.init_indices import init_indices
from sparse_xmc.ops.linear import fixed_fan_in_linear
from sparse_xmc.ops.loss import fixed_fan_in_loss
from sparse_xmc.ops.prune_regrow import prune_regrow_
from sparse_xmc.ops.quantized import dequantize_weight, quantize_weight
from sparse_xmc.ops.sampled_softmax import Sampling, fixed_fan_in_sampled_softmax
from sparse_xmc.ops.step import fixed_fan_in_step_, updating_loss_
from sparse_xmc.ops.topk import fixed_fan_in_topk
from sparse_xmc.ops.transpose import transpose_indices
from sparse_xmc.ops.update import Update, UpdateRule

updating_loss = renamed("updating_loss", updating_loss_)

__all__ = [
    "Loss",
    "LossOptions",
    "Positives",
    "Reduction",
    "RegrowBatch",
    "Sampling",
    "Targets",
    "Update",
    "UpdateRule",
    "dequantize_weight",
    "fixed_fan_in_linear",
    "fixed_fan_in_loss",
    "fixed_fan_in_sampled_softmax",
    "fixed_fan_in_step_",
    "fixed_fan_in_topk",
    "informed_indices",
    "init_indices",
    "prune_regrow_",
    "quantize_weight",
    "sort_targets",
    "transpose_indices",
    "updating_loss_",
]
