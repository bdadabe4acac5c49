"""Fused multi-label loss of a fixed fan-in layer: label tiles only, never a ``[B, L]`` tensor.

``backward`` runs a second sweep that recomputes the logits rather than scaling gradients that ``forward`` left behind.
On a CPU (L=200k, D=768, K=32, B=64, fp32, 2 cores) the sweep with updates takes 45 ms and the forward sweep 18 ms: the
other way would save 18 ms less the scaling of ``[L, K]``. Recomputing holds no ``[L, K]`` gradient between the
passes nor two of them in ``backward``, rounds it once with the true upstream gradient (a loss scale included, so float16
gradients do not underflow first) and works with ``retain_graph``. Where time counts, ``fixed_fan_in_step_`` is one sweep.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import LayerShape, Targets, autocast, check_layer, compute_dtype, validate_indices
from sparse_xmc.ops._backend import debugging, kernels
from sparse_xmc.ops._targets import Positives, sorted_positives
from sparse_xmc.ops.cross_entropy import IGNORE_INDEX, fixed_fan_in_cross_entropy

Loss = Literal["bce", "squared_hinge", "cross_entropy"]
Reduction = Literal["mean", "sum"]


def _define_ops() -> tuple[Any, Any]:
    @torch.library.custom_op("sparse_xmc::loss_forward", mutates_args=(), schema=(
        "(Tensor x, Tensor weight, Tensor indices, Tensor? bias, Tensor labels, Tensor rows, str loss, int group_size)"
        " -> Tensor"
    ))  # fmt: skip
    def loss_forward(*arguments: Any) -> Tensor:
        return kernels("loss", arguments[0]).loss_forward(*arguments)

    @loss_forward.register_fake
    def _(x: Tensor, *arguments: Any) -> Tensor:
        return x.new_empty((), dtype=compute_dtype(x.dtype))

    @torch.library.custom_op("sparse_xmc::loss_gradients", mutates_args=(), schema=(
        "(Tensor x, Tensor weight, Tensor indices, Tensor? bias, Tensor labels, Tensor rows, str loss, int group_size,"
        " Tensor scale, bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)"
    ))  # fmt: skip
    def loss_gradients(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """(dx [B, D], dw [L, K], db [L]); what is not needed is empty."""
        gradients = kernels("loss", x).loss_gradients(x, *arguments)
        return tuple(x.new_empty(0) if g is None else g for g in gradients)

    @loss_gradients.register_fake
    def _(x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
        need_x, need_weight, need_bias = arguments[-3:]
        return (
            torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
            torch.empty_like(weight) if need_weight else x.new_empty(0),
            torch.empty_like(bias) if need_bias and bias is not None else x.new_empty(0),
        )

    return loss_forward, loss_gradients


loss_forward, loss_gradients = _define_ops()


class _FixedFanInLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        indices: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        rows: Tensor,
        loss: str,
        group_size: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, indices, bias, labels, rows)
        ctx.options = (loss, group_size)
        return loss_forward(x, weight, indices, bias, labels, rows, loss, group_size)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_weight, _, need_bias = ctx.needs_input_grad[:4]
        gradients = loss_gradients(*ctx.saved_tensors, *ctx.options, upstream, need_x, need_weight, need_bias)
        dx, dw, db = (
            g if needed else None for g, needed in zip(gradients, (need_x, need_weight, need_bias), strict=True)
        )
        return dx, dw, None, db, None, None, None, None


def prepare(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Targets,
    loss: str,
    reduction: str,
    group_size: int,
) -> tuple[LayerShape, Tensor, Positives, float]:
    """Checks the arguments of the fused head; returns the layer's shape, ``x`` as the kernels take it, the sorted
    targets and what the sum over rows and labels is divided by."""
    shape = check_layer(x, weight, indices, bias, group_size)
    if loss not in ("bce", "squared_hinge"):
        raise ValueError(f"loss must be 'bce' or 'squared_hinge' (or, unfused, 'cross_entropy'), got {loss!r}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    rows = x.numel() // shape.D
    positives = sorted_positives(targets, rows, shape.L, weight.device)
    if positives.labels.device != weight.device:
        raise ValueError(f"targets must be on the weight's device {weight.device}, got {positives.labels.device}")
    if debugging():
        validate_indices(indices, shape.D)
    x = autocast(x)
    return shape, x.reshape(-1, shape.D), positives, float(max(1, rows)) if reduction == "mean" else 1.0


def fixed_fan_in_loss(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Targets,
    *,
    loss: Loss = "bce",
    reduction: Reduction = "mean",
    group_size: int = 1,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Multi-label or softmax loss of ``fixed_fan_in_linear(x, ...)``, without its logits in memory.

    Value and gradients are those of the unfused expression; logits, loss and sums are float32 (float64 for float64
    inputs) and gradients are rounded once. Peak memory is that of the gradients plus ``O(B * D)``.

    Args:
        x: ``[..., D]``; leading dimensions are flattened to ``B`` rows. Autocast casts it to its dtype.
        weight, indices, bias, group_size: as in ``fixed_fan_in_linear``.
        targets: ``torch.sparse_csr`` matrix ``[B, L]`` whose entries are the positives. Values are ignored; a label
            that stands twice in a row counts once. Labels outside ``[0, L)`` are ignored; ``SPARSE_XMC_DEBUG=1`` raises.
            Or the pair ``(crow_indices, col_indices)`` of such a matrix: ``torch.compile`` takes no sparse tensor, so
            only with the pair does the call fit into one graph. Or COO, SciPy, dense multi-hot, or a list of lists of
            label ids: see ``ops._target_forms``.
        loss: "bce": binary cross-entropy with logits. "squared_hinge": ``max(0, 1 - t z)^2`` with ``t`` = 1 for positives,
            -1 otherwise; labels whose rows are all at zero are skipped in backward. "cross_entropy": softmax over the
            labels; ``targets`` are class ids, int64 ``[B]``; see ``ops.cross_entropy.fixed_fan_in_cross_entropy``.
        reduction: "sum" over rows and labels, or "mean": that sum divided by ``B`` (0 for ``B = 0``).
        label_smoothing, ignore_index, class_weight: of "cross_entropy" alone, as in ``torch.nn.functional``.

    Returns:
        0-dim float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device, layout or name.
    """
    if loss == "cross_entropy":
        return fixed_fan_in_cross_entropy(
            x,
            weight,
            indices,
            bias,
            targets,  # type: ignore[arg-type]
            reduction=reduction,
            group_size=group_size,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            class_weight=class_weight,
        )
    if label_smoothing or class_weight is not None:
        raise ValueError(f"label_smoothing and class_weight go with loss='cross_entropy', got loss={loss!r}")
    _, rows, positives, divisor = prepare(x, weight, indices, bias, targets, loss, reduction, group_size)
    return _FixedFanInLoss.apply(rows, weight, indices, bias, *positives, loss, group_size) / divisor
