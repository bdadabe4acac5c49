"""A fixed fan-in head whose labels are spread over the ranks of a process group or mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from sparse_xmc.distributed.blocks import label_blocks
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.rewire import rewire_shard
from sparse_xmc.distributed.rows import GatherRows, SumOverRanks
from sparse_xmc.distributed.targets import ExchangedTargets, exchange_csr
from sparse_xmc.distributed.topk import merge_candidates, topk_without
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.models.linear import draw_seed
from sparse_xmc.models.prior import bias_of_labels, log_odds, set_prior_
from sparse_xmc.ops import Loss, Reduction
from sparse_xmc.ops._arguments import FLOAT_DTYPES, Targets, check_float, check_tensor
from sparse_xmc.ops._objective import divisor, whole_weight
from sparse_xmc.ops.cross_entropy import IGNORE_INDEX, Softmax, check_classes, row_weights, summed_cross_entropy


class LabelShardedLinear(nn.Module):
    """The part of a ``FixedFanInLinear`` that this rank holds: a contiguous block of labels and how to train it.

    Every rank encodes rows of its own and passes their embeddings to ``loss`` or ``topk``: the embeddings go to all
    ranks of the label dimension, each computes its labels for all of those rows, and the embeddings' gradients come
    back. Results equal those of one process with the whole head and all rows. All ranks must make the same calls.

    Only ``shard.weight`` and ``shard.bias`` are parameters, so any optimizer's state is cut like them. With a data
    dimension, gradients of the shard are summed over it, which no fused optimizer can take part in.

    Wrap the encoder in DDP or FSDP, never this module: they take the ranks' labels for copies of one tensor. DDP's
    constructor then says so, all else is found at the first step. A model that holds this head is
    wrapped after ``model._ddp_params_and_buffers_to_ignore = [f"head.{name}" for name in head.state_dict()]``, or by
    ``fully_shard(model, ignored_params=set(head.parameters()))``.

    Args:
        in_features, out_features, fan_in, group_size, bias, device, dtype, seed, prior: of the whole head, as in
            ``FixedFanInLinear``; the same seed makes the same head on any number of ranks.
        mesh: a ``DeviceMesh`` of one dimension (labels) or two (data and labels), or a process group whose ranks share
            the labels; None: all ranks share them.
        label_dim: name of the mesh dimension that labels are spread over, or its number.
        sizes: labels on each rank of that dimension; None spreads groups of labels evenly.
        average_gradients: whether the encoder's parameter gradients are averaged over the ranks of the mesh, as DDP and
            FSDP do. The gradient that reaches the encoder is then multiplied by that number of ranks. False for an
            encoder whose gradients are summed.

    Attributes:
        shard: this rank's labels as a ``FixedFanInLinear``.
        labels: ``range`` of this rank's labels.

    Raises:
        ValueError: too few labels for the ranks, ``sizes`` that do not fit, a mesh of other devices, or ranks that disagree
            on an argument.

    Examples:
        >>> import torch
        >>> from sparse_xmc.distributed import LabelShardedLinear
        >>> head = LabelShardedLinear(16, 100, fan_in=8, seed=0)  # without a process group: one rank
        >>> x = torch.randn(2, 16)
        >>> targets = torch.eye(100)[[4, 99]].to_sparse_csr()
        >>> head.loss(x, head.exchange_targets(targets)).backward()
        >>> head.labels, head.topk(x, k=5)[1].shape, head(x).shape
        (range(0, 100), torch.Size([2, 5]), torch.Size([2, 100]))
        >>> int(head.rewire_(fraction=0.25, seed=1))
        200
        >>> whole = head.to_layer()
        >>> again = LabelShardedLinear.from_layer(whole)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int,
        *,
        group_size: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        mesh: DeviceMesh | dist.ProcessGroup | None = None,
        label_dim: str | int = "labels",
        sizes: Sequence[int] | None = None,
        average_gradients: bool = True,
        prior: Any = None,
    ) -> None:
        super().__init__()
        label_group, data_group = _groups(mesh, label_dim)
        place = torch.empty(0, device=device).device
        if isinstance(mesh, DeviceMesh) and mesh.device_type != place.type:
            raise ValueError(f"mesh must be of the head's devices: it is of {mesh.device_type}, device is {place}")
        self.ranks, self.replicas = Ranks(label_group, place), Ranks(data_group, place)
        settings = [in_features, out_features, fan_in, group_size, bias, str(dtype), sizes and list(sizes), place.type]
        _check_agreement(self.ranks, settings)
        _check_agreement(self.replicas, settings)
        blocks = label_blocks(out_features, self.ranks.size, group_size=group_size, sizes=sizes)
        self.in_features, self.out_features, self.fan_in, self.group_size = (
            in_features,
            out_features,
            fan_in,
            group_size,
        )
        self.blocks, self.labels = blocks, blocks[self.ranks.rank]
        self.gradient_scale = float(self.ranks.size * self.replicas.size) if average_gradients else 1.0
        self.shard = FixedFanInLinear(
            in_features, len(self.labels), fan_in, group_size=group_size, bias=bias, device="meta", dtype=dtype
        ).to_empty(device=place)
        set_prior_(self.shard, bias_of_labels(log_odds(prior, out_features), self.labels.start, self.labels.stop))
        self.shard._holds_part = True
        if seed is None:
            seed = draw_seed()
        for dimension in (self.replicas, self.ranks):
            seed = dimension.gather_integers([seed], "choice of the seed")[0][0]
        self.shard.reset_parameters(seed, first_label=self.labels.start)
        for parameter in self.shard.parameters() if self.replicas.size > 1 else ():
            parameter.register_hook(lambda gradient: self.replicas.sum_(gradient.clone(), "sum of the head's gradient"))
        self._agreed: set[tuple[torch.dtype, bool]] = set()

    @classmethod
    def from_layer(cls, layer: FixedFanInLinear, **options: Any) -> LabelShardedLinear:
        """This rank's part of a whole head that every rank holds. ``options``: mesh, label_dim, sizes, ..."""
        head = cls(
            layer.in_features,
            layer.out_features,
            layer.fan_in,
            group_size=layer.group_size,
            bias=layer.bias is not None,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            seed=0,
            **options,
        )
        first_row = head.labels.start // head.group_size
        with torch.no_grad():
            head.shard.weight.copy_(layer.weight[head.labels.start : head.labels.stop])
            head.shard.indices.copy_(layer.indices[first_row : first_row + len(head.shard.indices)])
            if layer.bias is not None and head.shard.bias is not None:
                head.shard.bias.copy_(layer.bias[head.labels.start : head.labels.stop])
        return head

    @torch.no_grad()
    def to_layer(self) -> FixedFanInLinear:
        """The whole head, on every rank."""
        layer = FixedFanInLinear(
            self.in_features,
            self.out_features,
            self.fan_in,
            group_size=self.group_size,
            bias=self.shard.bias is not None,
            device="meta",
            dtype=self.shard.weight.dtype,
        ).to_empty(device=self.shard.weight.device)
        sizes = [len(block) for block in self.blocks]
        layer.weight.copy_(self.ranks.gather_rows(self.shard.weight.detach(), sizes, "all-gather of the weights"))
        if layer.bias is not None and self.shard.bias is not None:
            layer.bias.copy_(self.ranks.gather_rows(self.shard.bias.detach(), sizes, "all-gather of the bias"))
        rows = [-(-size // self.group_size) for size in sizes]
        indices = self.ranks.gather_rows(self.shard.indices.int(), rows, "all-gather of the indices")
        layer.indices.copy_(indices.to(layer.indices.dtype))
        return layer

    def exchange_targets(self, targets: Targets) -> ExchangedTargets:
        """Starts sending this rank's targets ``[own rows, out_features]`` (CSR), to be passed to ``loss`` later.

        Called before the encoder runs, it hides their way behind the encoder's work.
        """
        return exchange_csr(targets, self.ranks, self.labels, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """``x [own rows, in_features]`` to the logits of this rank's labels for the rows of all ranks."""
        rows = self._check_input(x)
        return self.shard(self._gather(x, rows))

    def loss(
        self,
        x: Tensor,
        targets: Targets | ExchangedTargets,
        *,
        loss: Loss = "bce",
        reduction: Reduction = "mean",
        **options: Any,
    ) -> Tensor:
        """The loss over the rows of all ranks and all labels, the same number on every rank.

        Args:
            x: embeddings of this rank's rows ``[own rows, in_features]``; ranks may hold different numbers of rows.
            targets: their sparse CSR targets ``[own rows, out_features]``, the pair of its index tensors, or what
                ``exchange_targets`` made of them; for "cross_entropy" their classes, int64 ``[own rows]``.
            loss, reduction, options: as in ``ops.fixed_fan_in_loss``; a mean counts the rows of all ranks.
                ``pos_weight`` is of all labels, ``sample_weight`` of this rank's rows; either all ranks have it or none.

        Raises:
            ValueError: an argument does not fit, here or on another rank; a fused optimizer of ``shard`` meets replicas or
                "cross_entropy".
            RankFailure: another rank has died, hangs or made a different call.
        """
        divisor(reduction, 0, 1)
        if loss == "sampled_softmax":
            raise ValueError(
                "loss='sampled_softmax' is one of whole heads, a sharded one has the exact 'cross_entropy'"
            )
        self._check_local(x)
        self._check_fused_optimizer(loss)
        if loss == "cross_entropy":
            if isinstance(targets, ExchangedTargets):
                raise TypeError("targets must be int64 classes for loss='cross_entropy', got exchanged CSR targets")
            return self._cross_entropy(x, targets, reduction, **options)
        self._check_weights(options, len(x))
        exchanged = targets if isinstance(targets, ExchangedTargets) else self.exchange_targets(targets)
        rows = exchanged.rows
        self._check_agreement_on(x, rows)
        options = self._local_weights(options, rows)
        own = self.shard.loss(self._gather(x, rows), exchanged.wait(), loss=loss, reduction="sum", **options)
        if reduction != "sum":
            own = own / divisor(reduction, self._count_rows(rows), self.out_features)
        return SumOverRanks.apply(own, self.ranks, self.replicas)

    @torch.no_grad()
    def topk(self, x: Tensor, k: int, *, exclude: Tensor | ExchangedTargets | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` best labels of this rank's rows: (scores ``[own rows, k]``, labels ``[own rows, k]`` int64).

        Each rank finds ``k`` candidates among its labels for the rows of all ranks and sends them to the rank that the
        row belongs to. Ties go to the smaller label. ``exclude``: CSR matrix of labels to leave out, row by row.
        """
        if not 1 <= k <= self.out_features:
            raise ValueError(f"k must be between 1 and out_features={self.out_features}, got {k}")
        rows = self._check_input(x)
        gathered = self._gather(x, rows)
        left_out = self.exchange_targets(exclude) if isinstance(exclude, Tensor) else exclude
        if left_out is None:
            scores, labels = self.shard.topk(gathered, min(k, len(self.labels)))
        else:
            scores, labels = topk_without(self.shard, gathered, k, left_out.wait())
        return merge_candidates(scores, labels, k, rows, self.ranks, self.labels.start)

    def rewire_(
        self,
        *,
        seed: int,
        fraction: float | None = None,
        scope: str = "row",
        group_score: str = "mean",
        **options: Any,
    ) -> Tensor:
        """Rewires this rank's labels as ``FixedFanInLinear.rewire_`` would the whole head with the same ``seed``.

        With ``scope="global"`` the ranks agree on the weakest connections of all labels. Returns the number of slots
        rewired on all ranks, 0-dim int64.
        """
        return rewire_shard(
            self.shard.rewire_,
            self.shard.weight,
            self.group_size,
            self.blocks,
            self.ranks,
            seed=seed,
            fraction=fraction,
            scope=scope,
            group_score=group_score,
            **options,
        )

    def _check_weights(self, options: dict[str, Any], rows: int) -> None:
        """Before anything is sent: weights have the sizes of the whole head's labels and of this rank's rows."""
        for name, size in (("pos_weight", self.out_features), ("sample_weight", rows)):
            if options.get(name) is not None:
                whole_weight(name, options[name], size)

    def _local_weights(self, options: dict[str, Any], rows: list[int]) -> dict[str, Any]:
        """The weights of this rank's labels, and those of all ranks' rows."""
        local = dict(options)
        if options.get("pos_weight") is not None:
            local["pos_weight"] = options["pos_weight"][self.labels.start : self.labels.stop]
        if options.get("sample_weight") is not None:
            local["sample_weight"] = self.ranks.gather_rows(
                options["sample_weight"].float(), rows, "exchange of the rows' weights"
            )
        return local

    def _cross_entropy(
        self,
        x: Tensor,
        targets: Tensor,
        reduction: str,
        label_smoothing: float = 0.0,
        ignore_index: int = IGNORE_INDEX,
        class_weight: Tensor | None = None,
    ) -> Tensor:
        softmax = Softmax(label_smoothing, class_weight, ignore_index, self.labels.start, self.out_features)
        targets = check_classes(targets, x.shape[:-1], softmax, x.device)
        rows = self._check_input(x)
        targets = self.ranks.gather_rows(targets, rows, "exchange of the targets")
        shard = (self.shard.weight, self.shard.indices, self.shard.bias)
        own = summed_cross_entropy(
            self._gather(x, rows), *shard, targets, softmax, group_size=self.group_size, combine=self._combine
        )
        if reduction == "mean":
            own = own / self.replicas.sum_(row_weights(targets, softmax, own.dtype).sum(), "count of the batch's rows")
        return SumOverRanks.apply(own, self.replicas)

    def _combine(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Softmax statistics of all labels from those of every rank's."""
        ones = [1] * self.ranks.size
        log_sum, picked, total = self.ranks.gather_rows(
            torch.stack(parts)[None], ones, "exchange of the softmax statistics"
        ).unbind(1)
        return log_sum.logsumexp(0), picked.sum(0), total.sum(0)

    def _gather(self, x: Tensor, rows: list[int]) -> Tensor:
        return GatherRows.apply(x, self.ranks, rows, self.gradient_scale)

    def _count_rows(self, rows: list[int]) -> int:
        counted = self.replicas.gather_integers([sum(rows)], "count of the batch's rows")
        return max(1, sum(count for (count,) in counted))

    def _check_fused_optimizer(self, loss: str) -> None:
        if self.shard._optimizer is None or not torch.is_grad_enabled():
            return
        if self.replicas.size > 1:
            raise ValueError(
                f"a fused optimizer updates each of the {self.replicas.size} replicas by its own rows, so that they drift "
                "apart: use one of torch.optim, or a mesh of labels only"
            )
        if loss == "cross_entropy":
            raise ValueError("no fused optimizer updates a layer under loss='cross_entropy': use one of torch.optim")

    def _check_local(self, x: Tensor) -> None:
        check_float("x", x)
        check_tensor("shard.weight", self.shard.weight)
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must be [own rows, in_features={self.in_features}], got shape {list(x.shape)}")
        if x.device != self.shard.weight.device:
            raise ValueError(f"x must be on the head's device {self.shard.weight.device}, got {x.device}")

    def _check_input(self, x: Tensor) -> list[int]:
        self._check_local(x)
        rows = [count for (count,) in self.ranks.gather_integers([len(x)], "exchange of the batch's sizes")]
        self._check_agreement_on(x, rows)
        return rows

    def _check_agreement_on(self, x: Tensor, rows: list[int]) -> None:
        """Ranks agree on dtype and gradient of ``x``; asked when they change, for they change on all ranks at once."""
        if len(x) != rows[self.ranks.rank]:
            raise ValueError(f"x and targets must have the same rows: x has {len(x)}, targets {rows[self.ranks.rank]}")
        needs_gradient = x.requires_grad and torch.is_grad_enabled()
        if (x.dtype, needs_gradient) in self._agreed:
            return
        dtypes = list(FLOAT_DTYPES)
        mine = [dtypes.index(x.dtype), needs_gradient, _digest(self.shard.weight)]
        said = self.ranks.gather_integers(mine, "check of the embeddings' dtype")
        if any(one[:2] != said[0][:2] for one in said):
            text = [f"{dtypes[dtype]}, requires_grad={bool(grad)}" for dtype, grad, _ in said]
            raise ValueError(f"x must have the same dtype and requires_grad on every rank, got {text}")
        if self.ranks.size > 1 and mine[2] and all(one[2] == mine[2] for one in said):
            raise ValueError(
                "all ranks hold the same weights for their different labels, as under DDP or FSDP: wrap the encoder, and "
                "leave the head's parameters and buffers out"
            )
        self._agreed.add((x.dtype, needs_gradient))

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, fan_in={self.fan_in}, "
            f"labels {self.labels.start}-{self.labels.stop - 1} on rank {self.ranks.rank} of {self.ranks.size}, "
            f"replicas={self.replicas.size}"
        )


def _digest(weight: Tensor) -> int:
    """A number that differs for different weights, but for chance; 0 where all are equal, as at the start of a training."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    bits = weight.detach().view(kind)
    low, high = bits.aminmax()
    return int(bits.sum(dtype=torch.int64)) if low != high else 0


def _groups(
    mesh: DeviceMesh | dist.ProcessGroup | None, label_dim: str | int
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """Process groups of the label and the data dimension; None for a dimension of one rank."""
    if mesh is None:
        return (dist.group.WORLD if dist.is_initialized() else None), None
    if isinstance(mesh, dist.ProcessGroup):
        return mesh, None
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh must be a DeviceMesh or a ProcessGroup, got {type(mesh).__name__}")
    if mesh.ndim == 1:
        return mesh.get_group(), None
    if mesh.ndim != 2:
        raise ValueError(f"mesh must have one dimension (labels) or two (data and labels), got {mesh.ndim}")
    names = mesh.mesh_dim_names or ()
    if isinstance(label_dim, str):
        if label_dim not in names:
            raise ValueError(f"label_dim must be one of the mesh's dimensions {list(names)}, got {label_dim!r}")
        label_dim = names.index(label_dim)
    if label_dim not in (0, 1):
        raise ValueError(f"label_dim must be 0 or 1 for a mesh of two dimensions, got {label_dim}")
    return mesh.get_group(label_dim), mesh.get_group(1 - label_dim)


def _check_agreement(ranks: Ranks, settings: list[object]) -> None:
    said = ranks.gather_documents(settings, "comparison of the head's arguments")
    differing = {rank: other for rank, other in enumerate(said) if other != said[0]}
    if differing:
        raise ValueError(
            "the ranks disagree on (in_features, out_features, fan_in, group_size, bias, dtype, sizes, device): "
            f"rank 0 has {said[0]}, others {differing}"
        )
