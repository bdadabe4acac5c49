"""Predicted memory of an output layer and its training step, component by component, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparse_xmc.ops._arguments import FLOAT_DTYPES, check_positive_int, compute_dtype, index_dtype, num_index_rows

# numbers of optimizer state: fused, per parameter, and per label for its weights and again for its bias; unfused, per
# parameter
_STATE = {"sgd": (0, 0, 0), "momentum": (1, 0, 1), "adagrad": (0, 1, 1), "adam": (0, 1, 2)}
_LABEL_RANGES = 16  # most partial sums of the input gradient on a CPU; a GPU has one


@dataclass(frozen=True)
class HeadMemory:
    """Bytes of one way to train a head, by component.

    Examples:
        >>> from sparse_xmc.models import HeadMemory
        >>> HeadMemory("fused", {"weight": 400, "indices": 200}).total
        600
    """

    name: str
    components: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.components.values())


@dataclass(frozen=True)
class MemoryReport:
    """Predictions for the same labels: training fused, through autograd, and dense; serving. ``str`` gives the table.

    Examples:
        >>> from sparse_xmc.models import MemoryReport, memory_report
        >>> report: MemoryReport = memory_report(670_091, 768, 32, batch_size=64)
        >>> f"{report.dense.total / report.fused.total:.0f} times less"
        '34 times less'
    """

    title: str
    fused: HeadMemory
    unfused: HeadMemory
    dense: HeadMemory
    serving: HeadMemory

    def __str__(self) -> str:
        heads = (self.fused, self.unfused, self.dense, self.serving)
        names = list(dict.fromkeys(name for head in heads for name in head.components))
        rows = [["", *(head.name for head in heads)]]
        rows += [[name, *(_gib(head.components.get(name, 0)) for head in heads)] for name in names]
        rows += [["total", *(_gib(head.total) for head in heads)]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([self.title, "", *lines])


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f} GiB" if size else "-"


def memory_report(
    out_features: int,
    in_features: int,
    fan_in: int,
    *,
    group_size: int = 1,
    batch_size: int = 128,
    dtype: torch.dtype = torch.float32,
    optimizer: str = "sgd",
    positives_per_row: int = 10,
    bias: bool = True,
) -> MemoryReport:
    """Predicts the peak memory of a head while it trains, input gradient included and the encoder left out.

    Three ways are compared. *fused*: ``FixedFanInLinear`` with a fused optimizer, ``head.step``. *unfused*: the same layer
    through autograd, a loss on its logits and an optimizer of torch. *dense*: ``nn.Linear`` in the unfused way. Beside
    them *8-bit serving*: the trained layer as a ``QuantizedFixedFanInLinear``.

    Args:
        out_features, in_features, fan_in, group_size, bias, dtype: of the layer, as in ``FixedFanInLinear``.
        batch_size: rows of a step, in float32.
        optimizer: "sgd", "momentum", "adagrad" or "adam" (row-wise when fused, as torch has it otherwise).
        positives_per_row: average number of labels of a training row.

    Returns:
        Bytes per component. Unfused heads hold three ``[B, L]`` matrices at their peak: logits, loss terms, gradient.

    Raises:
        ValueError, TypeError: a size below 1, ``fan_in > in_features``, an unknown optimizer or dtype.

    Examples:
        >>> from sparse_xmc.models import memory_report
        >>> report = memory_report(2_812_281, 768, 32, batch_size=64)
        >>> f"{report.fused.total / 2**30:.2f} GiB for {report.dense.total / 2**30:.0f} GiB"
        '0.52 GiB for 18 GiB'
    """
    sizes = {"out_features": out_features, "in_features": in_features, "fan_in": fan_in}
    sizes |= {"group_size": group_size, "batch_size": batch_size, "positives_per_row": positives_per_row}
    for name, value in sizes.items():
        check_positive_int(name, value)
    if fan_in > in_features:
        raise ValueError(f"fan_in must not exceed in_features, got fan_in={fan_in}, in_features={in_features}")
    if optimizer not in _STATE:
        raise ValueError(f"optimizer must be one of {tuple(_STATE)}, got {optimizer!r}")
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"dtype must be a floating-point torch.dtype that layers train in, got {dtype!r}")

    L, D, K, B = out_features, in_features, fan_in, batch_size
    acc = compute_dtype(dtype).itemsize
    index_bytes = num_index_rows(L, group_size) * K * index_dtype(D).itemsize
    biases = L * dtype.itemsize if bias else 0
    batch = {
        "targets": B * positives_per_row * 12,
        "input copy and gradient": (2 + _LABEL_RANGES) * B * D * acc,
    }

    def unfused(name: str, width: int, indices: int) -> HeadMemory:
        state = _STATE[optimizer][2] * (L * width * dtype.itemsize + biases)
        parts = {"weights": L * width * dtype.itemsize, "indices": indices, "bias": biases, "optimizer state": state}
        parts["weight gradient"] = L * width * dtype.itemsize + biases
        parts["logits, loss, gradient"] = 3 * B * L * 4
        return HeadMemory(name, parts | batch)

    per_weight, per_label, _ = _STATE[optimizer]
    state = per_weight * (L * K * dtype.itemsize + biases) + per_label * L * acc * (2 if bias else 1)
    fused = {"weights": L * K * dtype.itemsize, "indices": index_bytes, "bias": biases, "optimizer state": state}
    title = f"Your head at L={L:,} labels, D={D}, K={K}, G={group_size}, B={B}, {dtype}, {optimizer} needs"
    serving = {"weights": L * K + 4 * L, "indices": index_bytes, "bias": biases, "input copy and gradient": B * D * acc}
    return MemoryReport(
        title,
        HeadMemory("fused", fused | batch),
        unfused("unfused", K, index_bytes),
        unfused("dense", D, 0),
        HeadMemory("8-bit serving", serving),
    )
