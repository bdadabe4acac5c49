"""Argument checks shared by the ops. Nothing here reads device memory except ``validate_indices``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.kernels.distinct import check_distinct
from sparse_xmc.ops._backend import interpreting

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
QUANTIZED_DTYPE = torch.float8_e4m3fn  # of 8-bit weights, which come with a scale per label
INDEX_DTYPES = (torch.uint16, torch.int32)
MAX_UINT16_FEATURES = 65_536
Targets = Any  # sparse CSR matrix, its crow_indices and col_indices, or another form of ``_target_forms``


class LayerShape(NamedTuple):
    """Sizes of a fixed fan-in layer: labels, connections per label, features, rows of indices."""

    L: int
    K: int
    D: int
    R: int


def index_dtype(in_features: int) -> torch.dtype:
    """The narrowest dtype that indexes ``in_features`` features: uint16 up to 65,536 of them, else int32."""
    return torch.uint16 if in_features <= MAX_UINT16_FEATURES else torch.int32


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that kernels accumulate in: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def logits_stride(device: torch.device, out_features: int) -> int:
    """How many elements rows of logits lie apart: on a GPU a multiple of 16, so that kernels store 16 bytes at once."""
    return out_features if device.type == "cpu" and not interpreting() else -(-out_features // 16) * 16


def num_index_rows(out_features: int, group_size: int) -> int:
    return -(-out_features // group_size)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if type(value).__name__ == "DTensor":
        raise TypeError(
            f"{name} is a DTensor, which the kernels do not take: pass {name}.to_local(); a layer under fully_shard is used "
            "inside the forward of a sharded module (or register_fsdp_forward_method(layer, 'loss')), and one whose labels "
            "are spread over ranks and rewired is distributed.LabelShardedLinear"
        )


def check_float(name: str, value: Tensor) -> None:
    check_tensor(name, value)
    if value.is_nested:
        raise TypeError(f"{name} is a nested tensor, which has no shape: pass its rows, {name}.values()")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {value.dtype}")


def check_constant(name: str, value: Tensor) -> None:
    """Raises for a tensor that asks for a gradient which nobody computes."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require a gradient: none is computed for it")


def check_positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def as_int(value: Any) -> Any:
    """An integer of NumPy's as one of Python's; all else as it is."""
    return int(value) if isinstance(value, np.integer) else value


def check_layer_sizes(
    in_features: int, out_features: int, fan_in: int, group_size: int = 1
) -> tuple[int, int, int, int]:
    """The sizes of a fixed fan-in layer, which may be integers of NumPy's, as Python's. Raises ``TypeError`` or ``ValueError``
    unless they make one."""
    names = ("in_features", "out_features", "fan_in", "group_size")
    sizes = as_int(in_features), as_int(out_features), as_int(fan_in), as_int(group_size)
    for name, value in zip(names, sizes, strict=True):
        check_positive_int(name, value)
    if sizes[2] > sizes[0]:
        raise ValueError(f"fan_in must not exceed in_features, got fan_in={fan_in}, in_features={in_features}")
    return sizes


def check_input(x: Tensor, in_features: int) -> None:
    """Checks the input of a layer that knows its number of features, which the ops take from ``x``."""
    check_float("x", x)
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x must be [..., in_features={in_features}], got shape {list(x.shape)}")


