"""Layers of an existing model that hold a block of labels each, while every rank has the same rows.

The encoder is computed on every rank, only what grows with the number of labels is spread. ``LabelShardedLinear`` is the
head for ranks with rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparse_xmc.distributed.blocks import label_blocks
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.rewire import rewire_shard
from sparse_xmc.distributed.rows import SumOverRanks
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops._arguments import num_index_rows


class _SumGradient(torch.autograd.Function):
    """The identity; its gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.ranks.sum_(dx.clone(), "sum of the embeddings' gradient"), None


class SharedRows(FixedFanInLinear):
    """Mixed into a layer's class by ``shard_layer_``; ``out_features`` is this rank's number of labels."""

    ranks: Ranks
    blocks: list[range]
    labels: range
    gathers_forward: bool
    gathers_state: bool

    def loss(self, x: Tensor, targets: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        if x.layout == torch.strided:
            x = _SumGradient.apply(x, self.ranks)
        own = super().loss(x, column_block(targets, self.labels), **options)
        return SumOverRanks.apply(own, self.ranks)

    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        own = min(k, self.out_features)
        self.gathers_forward = False
        try:
            scores, labels = super().topk(x, own)
        finally:
            self.gathers_forward = True
        kept = [min(k, len(block)) for block in self.blocks]
        every_score = self.ranks.gather_rows(scores.t(), kept, "exchange of the candidates' scores").t()
        every_label = self.ranks.gather_rows(
            (labels + self.labels.start).t(), kept, "exchange of the candidates' labels"
        ).t()
        best, order = every_score.sort(dim=1, descending=True, stable=True)
        return best[:, :k], every_label.gather(1, order[:, :k])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all labels, without gradient."""
        logits = super().forward(x)
        if not self.gathers_forward:
            return logits
        if torch.is_grad_enabled():
            raise RuntimeError("logits of all ranks have no gradient: train with loss(), predict under no_grad()")
        sizes = [len(block) for block in self.blocks]
        return self.ranks.gather_rows(logits.t(), sizes, "all-gather of the logits").t()

    def rewire_(self, **options: Any) -> Tensor:  # type: ignore[override]
        return rewire_shard(super().rewire_, self.weight, self.group_size, self.blocks, self.ranks, **options)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.gathers_state:
            return
        labels = [len(block) for block in self.blocks]
        rows = [num_index_rows(size, self.group_size) for size in labels]
        for name in ("weight", "bias"):
            if prefix + name in destination:
                own = destination[prefix + name].detach()
                destination[prefix + name] = self.ranks.gather_rows(own, labels, f"all-gather of the {name}")
        indices = self.ranks.gather_rows(self.indices.int(), rows, "all-gather of the indices")
        destination[prefix + "indices"] = indices.to(self.indices.dtype)


def column_block(targets: Tensor, labels: range) -> Tensor:
    """Columns ``labels`` of a CSR matrix, numbered from 0."""
    columns = targets.col_indices()
    mine = (columns >= labels.start) & (columns < labels.stop)
    ends = torch.cat([mine.new_zeros(1, dtype=torch.int64), mine.cumsum(0)])
    return torch.sparse_csr_tensor(
        ends[targets.crow_indices()],
        columns[mine] - labels.start,
        targets.values()[mine],
        (targets.shape[0], len(labels)),
        check_invariants=False,
    )


@torch.no_grad()
def shard_layer_(layer: FixedFanInLinear, ranks: Ranks) -> None:
    """Leaves this rank's block of labels in a whole layer that all ranks hold alike."""
    blocks = label_blocks(layer.out_features, ranks.size, group_size=layer.group_size)
    labels = blocks[ranks.rank]
    rows = slice(labels.start // layer.group_size, num_index_rows(labels.stop, layer.group_size))
    layer.weight = nn.Parameter(layer.weight[labels.start : labels.stop].clone())
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[labels.start : labels.stop].clone())
    layer.indices = layer.indices[rows].clone()
    layer.out_features = len(labels)
    layer.__class__ = type(f"Sharded{type(layer).__name__}", (SharedRows, type(layer)), {})
    assert isinstance(layer, SharedRows)
    layer.ranks, layer.blocks, layer.labels = ranks, blocks, labels
    layer.gathers_forward, layer.gathers_state = True, False


def shard_model_(model: nn.Module, ranks: Ranks) -> list[str]:
    """Shards every fixed fan-in layer of a model and gives all ranks the first one's other tensors; names of the layers.

    Raises:
        ValueError: the model has no fixed fan-in layer.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, FixedFanInLinear)}
    if not layers:
        raise ValueError("the model has no fixed fan-in layer whose labels could be spread over the ranks")
    for tensor in model.state_dict().values():
        sent = tensor.int() if tensor.dtype == torch.uint16 else tensor
        tensor.copy_(ranks.copy_first_(sent, "copy of the first rank's model"))
    for layer in layers.values():
        shard_layer_(layer, ranks)
    return list(layers)


@contextmanager
def whole_state(model: nn.Module) -> Iterator[None]:
    """Within it ``model.state_dict()``, to be called on all ranks, is that of the whole model."""
    layers = [layer for layer in model.modules() if isinstance(layer, SharedRows)]
    for layer in layers:
        layer.gathers_state = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gathers_state = False
