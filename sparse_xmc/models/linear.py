"""The fixed fan-in layer as a module: parameters, initialisation, conversion; its arithmetic is ``sparse_xmc.ops``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc import ops
from sparse_xmc.models import dense_form, replicas
from sparse_xmc.models.checked_indices import CheckedIndices
from sparse_xmc.models.label_changes import ChangeableLabels, check_own_weight, draw_seed, last_columns
from sparse_xmc.models.onnx_form import gather_form
from sparse_xmc.models.prior import InitialBias, fill_bias_, log_odds, set_prior_
from sparse_xmc.models.rewire import rewire_layer_
from sparse_xmc.models.shards import local_rows
from sparse_xmc.ops._arguments import (
    QUANTIZED_DTYPE,
    as_int,
    check_input,
    check_layer_sizes,
    index_dtype,
    num_index_rows,
    validate_indices,
)

_SOFTMAXES = ("cross_entropy", "sampled_softmax")  # losses without a fused update
_DRAWN_LABELS = 4096  # labels whose initial weights come from one random stream
_SEED_STEP = 0x9E3779B97F4A7C15  # keeps the streams of neighbouring seeds apart


_FUSED_REPLICAS = (
    "a fused optimizer updates each replica by its own rows, so that under DistributedDataParallel or FSDP they drift apart: "
    "use one of torch.optim, or distributed.LabelShardedLinear"
)


def validate_loaded_indices(state_dict: dict[str, Any], prefix: str, indices: Tensor, in_features: int) -> None:
    """Raises if the state dict would replace ``indices`` by some that are no integers, out of range or repeated."""
    loaded = state_dict.get(prefix + "indices")
    if loaded is not None and loaded.shape == indices.shape and not loaded.is_meta:
        if loaded.is_floating_point() or loaded.is_complex() or loaded.dtype == torch.bool:
            raise TypeError(f"{prefix}indices must hold integers, got {loaded.dtype}")
        try:
            validate_indices(loaded, in_features)
        except ValueError as error:
            raise ValueError(f"cannot load {prefix}indices: {error}") from None


def keep_index_dtype(state_dict: dict[str, Any], prefix: str, indices: Tensor) -> None:
    """Gives indices to be loaded the layer's dtype; with ``assign=True`` torch would keep the file's."""
    loaded = state_dict.get(prefix + "indices")
    if loaded is not None:
        state_dict[prefix + "indices"] = loaded.to(indices.dtype)


class FixedFanInLinear(ChangeableLabels, CheckedIndices):
    """Linear layer whose every output has exactly ``fan_in`` incoming connections.

    Drop-in for a wide ``nn.Linear``: ``weight [out_features, fan_in]``, ``bias [out_features]`` and
    ``indices [ceil(out_features / group_size), fan_in]`` (uint16 where ``in_features <= 65,536``) take
    ``out_features * fan_in`` instead of ``out_features * in_features`` numbers.

    Args:
        in_features: ``D``, size of the input.
        out_features: ``L``, number of labels.
        fan_in: ``K``, connections per label, at most ``in_features``.
        bias: whether the layer adds a bias.
        group_size: ``G``, number of neighbouring labels that share their connections; 1 gives every label its own.
        device, dtype: of the parameters, as in ``nn.Linear``.
        seed: of the connections and initial weights; None draws it from torch's global generator.
        prior: what the bias starts from, log-odds: each label's frequency ``[L]`` (its share of the rows), the expected
            positives per row (a number), or "none" / None for a bias of zero. See ``models.prior``.

    A state dict holds these three tensors, and so neither ``in_features`` nor ``group_size``: load it into a layer made
    with the same ones. Its indices are checked against the layer's.

    Raises:
        ValueError: a size below 1, or ``fan_in > in_features``; in ``forward``, ``loss``, ``step`` and ``topk`` an ``x`` of
            another width.

    Source: Schultheis and Babbar, "Towards Memory-Efficient Training for Extremely Large Output Spaces", ECML 2023.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> head = FixedFanInLinear(64, 10_000, fan_in=16, prior=2, seed=0)  # two labels a row are expected
        >>> x = torch.randn(4, 64)
        >>> head(x).shape
        torch.Size([4, 10000])
        >>> loss = head.loss(x, [[3, 17], [], [5], [9_999]])  # the labels of each row; no logits in memory
        >>> loss.backward()
        >>> head.weight.grad.shape
        torch.Size([10000, 16])
        >>> scores, labels = head.topk(x, k=3)
        >>> labels.shape
        torch.Size([4, 3])
        >>> head.num_bytes()  # of each label 16 weights, 16 indices and a bias; nn.Linear has 2,600,000
        1000000
        >>> new = torch.eye(3)[[0, 0, 1, 2]].to_sparse_csr()  # which of three new labels the four rows have
        >>> head.add_labels_(3, x, new)
        >>> head.remove_labels_([0, 9_999])
        >>> head(x).shape
        torch.Size([4, 10001])
    """

    weight: Tensor
    bias: Tensor | None
    _initial_bias: InitialBias = None

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
        prior: Any = None,
    ) -> None:
        super().__init__()
        sizes = check_layer_sizes(in_features, out_features, fan_in, group_size)
        in_features, out_features, fan_in, group_size = sizes
        self.in_features, self.out_features = in_features, out_features
        self.fan_in, self.group_size = fan_in, group_size
        self._optimizer: ops.UpdateRule | None = None
        R = num_index_rows(out_features, group_size)
        self.weight = nn.Parameter(torch.empty(out_features, fan_in, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_buffer("indices", torch.empty(R, fan_in, device=device, dtype=index_dtype(in_features)))
        set_prior_(self, log_odds(prior, out_features))
        self._mark_unwritten("weight", "bias", "indices")
        if not self.weight.is_meta:
            self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int | None = None, *, first_label: int = 0) -> None:
        """Draws new connections and weights, uniform in ``+-1 / sqrt(fan_in)``; the bias becomes the
        prior's, or zero.

        ``first_label``, a multiple of ``group_size``, makes the layer the labels from there on of a larger one.

        Examples:
            >>> head = FixedFanInLinear(64, 1000, fan_in=16, seed=0)
            >>> before = head.weight.clone()
            >>> head.reset_parameters(seed=1)
            >>> bool((head.weight == before).all())
            False
        """
        self._draw(["weight", "bias", "indices"], seed, first_label)

    @torch.no_grad()
    def _draw(self, names: list[str], seed: int | None = None, first_label: int = 0) -> None:
        seed = draw_seed() if seed is None else as_int(seed)
        if groups := replicas.active_groups(self):
            seed = replicas.shared_seed(seed, groups, self.indices.device)
        if "indices" in names:
            self._draw_indices(seed, first_label // self.group_size)
        if "weight" in names:
            self._draw_weights(seed, first_label)
        if "bias" in names:
            fill_bias_(self, self._initial_bias)
        self._mark_written(*names)

    def _draw_indices(self, seed: int, first_row: int) -> None:
        for part in self.indices.split(_DRAWN_LABELS):
            part.copy_(
                ops.init_indices(
                    len(part), self.in_features, self.fan_in, seed=seed, device=part.device, first_row=first_row
                )
            )
            first_row += len(part)

    def _draw_weights(self, seed: int, first_label: int) -> None:
        """A stream of its own for every ``_DRAWN_LABELS`` labels, so that a shard draws what the whole layer would."""
        bound = 1 / math.sqrt(self.fan_in)
        weight, first_row = local_rows(self.weight)
        first_label += first_row
        stop = first_label + len(weight)
        drawn = weight.new_empty(_DRAWN_LABELS, self.fan_in)
        generator = torch.Generator(weight.device)
        for block in range(first_label // _DRAWN_LABELS, -(-stop // _DRAWN_LABELS)):
            drawn.uniform_(-bound, bound, generator=generator.manual_seed((seed * _SEED_STEP + block) % (1 << 63)))
            start = block * _DRAWN_LABELS
            first, last = max(start, first_label), min(start + _DRAWN_LABELS, stop)
            weight[first - first_label : last - first_label] = drawn[first - start : last - start]

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in_features]`` to logits ``[..., out_features]``."""
        check_input(x, self.in_features)
        layer = (self.weight, self.checked_indices(), self.bias)
        if torch.onnx.is_in_onnx_export():
            return gather_form(x, *layer, self.group_size)
        return ops.fixed_fan_in_linear(x, *layer, group_size=self.group_size)

    def loss(
        self,
        x: Tensor,
        targets: ops.Targets,
        *,
        loss: ops.Loss = "bce",
        reduction: ops.Reduction = "mean",
        **options: Any,
    ) -> Tensor:
        """Loss of ``x [..., in_features]`` against ``targets`` (in any form of ``ops._target_forms``; class ids for the
        softmaxes); no ``[B, L]`` logits are stored.

        "sampled_softmax" estimates "cross_entropy" from a sample of the labels: ``ops.fixed_fan_in_sampled_softmax``.
        With a fused optimizer ``backward`` updates the layer in place; see ``ops.fixed_fan_in_loss`` (also for
        ``options``) and ``ops.updating_loss_``.

        Examples:
            >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
            >>> x = torch.randn(2, 16)
            >>> loss = head.loss(x, [[4, 7], [99]], pos_weight=torch.full((100,), 2.0))
            >>> loss = head.loss(x, torch.tensor([4, 99]), loss="cross_entropy")
            >>> loss.ndim
            0
        """
        check_input(x, self.in_features)
        arguments = (x, self.weight, self.checked_indices(), self.bias, targets)
        if loss in _SOFTMAXES and self._optimizer is not None and torch.is_grad_enabled():
            raise ValueError(f"no fused optimizer updates a layer under loss={loss!r}: use one of torch.optim")
        if loss == "sampled_softmax":
            return ops.fixed_fan_in_sampled_softmax(
                *arguments, reduction=reduction, group_size=self.group_size, **options
            )
        if self._optimizer is None or not torch.is_grad_enabled():
            return ops.fixed_fan_in_loss(
                *arguments, loss=loss, reduction=reduction, group_size=self.group_size, **options
            )
        return ops.updating_loss_(
            *arguments, self._optimizer, loss=loss, reduction=reduction, group_size=self.group_size, **options
        )

    def fuse_optimizer(self, optimizer: ops.UpdateRule | None) -> None:
        """Gives the layer an optimizer (``sparse_xmc.optim.fused``) that updates it inside the loss kernel.

        Afterwards ``loss(...).backward()`` updates weight and bias, which get no ``.grad``; or ``step`` does. Call it
        when the layer is on its device. None takes the optimizer away.

        Examples:
            >>> from sparse_xmc.optim import FusedAdagrad
            >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
            >>> optimizer = FusedAdagrad(lr=0.05)
            >>> head.fuse_optimizer(optimizer)
            >>> head.loss(torch.randn(2, 16), [[4, 7], [99]]).backward()  # updates the head
            >>> optimizer.step()  # ends the step
            >>> head.weight.grad is None
            True
        """
        if optimizer is not None:
            check_own_weight(self)
            if replicas.active_groups(self):
                raise RuntimeError(_FUSED_REPLICAS)
            optimizer.attach(self.weight, self.bias)
        self._optimizer = optimizer

    def _check_replicable(self, name: str) -> None:
        super()._check_replicable(name)
        if self._optimizer is not None:
            raise RuntimeError(f"{name}: {_FUSED_REPLICAS}")

    def step(
        self,
        x: Tensor,
        targets: ops.Targets,
        *,
        loss: ops.Loss = "bce",
        reduction: ops.Reduction = "mean",
        need_input_grad: bool = True,
        need_loss: bool = True,
        **options: Any,
    ) -> tuple[Any, Tensor | None]:
        """Loss, gradient of ``x`` and update by the fused optimizer in one sweep: the fastest way to train the layer.

        Continue with ``x.backward(dx)`` through what made ``x``. See ``ops.fixed_fan_in_step_``, also for ``options``.

        Raises:
            RuntimeError: the layer has no fused optimizer, or a parameter is frozen.

        Examples:
            >>> from sparse_xmc.optim import FusedSGD
            >>> encoder = torch.nn.Linear(8, 16)
            >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
            >>> head.fuse_optimizer(FusedSGD(lr=0.1))
            >>> x = encoder(torch.randn(2, 8))
            >>> loss, dx = head.step(x, [[4, 7], [99]])
            >>> x.backward(dx)  # the encoder's gradients
            >>> encoder.weight.grad.shape
            torch.Size([16, 8])
        """
        if self._optimizer is None:
            raise RuntimeError("step needs a fused optimizer: call fuse_optimizer(...) first")
        for name, parameter in (("weight", self.weight), ("bias", self.bias)):
            if parameter is not None and not parameter.requires_grad:
                raise RuntimeError(f"{name} is frozen (requires_grad is False), but step updates the whole layer")
        check_input(x, self.in_features)
        return ops.fixed_fan_in_step_(
            *(x, self.weight, self.checked_indices(), self.bias, targets, self._optimizer),
            loss=loss,
            reduction=reduction,
            group_size=self.group_size,
            need_input_grad=need_input_grad,
            need_loss=need_loss,
            **options,
        )

    def topk(self, x: Tensor, k: int, *, exclude: ops.Targets | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` best labels of ``x [..., in_features]``: (scores, labels) ``[..., k]``; see the op.

        Examples:
            >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
            >>> x = torch.randn(2, 16)
            >>> scores, labels = head.topk(x, k=5)
            >>> torch.allclose(scores, head(x).topk(5).values, atol=1e-5)
            True
        """
        check_input(x, self.in_features)
        return ops.fixed_fan_in_topk(
            x, self.weight, self.checked_indices(), self.bias, k=k, group_size=self.group_size, exclude=exclude
        )

    def rewire_(
        self,
        *,
        fraction: float | None = None,
        threshold: float | None = None,
        scope: str = "row",
        regrow: str = "random",
        init: str = "zero",
        group_score: str = "mean",
        batch: ops.RegrowBatch | None = None,
        candidates: int | None = None,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Replaces the weakest connections in place; see ``ops.prune_regrow_`` for the options.

        Call it between ``optimizer.step()`` and the next forward. ``optimizer`` is what trains the weight (one or several
        of ``torch.optim`` or ``sparse_xmc.optim``): where a connection changed, its momenta and gradient become zero
        and its squared gradients their label's mean. A fused optimizer of the layer is found without being named.
        ``seed=None`` draws the seed from torch's global generator. Under ``DistributedDataParallel`` every rank calls it, and
        all of them take rank 0's seed and, where ``batch`` has a say, rank 0's result.

        Returns:
            Number of replaced slots of ``indices``, a 0-dim int64 tensor on the device.

        Raises:
            ValueError, TypeError: as ``ops.prune_regrow_``, or ``optimizer`` does not hold this layer's weight.

        Examples:
            >>> head = FixedFanInLinear(64, 1000, fan_in=16, seed=0)
            >>> optimizer = torch.optim.Adam(head.parameters())
            >>> int(head.rewire_(fraction=0.25, optimizer=optimizer, seed=1))  # 4 of 16 connections of each label
            4000
        """
        return rewire_layer_(
            self,
            fraction=fraction,
            threshold=threshold,
            scope=scope,
            regrow=regrow,
            init=init,
            group_score=group_score,
            batch=batch,
            candidates=candidates,
            optimizer=optimizer,
            seed=seed,
        )

    def _grow_connections_(self, num_labels: int, x: Any, targets: Tensor | None, seed: int) -> None:
        """Connections of new labels, but for those that fill up the last group."""
        indices = self.checked_indices()
        fresh = max(0, num_labels - -self.out_features % self.group_size)
        if not fresh:
            return
        if x is not None and targets is not None:
            rows = self._informed(x, last_columns(targets, fresh))
        else:
            shape = (num_index_rows(fresh, self.group_size), self.in_features, self.fan_in)
            rows = ops.init_indices(*shape, seed=seed, device=indices.device, first_row=len(indices))
        self.indices = torch.cat([indices, rows.to(indices.device, indices.dtype)])

    def _keep_connections_(self, kept: Tensor) -> None:
        """Of the labels that stay."""
        self.indices = self.checked_indices()[kept[:: self.group_size] // self.group_size]

    def _connections_changed(self) -> None:
        self._copied = None
        self._mark_written("indices")

    def _informed(self, x: Tensor, targets: Tensor) -> Tensor:
        return ops.informed_indices(x, targets, self.fan_in, group_size=self.group_size)

    def num_bytes(self) -> int:
        """Bytes of weights, indices and bias.

        Examples:
            >>> FixedFanInLinear(768, 1000, fan_in=32).num_bytes()  # torch.nn.Linear(768, 1000): 3,076,000
            196000
        """
        return sum(t.nbytes for t in (self.weight, self.indices, self.bias) if t is not None)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, fan_in={self.fan_in}, "
            f"group_size={self.group_size}, bias={self.bias is not None}, "
            f"sparsity={1 - self.fan_in / self.in_features:.2%}, bytes={self.num_bytes():,}"
        )

    def label_indices(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Connections of the labels ``start`` to ``stop`` as int64 ``[stop - start, fan_in]``.

        Examples:
            >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
            >>> head.label_indices(10, 12).shape
            torch.Size([2, 8])
        """
        stop = self.out_features if stop is None else stop
        labels = torch.arange(start, stop, device=self.indices.device)
        return self.checked_indices()[labels // self.group_size].long()

    @torch.no_grad()
    def to_dense(self) -> nn.Linear:
        """The same function as an ``nn.Linear``, which takes ``in_features / fan_in`` times the weights' memory.

        Examples:
            >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
            >>> x = torch.randn(2, 16)
            >>> torch.allclose(head.to_dense()(x), head(x), atol=1e-5)
            True
        """
        return dense_form.to_dense(self)

    @torch.no_grad()
    def to_sparse_csr(self) -> Tensor:
        """The weights as a ``torch.sparse_csr`` matrix ``[out_features, in_features]``; columns ascend in each row.

        Examples:
            >>> matrix = FixedFanInLinear(16, 100, fan_in=8, seed=0).to_sparse_csr()
            >>> matrix.shape, matrix.values().shape
            (torch.Size([100, 16]), torch.Size([800]))
        """
        return dense_form.to_sparse_csr(self)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, linear: nn.Linear, fan_in: int, *, group_size: int = 1) -> FixedFanInLinear:
        """Keeps the ``fan_in`` connections of largest magnitude of every label; for groups, of largest mean magnitude.

        Raises:
            TypeError: ``linear`` is not an ``nn.Linear``.
            ValueError: ``fan_in`` exceeds its ``in_features``.

        Examples:
            >>> dense = torch.nn.Linear(16, 100)
            >>> head = FixedFanInLinear.from_dense(dense, fan_in=16)  # of 16 features: all connections
            >>> x = torch.randn(2, 16)
            >>> torch.allclose(head(x), dense(x), atol=1e-5)
            True
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        layer = cls(
            *(linear.in_features, linear.out_features, fan_in, linear.bias is not None),
            group_size=group_size,
            device="meta",
            dtype=linear.weight.dtype,
        ).to_empty(device=linear.weight.device)
        dense_form.keep_largest_(layer, linear)
        return layer

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        validate_loaded_indices(state_dict, prefix, self.indices, self.in_features)
        weight = state_dict.get(prefix + "weight")
        if weight is not None and weight.dtype == QUANTIZED_DTYPE:
            raise TypeError(
                f"{prefix}weight is {weight.dtype}: load it into a QuantizedFixedFanInLinear and dequantize that"
            )
        keep_index_dtype(state_dict, prefix, self.indices)
        super()._load_from_state_dict(state_dict, prefix, *args)
