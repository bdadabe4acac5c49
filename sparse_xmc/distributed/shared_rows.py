"""Layers of an existing model that hold a block of labels each, while every rank has the same rows.

The encoder is computed on every rank, only what grows with the number of labels is spread. ``LabelShardedLinear`` is the
head for ranks with rows of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparse_xmc.distributed.blocks import label_blocks
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.rewire import rewire_shard
from sparse_xmc.distributed.rows import SumOverRanks
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.models.prior import bias_of_labels
from sparse_xmc.models.sparse_rows import csr_columns
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
    """Mixed into a layer's class by ``shard_layer_``; ``out_features`` and the tensors are of this rank's labels."""

    ranks: Ranks
    blocks: list[range]
    labels: range
    gathers_forward: bool
    labels_may_change = False

    def loss(self, x: Tensor, targets: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        if x.layout == torch.strided:
            x = _SumGradient.apply(x, self.ranks)
        own = super().loss(x, csr_columns(targets, self.labels.start, self.labels.stop), **options)
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


def shard_layer_(layer: FixedFanInLinear, ranks: Ranks, seed: int) -> None:
    """Makes of a layer on the meta device this rank's labels of the layer that has this seed."""
    assert layer.weight.is_meta
    blocks = label_blocks(layer.out_features, ranks.size, group_size=layer.group_size)
    labels = blocks[ranks.rank]
    rows = num_index_rows(len(labels), layer.group_size)
    layer.weight = nn.Parameter(torch.empty_like(layer.weight[: len(labels)], device=ranks.device))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.empty_like(layer.bias[: len(labels)], device=ranks.device))
    layer.indices = torch.empty_like(layer.indices[:rows], device=ranks.device)
    layer.out_features = len(labels)
    layer._initial_bias = bias_of_labels(layer._initial_bias, labels.start, labels.stop)
    layer.reset_parameters(seed, first_label=labels.start)
    layer.__class__ = type(f"Sharded{type(layer).__name__}", (SharedRows, type(layer)), {})
    assert isinstance(layer, SharedRows)
    layer.ranks, layer.blocks, layer.labels, layer.gathers_forward = ranks, blocks, labels, True


@torch.no_grad()
def shard_model_(model: nn.Module, ranks: Ranks, seed: int) -> None:
    """Makes a model whose fixed fan-in layers are on the meta device one whose labels are spread over the ranks.

    Each rank makes its own labels of these layers, as a whole layer with this seed has them; the first rank's other
    parameters and buffers go to all ranks.

    Raises:
        ValueError: the model has no fixed fan-in layer.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, FixedFanInLinear)]
    if not layers:
        raise ValueError("the model has no fixed fan-in layer whose labels could be spread over the ranks")
    for layer in layers:
        shard_layer_(layer, ranks, seed)
    model.to(ranks.device)
    own = {id(tensor) for layer in layers for tensor in layer.state_dict(keep_vars=True).values()}
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) not in own:
            sent = tensor.detach().int() if tensor.dtype == torch.uint16 else tensor.detach()
            tensor.copy_(ranks.copy_first_(sent, "copy of the first rank's model"))
