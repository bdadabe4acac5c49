"""A fixed fan-in head whose labels are spread over the ranks of a process group or mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from sparse_xmc.distributed.blocks import label_blocks
from sparse_xmc.distributed.mesh import process_groups
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.rewire import rewire_shard_
from sparse_xmc.distributed.rows import SHARINGS, OwnRows, SharedRows, SumOverRanks
from sparse_xmc.distributed.targets import ExchangedTargets
from sparse_xmc.distributed.topk import merge_candidates, topk_without
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.models.label_changes import draw_seed
from sparse_xmc.models.prior import bias_of_labels
from sparse_xmc.ops import Loss, Reduction
from sparse_xmc.ops._arguments import Targets, num_index_rows
from sparse_xmc.ops._objective import divisor, whole_weight
from sparse_xmc.ops.cross_entropy import IGNORE_INDEX, Softmax, check_classes, row_weights, summed_cross_entropy


class LabelShardedLinear(nn.Module):
    """The part of a ``FixedFanInLinear`` that this rank holds: a contiguous block of labels and how to train it.

    With ``rows="own"`` every rank encodes rows of its own and passes their embeddings to ``loss`` or ``topk``: the
    embeddings go to all ranks of the label dimension, each computes its labels for all of those rows, and the embeddings'
    gradients come back. With ``rows="shared"`` all of these ranks run the same encoder on the same rows ("own rows" below):
    only gradients, losses and candidates are sent. Results equal those of one process with the whole head and all rows.
    All ranks must make the same calls.

    A step waits for no GPU, but for the first one, in which the ranks compare what they hold: sizes of batches travel from
    host to host, by the group's own CPU backend ("cpu:gloo,cuda:nccl") or by a gloo group that is made for it.

    Only ``shard.weight`` and ``shard.bias`` are parameters, so any optimizer's state is cut like them. With a data
    dimension, gradients of the shard are summed over it, which no fused optimizer can take part in.

    Wrap the encoder in DDP or FSDP, never this module: they take the ranks' labels for copies of one tensor, and the
    head says so when they try. A model that holds this head is
    wrapped after ``model._ddp_params_and_buffers_to_ignore = [f"head.{name}" for name in head.state_dict()]``, or by
    ``fully_shard(model, ignored_params=set(head.parameters()))``.

    Args:
        in_features, out_features, fan_in, group_size, bias, device, dtype, seed, prior: of the whole head, as in
            ``FixedFanInLinear``; the same seed makes the same head on any number of ranks.
        mesh: a ``DeviceMesh`` of one dimension (labels) or two (data and labels), or a process group whose ranks share
            the labels; None: all ranks share them.
        label_dim: name of the mesh dimension that labels are spread over, or its number.
        sizes: labels on each rank of that dimension; None spreads groups of labels evenly.
        rows: "own" or "shared", see above.
        average_gradients: whether the encoder's parameter gradients are averaged over the ranks of the mesh, as DDP and
            FSDP do. The gradient that reaches the encoder is then multiplied by the number of ranks with other rows. False
            for an encoder whose gradients are summed.

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
        >>> head.num_bytes() == whole.num_bytes()
        True
        >>> again = LabelShardedLinear.from_layer(whole)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int,
        bias: bool = True,
        *,
        group_size: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        mesh: DeviceMesh | dist.ProcessGroup | None = None,
        label_dim: str | int = "labels",
        sizes: Sequence[int] | None = None,
        rows: Literal["own", "shared"] = "own",
        average_gradients: bool = True,
        prior: Any = None,
    ) -> None:
        super().__init__()
        if rows not in SHARINGS:
            raise ValueError(f"rows must be 'own' or 'shared', got {rows!r}")
        whole = FixedFanInLinear(
            in_features, out_features, fan_in, bias, group_size=group_size, device="meta", dtype=dtype, prior=prior
        )
        place = torch.empty(0, device=device).device
        ranks, replicas = (Ranks(group, place) for group in process_groups(mesh, label_dim, place))
        settings = [in_features, out_features, fan_in, group_size, bias, str(dtype), sizes and list(sizes), place.type]
        for dimension in (ranks, replicas):
            _check_agreement(dimension, [*settings, rows])
        self._spread(whole, ranks, replicas, sizes, rows, average_gradients)
        self.shard.reset_parameters(self._agreed_seed(seed), first_label=self.labels.start)

    @classmethod
    def _of_meta_layer(cls, layer: FixedFanInLinear, ranks: Ranks, seed: int) -> LabelShardedLinear:
        """Of a layer on the meta device, of whichever class, on ranks that have the same rows.

        ``layer`` becomes this rank's shard, with the parameters that the whole layer has by this seed.
        """
        head = cls.__new__(cls)
        nn.Module.__init__(head)
        head._spread(layer, ranks, Ranks(None, ranks.device), None, "shared", True)
        head.shard.reset_parameters(seed, first_label=head.labels.start)
        return head

    def _spread(
        self,
        layer: FixedFanInLinear,
        ranks: Ranks,
        replicas: Ranks,
        sizes: Sequence[int] | None,
        rows: str,
        average_gradients: bool,
    ) -> None:
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.fan_in, self.group_size = layer.fan_in, layer.group_size
        self.ranks, self.replicas = ranks, replicas
        self.blocks = label_blocks(self.out_features, ranks.size, group_size=self.group_size, sizes=sizes)
        self.labels = self.blocks[ranks.rank]
        sharing = SHARINGS[rows]
        copies = replicas.size * (ranks.size if sharing is OwnRows else 1)  # of the encoder, each with other rows
        self._rows: OwnRows | SharedRows = sharing(ranks, float(copies) if average_gradients else 1.0)
        _cut_(layer, self.labels, ranks.device)
        self.shard = layer
        for parameter in layer.parameters() if replicas.size > 1 else ():
            parameter.register_hook(lambda gradient: replicas.sum_(gradient.clone(), "sum of the head's gradient"))

    def _agreed_seed(self, seed: int | None) -> int:
        seed = draw_seed() if seed is None else seed
        for dimension in (self.replicas, self.ranks):
            seed = dimension.gather_integers([seed], "choice of the seed")[0][0]
        return seed

    @classmethod
    def from_layer(cls, layer: FixedFanInLinear, **options: Any) -> LabelShardedLinear:
        """This rank's part of a whole head that every rank holds. ``options``: mesh, label_dim, sizes, rows, ..."""
        head = cls(
            *(layer.in_features, layer.out_features, layer.fan_in, layer.bias is not None),
            group_size=layer.group_size,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            seed=0,
            **options,
        )
        with torch.no_grad():
            for name, tensor in head.shard.state_dict().items():
                start = head.labels.start // (head.group_size if name == "indices" else 1)
                tensor.copy_(layer.state_dict()[name][start : start + len(tensor)])
        return head

    @torch.no_grad()
    def to_layer(self) -> FixedFanInLinear:
        """The whole head, on every rank."""
        layer = FixedFanInLinear(
            *(self.in_features, self.out_features, self.fan_in, self.shard.bias is not None),
            group_size=self.group_size,
            device="meta",
            dtype=self.shard.weight.dtype,
        ).to_empty(device=self.shard.weight.device)
        whole = {}
        for name, tensor in self.shard.state_dict().items():
            sizes = [num_index_rows(len(block), self.group_size if name == "indices" else 1) for block in self.blocks]
            sent = tensor.int() if tensor.dtype == torch.uint16 else tensor
            whole[name] = self.ranks.gather_rows(sent, sizes, f"all-gather of {name}").to(tensor.dtype)
        layer.load_state_dict(whole)
        return layer

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes this rank's tensors under the whole layer's names, too, as they stand in checkpoints."""
        for name in self.shard.state_dict():
            if f"{prefix}{name}" in state_dict:
                state_dict[f"{prefix}shard.{name}"] = state_dict.pop(f"{prefix}{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def exchange_targets(self, targets: Targets) -> ExchangedTargets:
        """Starts sending this rank's targets ``[own rows, out_features]`` (CSR), to be passed to ``loss`` later.

        Called before the encoder runs, it hides their way behind the encoder's work.
        """
        return self._rows.exchange(targets, self.labels, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """``x [own rows, in_features]`` to the logits of this rank's labels for the rows of all ranks.

        With ``rows="shared"`` to the logits of all labels, without gradient.
        """
        self._rows.check(x, self.shard)
        return self._rows.logits(self.shard, x, [len(block) for block in self.blocks])

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
            targets: their targets ``[own rows, out_features]`` in any form of ``FixedFanInLinear.loss``, or what
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
        self._rows.check(x, self.shard)
        self._check_fused_optimizer(loss)
        if loss == "cross_entropy":
            if isinstance(targets, ExchangedTargets):
                raise TypeError("targets must be int64 classes for loss='cross_entropy', got exchanged CSR targets")
            return self._cross_entropy(x, targets, reduction, **options)
        self._check_weights(options, x.shape[:-1].numel())
        exchanged = targets if isinstance(targets, ExchangedTargets) else self.exchange_targets(targets)
        counts = self._rows.meet(x, self.shard, exchanged.rows)
        options = self._local_weights(options, counts)
        own = self.shard.loss(self._rows.spread(x, counts), exchanged.wait(), loss=loss, reduction="sum", **options)
        if reduction != "sum":
            own = own / divisor(reduction, self._count_rows(counts), self.out_features)
        return SumOverRanks.apply(own, self.ranks, self.replicas)

    @torch.no_grad()
    def topk(self, x: Tensor, k: int, *, exclude: Targets | ExchangedTargets | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` best labels of this rank's rows: (scores ``[own rows, k]``, labels ``[own rows, k]`` int64).

        Each rank finds ``k`` candidates among its labels for the rows of all ranks and sends them to the rank that the
        row belongs to. Ties go to the smaller label. ``exclude``: labels to leave out, row by row, in any form of targets.
        """
        if not 1 <= k <= self.out_features:
            raise ValueError(f"k must be between 1 and out_features={self.out_features}, got {k}")
        self._rows.check(x, self.shard)
        counts, lead = self._rows.meet(x, self.shard), x.shape[:-1]
        spread = self._rows.spread(x if x.ndim == 2 else x.reshape(-1, self.in_features), counts)
        if exclude is None:
            scores, labels = self.shard.topk(spread, min(k, len(self.labels)))
        else:
            left_out = exclude if isinstance(exclude, ExchangedTargets) else self.exchange_targets(exclude)
            scores, labels = topk_without(self.shard, spread, k, left_out.wait())
        scores, labels = merge_candidates(
            scores, labels, k, self.labels.start, lambda found, what: self._rows.candidates(found, counts, what)
        )
        return scores.view(*lead, k), labels.view(*lead, k)

    def rewire_(self, *, seed: int | None = None, **options: Any) -> Tensor:
        """Rewires this rank's labels as ``FixedFanInLinear.rewire_`` would the whole head with the same ``seed``.

        With ``scope="global"`` the ranks agree on the weakest connections of all labels, with ``seed=None`` on a seed.
        Returns the number of slots rewired on all ranks, 0-dim int64.
        """
        seed = self._agreed_seed(None) if seed is None else seed
        return rewire_shard_(self.shard, self.blocks, self.ranks, seed=seed, **options)

    def num_bytes(self) -> int:
        """Bytes of this rank's weights, indices and bias."""
        return self.shard.num_bytes()

    def _check_weights(self, options: dict[str, Any], rows: int) -> None:
        """Before anything is sent: weights have the sizes of the whole head's labels and of this rank's rows."""
        for name, size in (("pos_weight", self.out_features), ("sample_weight", rows)):
            if options.get(name) is not None:
                whole_weight(name, options[name], size)

    def _local_weights(self, options: dict[str, Any], counts: list[int]) -> dict[str, Any]:
        """The weights of this rank's labels, and those of all ranks' rows."""
        local = dict(options)
        if options.get("pos_weight") is not None:
            local["pos_weight"] = options["pos_weight"][self.labels.start : self.labels.stop]
        if options.get("sample_weight") is not None:
            weights = options["sample_weight"].float()
            local["sample_weight"] = self._rows.of_all(weights, counts, "exchange of the rows' weights")
        return local

    def _cross_entropy(
        self,
        x: Tensor,
        targets: Targets,
        reduction: str,
        label_smoothing: float = 0.0,
        ignore_index: int = IGNORE_INDEX,
        class_weight: Tensor | None = None,
    ) -> Tensor:
        softmax = Softmax(label_smoothing, class_weight, ignore_index, self.labels.start, self.out_features)
        classes = check_classes(targets, x.shape[:-1], softmax, x.device)
        counts = self._rows.meet(x, self.shard)
        classes = self._rows.of_all(classes, counts, "exchange of the targets")
        layer = (self.shard.weight, self.shard.checked_indices(), self.shard.bias)
        own = summed_cross_entropy(
            self._rows.spread(x, counts),
            *layer,
            classes,
            softmax,
            group_size=self.group_size,
            combine=self._combine,
        )
        if reduction == "mean":
            own = own / self.replicas.sum_(row_weights(classes, softmax, own.dtype).sum(), "count of the batch's rows")
        return SumOverRanks.apply(own, self.replicas)

    def _combine(self, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Softmax statistics of all labels from those of every rank's."""
        ones = [1] * self.ranks.size
        log_sum, picked, total = self.ranks.gather_rows(
            torch.stack(parts)[None], ones, "exchange of the softmax statistics"
        ).unbind(1)
        return log_sum.logsumexp(0), picked.sum(0), total.sum(0)

    def _count_rows(self, counts: list[int]) -> int:
        counted = self.replicas.gather_integers([sum(counts)], "count of the batch's rows")
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

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, fan_in={self.fan_in}, "
            f"labels {self.labels.start}-{self.labels.stop - 1} on rank {self.ranks.rank} of {self.ranks.size}, "
            f"replicas={self.replicas.size}"
        )


def _cut_(layer: FixedFanInLinear, labels: range, device: torch.device) -> None:
    """Makes of a layer on the meta device the one of these labels on ``device``, its parameters still to be drawn."""
    if not layer.weight.is_meta:
        raise ValueError(f"a layer to be spread must be on the meta device, is on {layer.weight.device}")
    R = num_index_rows(len(labels), layer.group_size)
    layer.weight = nn.Parameter(torch.empty_like(layer.weight[: len(labels)], device=device))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.empty_like(layer.bias[: len(labels)], device=device))
    layer.indices = torch.empty_like(layer.indices[:R], device=device)
    layer.out_features = len(labels)
    layer._initial_bias = bias_of_labels(layer._initial_bias, labels.start, labels.stop)
    layer._holds_part = True


def _check_agreement(ranks: Ranks, settings: list[object]) -> None:
    said = ranks.gather_documents(settings, "comparison of the head's arguments")
    differing = {rank: other for rank, other in enumerate(said) if other != said[0]}
    if differing:
        raise ValueError(
            "the ranks disagree on (in_features, out_features, fan_in, group_size, bias, dtype, sizes, device, rows): "
            f"rank 0 has {said[0]}, others {differing}"
        )