def check_seed(seed: object) -> int:
    """The seed as the signed 64-bit integer that kernels take; integers beyond 64 bits lose their high bits."""
    if type(seed) is int and -(1 << 63) <= seed < 1 << 63:
        return seed
    seed = as_int(seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def autocast(x: Tensor) -> Tensor:
    """``x`` in the dtype of the active autocast region, if there is one; float64 stays. And as memory that holds its
    numbers: the imaginary part of a conjugate is a view whose negation torch puts off."""
    if not torch.compiler.is_compiling():  # in a graph the dispatcher sees to negations
        if x.is_neg():
            x = x.resolve_neg()
        if not torch._C._is_any_autocast_enabled():
            return x
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def check_weight_scale(weight: Tensor, weight_scale: Tensor) -> None:
    """Checks 8-bit weights ``[L, K]`` and their scales ``[L]`` against each other, but not their values."""
    check_tensor("weight", weight)
    check_tensor("weight_scale", weight_scale)
    if weight.dtype != QUANTIZED_DTYPE or weight_scale.dtype != torch.float32:
        raise TypeError(
            f"weight must be {QUANTIZED_DTYPE} and weight_scale torch.float32, "
            f"got {weight.dtype} and {weight_scale.dtype}"
        )
    if weight.ndim != 2 or tuple(weight_scale.shape) != (weight.shape[0],):
        raise ValueError(
            f"weight must be [out_features, fan_in] and weight_scale [out_features], "
            f"got {list(weight.shape)} and {list(weight_scale.shape)}"
        )
    if weight_scale.device != weight.device:
        raise ValueError(f"weight_scale must be on the weight's device {weight.device}, got {weight_scale.device}")


def check_topology(
    weight: Tensor, indices: Tensor, in_features: int, group_size: int, weight_scale: Tensor | None = None
) -> LayerShape:
    """Checks shapes and dtypes of ``weight [L, K]`` and ``indices [ceil(L / G), K]`` against each other.

    Weights are 8-bit if and only if they come with a scale.
    """
    if weight_scale is None:
        check_float("weight", weight)
    else:
        check_weight_scale(weight, weight_scale)
    check_tensor("indices", indices)
    check_positive_int("group_size", group_size)
    if weight.ndim != 2:
        raise ValueError(f"weight must be [out_features, fan_in], got shape {list(weight.shape)}")
    L, K = weight.shape
    if L == 0 or K == 0:
        raise ValueError(f"weight must have at least one label and one connection, got shape {list(weight.shape)}")
    if indices.dtype not in INDEX_DTYPES:
        raise TypeError(
            f"indices must be {index_dtype(in_features)} for in_features={in_features}, got {indices.dtype}"
        )
    R = num_index_rows(L, group_size)
    if tuple(indices.shape) != (R, K):
        raise ValueError(
            f"indices must be [ceil(out_features / group_size), fan_in] = {[R, K]} for weight {list(weight.shape)} "
            f"and group_size={group_size}, got {list(indices.shape)}"
        )
    if indices.dtype == torch.uint16 and in_features > MAX_UINT16_FEATURES:
        raise TypeError(f"indices must be torch.int32 for in_features={in_features} > 65536, got torch.uint16")
    if in_features < K:
        raise ValueError(f"fan_in must not exceed in_features: weight {list(weight.shape)}, in_features={in_features}")
    if indices.device != weight.device:
        raise ValueError(f"indices must be on the weight's device {weight.device}, got {indices.device}")
    return LayerShape(L, K, in_features, R)


def check_layer(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
    weight_scale: Tensor | None = None,
) -> LayerShape:
    """Checks the arguments that every op of the layer shares."""
    if torch.compiler.is_compiling():
        return _check_layer(x, weight, indices, bias, group_size, weight_scale)
    try:
        key = (
            type(x), x.shape, x.dtype, x.device, x.layout, type(weight), weight.shape, weight.dtype, weight.device,
            type(indices), indices.shape, indices.dtype, indices.device, group_size, type(group_size),
            bias if bias is None else (type(bias), bias.shape, bias.dtype, bias.device),
        )  # fmt: skip
        found = None if weight_scale is not None else _checked.get(key)
    except (AttributeError, TypeError):
        return _check_layer(x, weight, indices, bias, group_size, weight_scale)
    if found is None:
        found = _check_layer(x, weight, indices, bias, group_size, weight_scale)
        if weight_scale is None:
            if len(_checked) >= _MOST_CHECKED:
                _checked.clear()
            _checked[key] = found
    return found


_checked: dict[
    tuple[Any, ...], LayerShape
] = {}  # what passed: checks look at nothing but types, shapes, dtypes and devices
_MOST_CHECKED = 1024


def _check_layer(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
    weight_scale: Tensor | None,
) -> LayerShape:
    check_float("x", x)
    if x.layout is not torch.strided:
        raise TypeError(f"x must be dense, got layout {x.layout}: SparseInputLinear takes sparse rows")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be [..., in_features] with at least one feature, got shape {list(x.shape)}")
    shape = check_topology(weight, indices, x.shape[-1], group_size, weight_scale)
    if x.device != weight.device:
        raise ValueError(f"x must be on the weight's device {weight.device}, got {x.device}")
    if (x.dtype == torch.float64) != (weight.dtype == torch.float64):
        raise TypeError(f"x and weight must both be float64 or neither: got x {x.dtype}, weight {weight.dtype}")
    if bias is not None:
        check_float("bias", bias)
        if tuple(bias.shape) != (shape.L,):
            raise ValueError(f"bias must be [{shape.L}] for weight {list(weight.shape)}, got {list(bias.shape)}")
        if bias.device != weight.device:
            raise ValueError(f"bias must be on the weight's device {weight.device}, got {bias.device}")
        if (bias.dtype == torch.float64) != (weight.dtype == torch.float64):
            raise TypeError(f"bias and weight must both be float64 or neither: got {bias.dtype}, {weight.dtype}")
    return shape


def csr_parts(targets: Targets, num_rows: int, out_features: int) -> tuple[Tensor, Tensor]:
    """Row offsets ``[B + 1]`` and labels ``[nnz]`` of a target matrix ``[B, L]``, checked without reading its entries."""
    if isinstance(targets, tuple):
        if len(targets) != 2:
            raise ValueError(f"targets must be a pair (crow_indices, col_indices), got a tuple of {len(targets)}")
        for name, part in zip(("targets[0]", "targets[1]"), targets, strict=True):
            check_tensor(name, part)
            if part.dtype not in (torch.int32, torch.int64) or part.ndim != 1:
                raise TypeError(f"{name} must be a 1-D int32 or int64 tensor, got {part.dtype} {list(part.shape)}")
        if len(targets[0]) != num_rows + 1:
            raise ValueError(
                f"targets[0] must hold {num_rows + 1} row offsets for {num_rows} rows, got {len(targets[0])}"
            )
        return targets
    if (
        type(targets) is not Tensor
        or targets.layout is not torch.sparse_csr
        or targets.shape != (num_rows, out_features)
    ):
        check_targets(targets, num_rows, out_features)
    return targets.crow_indices(), targets.col_indices()


def check_targets(targets: Tensor, num_rows: int, out_features: int) -> None:
    """Checks a sparse CSR target matrix ``[B, L]`` without reading its entries."""
    check_tensor("targets", targets)
    if targets.layout != torch.sparse_csr:
        raise TypeError(f"targets must be a torch.sparse_csr tensor, got layout {targets.layout}")
    if tuple(targets.shape) != (num_rows, out_features):
        raise ValueError(f"targets must be [{num_rows}, {out_features}], got {list(targets.shape)}")


def validate_indices(indices: Tensor, in_features: int) -> None:
    """Raises ``ValueError`` if an index is out of range or stands twice in its row. Waits for the device."""
    if indices.device.type == "cpu":
        check_distinct("indices", indices.detach().numpy(), in_features)  # sorts 20 times as fast as torch
        return
    for start in range(0, indices.shape[0], 65_536):
        rows = indices[start : start + 65_536].long().sort(dim=1).values
        bad = ((rows < 0) | (rows >= in_features)).any(dim=1)
        if bad.any():
            row = int(bad.nonzero()[0])
            value = next(v for v in rows[row].tolist() if not 0 <= v < in_features)
            raise ValueError(f"indices[{start + row}] holds {value}, outside [0, {in_features})")
        twice = rows[:, 1:] == rows[:, :-1]
        if twice.any():
            row, slot = twice.nonzero()[0].tolist()
            raise ValueError(
                f"indices[{start + row}] holds {int(rows[row, slot])} twice: the indices of a row are distinct"
            )
