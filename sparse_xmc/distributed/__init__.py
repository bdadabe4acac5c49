"""Heads whose labels are spread over many processes, on ``torch.distributed``."""

from sparse_xmc.distributed import checkpoint
from sparse_xmc.distributed.blocks import label_blocks
from sparse_xmc.distributed.linear import LabelShardedLinear
from sparse_xmc.distributed.ranks import RankFailure
from sparse_xmc.distributed.restarts import init_process_group

__all__ = ["LabelShardedLinear", "RankFailure", "checkpoint", "init_process_group", "label_blocks"]
