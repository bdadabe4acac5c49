"""A trained fixed fan-in layer with 8-bit weights, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc import ops
from sparse_xmc.models.checked_indices import CheckedIndices
from sparse_xmc.models.linear import FixedFanInLinear, keep_index_dtype, validate_loaded_indices
from sparse_xmc.models.onnx_form import gather_form
from sparse_xmc.ops._arguments import QUANTIZED_DTYPE, check_input, check_layer_sizes, index_dtype, num_index_rows


class QuantizedFixedFanInLinear(CheckedIndices):
    """``FixedFanInLinear`` with float8 e4m3 weights and one scale per label: a quarter of float32's weights.

    ``from_layer`` makes one of a trained layer; the constructor makes one of zeros to load a state dict into. It serves
    ``forward`` and ``topk``; there is no gradient. Casts (``half()``, ``to(dtype)``) leave its numbers as they are. How the
    weights are rounded: ``ops.quantize_weight``.

    Args:
        in_features, out_features, fan_in, bias, group_size: as in ``FixedFanInLinear``.
        device: of the buffers.

    Raises:
        ValueError: a size below 1, or ``fan_in > in_features``.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear, QuantizedFixedFanInLinear
        >>> head = FixedFanInLinear(64, 1000, fan_in=16, seed=0)
        >>> small = QuantizedFixedFanInLinear.from_layer(head)
        >>> head.num_bytes(), small.num_bytes()
        (100000, 56000)
        >>> scores, labels = small.topk(torch.randn(2, 64), k=5)
        >>> small.dequantize(), small.to_dense()
        (FixedFanInLinear(...), Linear(...))
        >>> small.reset_parameters()  # zeros
        >>> small(torch.ones(1, 64)).shape
        torch.Size([1, 1000])
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int,
        bias: bool = True,
        *,
        group_size: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        sizes = check_layer_sizes(in_features, out_features, fan_in, group_size)
        in_features, out_features, fan_in, group_size = sizes
        self.in_features, self.out_features = in_features, out_features
        self.fan_in, self.group_size = fan_in, group_size
        R = num_index_rows(out_features, group_size)
        numbers: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.register_buffer("weight", torch.empty(out_features, fan_in, device=device, dtype=QUANTIZED_DTYPE))
        self.register_buffer("weight_scale", torch.empty(out_features, **numbers))
        self.register_buffer("indices", torch.empty(R, fan_in, device=device, dtype=index_dtype(in_features)))
        self.register_buffer("bias", torch.empty(out_features, **numbers) if bias else None)
        self._mark_unwritten("weight", "weight_scale", "indices", "bias")
        if not self.weight.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of zero, to load others over."""
        self._draw(["weight", "weight_scale", "indices", "bias"])

    @torch.no_grad()
    def _draw(self, names: list[str]) -> None:
        if "weight" in names:
            self.weight.view(torch.uint8).zero_()
        if "weight_scale" in names:
            self.weight_scale.fill_(1)
        if "indices" in names:
            self.indices.copy_(torch.arange(self.fan_in, device=self.indices.device).expand_as(self.indices))
        if "bias" in names and self.bias is not None:
            self.bias.zero_()
        self._mark_written(*names)

    @classmethod
    @torch.no_grad()
    def from_layer(cls, layer: FixedFanInLinear) -> QuantizedFixedFanInLinear:
        """Rounds the weights of a layer; connections and bias are copied.

        Raises:
            TypeError: ``layer`` is not a ``FixedFanInLinear``.
            ValueError: a weight is not finite.
        """
        if not isinstance(layer, FixedFanInLinear):
            raise TypeError(f"layer must be a FixedFanInLinear, got {type(layer).__name__}")
        quantized = cls(
            layer.in_features,
            layer.out_features,
            layer.fan_in,
            group_size=layer.group_size,
            bias=layer.bias is not None,
            device="meta",
        )
        quantized.weight, quantized.weight_scale = ops.quantize_weight(layer.weight)
        quantized.indices = layer.checked_indices().clone()
        if layer.bias is not None:
            bias = layer.bias.detach().clone()
            quantized.bias = bias.float() if bias.dtype == torch.float64 else bias
        quantized._mark_written("weight", "weight_scale", "indices", "bias")
        return quantized.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in_features]`` to logits ``[..., out_features]``; under autograd ``x`` must not require a gradient."""
        check_input(x, self.in_features)
        layer = (self.weight, self.checked_indices(), self.bias)
        if torch.onnx.is_in_onnx_export():
            return gather_form(x, *layer, self.group_size, self.weight_scale)
        return ops.fixed_fan_in_linear(x, *layer, group_size=self.group_size, weight_scale=self.weight_scale)

    def topk(self, x: Tensor, k: int, *, exclude: ops.Targets | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` best labels of ``x [..., in_features]``: (scores, labels) ``[..., k]``; see the op."""
        check_input(x, self.in_features)
        return ops.fixed_fan_in_topk(
            *(x, self.weight, self.checked_indices(), self.bias),
            k=k,
            group_size=self.group_size,
            exclude=exclude,
            weight_scale=self.weight_scale,
        )

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype = torch.float32) -> FixedFanInLinear:
        """The layer that this one computes, exactly in float32 and bfloat16; its exports and training are available then."""
        layer = FixedFanInLinear(
            *(self.in_features, self.out_features, self.fan_in),
            group_size=self.group_size,
            bias=self.bias is not None,
            device="meta",
        )
        layer.weight = nn.Parameter(ops.dequantize_weight(self.weight, self.weight_scale, dtype))
        layer.indices = self.checked_indices().clone()
        layer.bias = None if self.bias is None else nn.Parameter(self.bias.to(dtype, copy=True))
        layer._mark_written("weight", "indices", "bias")
        return layer.train(self.training)

    def to_dense(self) -> nn.Linear:
        """The same function as a float32 ``nn.Linear``."""
        return self.dequantize().to_dense()

    def num_bytes(self) -> int:
        """Bytes of weights, scales, indices and bias."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, fan_in={self.fan_in}, "
            f"group_size={self.group_size}, bias={self.bias is not None}, bytes={self.num_bytes():,}"
        )

    def _keeps_dtype(self, tensor: Tensor) -> bool:
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        validate_loaded_indices(state_dict, prefix, self.indices, self.in_features)
        for name, dtype in (("weight", QUANTIZED_DTYPE), ("weight_scale", torch.float32)):
            loaded = state_dict.get(prefix + name)
            if loaded is None or loaded.is_meta:
                continue
            if loaded.dtype != dtype:
                raise TypeError(
                    f"{prefix}{name} must be {dtype}, got {loaded.dtype}: make an 8-bit layer of another one with from_layer"
                )
            if not bool(loaded.float().isfinite().all()):
                raise ValueError(f"cannot load {prefix}{name}: it holds inf or NaN")
        keep_index_dtype(state_dict, prefix, self.indices)
        super()._load_from_state_dict(state_dict, prefix, *args)
