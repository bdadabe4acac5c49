"""Fused update: the weight gradient of a label tile is applied where it is computed and never reaches memory.

Two ways in: ``fixed_fan_in_step_`` computes loss, input gradient and update in one sweep; ``updating_loss`` is a loss
whose ``backward`` performs the update with the true upstream gradient, for ordinary training loops.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import Targets, compute_dtype
from sparse_xmc.ops._backend import kernels
from sparse_xmc.ops.loss import Loss, Reduction, loss_forward, prepare

_SERIAL = 32_768  # elements up to which torch's CPU kernels stay in their thread


class Update(NamedTuple):
    """One update of a layer's parameters; the rule stands in ``cpu_kernels/loss.py``.

    momentum_buffer: ``[L, K]`` in weight's dtype; bias_momentum_buffer: ``[L]`` in bias's dtype.
    second_moment, bias_second_moment: ``[L]`` in the accumulation dtype.
    correction: of the second moments, 0-dim on their device, in the accumulation dtype; None for 1.
    stochastic: how 16-bit parameters are rounded; ``seed`` and ``step`` make the random bits.
    """

    momentum_buffer: Tensor | None = None
    second_moment: Tensor | None = None
    bias_momentum_buffer: Tensor | None = None
    bias_second_moment: Tensor | None = None
    lr: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: float = 1.0
    gain: float = 1.0
    correction: Tensor | None = None
    eps: float = 0.0
    stochastic: bool = True
    seed: int = 0
    step: int = 0


class UpdateRule(Protocol):
    """What the fused head asks of an optimizer (``sparse_xmc.optim.fused``)."""

    def attach(self, weight: Tensor, bias: Tensor | None) -> None:
        """Makes these the parameters that it updates."""

    def next_update(self, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Update:
        """State and hyperparameters of the next update of these parameters; counts it.

        ``scale``: 0-dim on the parameters' device; the kernels skip the update where it is not finite.
        """

    def loss_scale(self, device: torch.device) -> Tensor | None:
        """The factor (0-dim) in upstream gradients that the update must divide by, or None for 1."""

    def step(self) -> Any:
        """Ends an optimizer step: the next update belongs to the next one."""


@torch.library.custom_op(
    "sparse_xmc::loss_step_",
    mutates_args=(
        "weight", "bias", "momentum_buffer", "second_moment", "bias_momentum_buffer", "bias_second_moment"
    ),
    schema=(
        "(Tensor x, Tensor(a!) weight, Tensor indices, Tensor(b!)? bias, Tensor labels, Tensor rows, str loss,"
        " int group_size, Tensor dx_scale, Tensor dw_scale, Tensor(c!)? momentum_buffer, Tensor(d!)? second_moment,"
        " Tensor(e!)? bias_momentum_buffer, Tensor(f!)? bias_second_moment, float lr, float momentum,"
        " float weight_decay, float decay, float gain, Tensor? correction, float eps, bool stochastic, int seed,"
        " int step, bool need_loss, bool need_x) -> (Tensor, Tensor)"
    ),
)  # fmt: skip
def loss_step_(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """(sum of the loss, dx [B, D]); what is not needed is empty."""
    total, dx = kernels("loss", x).loss_step_(x, *arguments)
    return x.new_empty(0) if total is None else total, x.new_empty(0) if dx is None else dx


@loss_step_.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    need_loss, need_x = arguments[-2:]
    return (
        x.new_empty((), dtype=compute_dtype(x.dtype)) if need_loss else x.new_empty(0),
        torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
    )


def _check_in_place(weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if isinstance(tensor, Tensor) and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous to be updated in place, got strides {tensor.stride()}")


def _finite_only(scale: Tensor, x: Tensor) -> Tensor:
    """``scale``, or NaN (at which kernels skip the update) if ``x`` holds inf or NaN. Does not wait for the device."""
    if x.numel() == 0:
        return scale
    # on a CPU in parts so small that torch does not wake its threads, which would take longer
    rows = max(1, _SERIAL // x.shape[1]) if x.device.type == "cpu" else x.shape[0]
    return scale + torch.stack([(0 * part).sum(dtype=scale.dtype) for part in x.split(rows)]).sum()


def fixed_fan_in_step_(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Targets,
    optimizer: UpdateRule,
    *,
    loss: Loss = "bce",
    reduction: Reduction = "mean",
    group_size: int = 1,
    need_input_grad: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Loss, input gradient and update of ``weight`` and ``bias`` in one sweep over the labels, in place.

    Nothing is updated, without a host sync, where ``x`` holds inf or NaN.

    Args:
        optimizer: its next update is applied and ends its step. If it carries a loss scale then the returned input gradient
            is multiplied by it, as that of a scaled loss would be.
        need_input_grad: whether the gradient with respect to ``x`` is computed.
        The others: as in ``fixed_fan_in_loss``.

    Returns:
        ``(loss, dx)``: the loss before the update (0-dim) and its gradient ``[..., D]`` at the old weights, or None.

    Raises:
        ValueError, TypeError: as ``fixed_fan_in_loss``; also for parameters that are not contiguous.
    """
    _check_in_place(weight, bias)
    with torch.no_grad():
        _, rows, positives, divisor = prepare(x, weight, indices, bias, targets, loss, reduction, group_size)
        one = torch.ones((), dtype=compute_dtype(x.dtype), device=x.device)
        scale = optimizer.loss_scale(x.device)
        dx_scale = (one if scale is None else scale.to(one.dtype)) / divisor
        dw_scale = _finite_only(one / divisor, rows)
        update = optimizer.next_update(weight, bias, dw_scale)
        total, dx = loss_step_(
            rows, weight, indices, bias, *positives, loss, group_size, dx_scale, dw_scale, *update, True, need_input_grad,
        )  # fmt: skip
        optimizer.step()
    return total / divisor, dx.reshape(x.shape).to(x.dtype) if need_input_grad else None


def _versions(weight: Tensor, bias: Tensor | None) -> tuple[int, int]:
    return weight._version, 0 if bias is None else bias._version


class _UpdatingLoss(torch.autograd.Function):
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
        optimizer: UpdateRule,
    ) -> Tensor:
        ctx.save_for_backward(x, indices, labels, rows)
        ctx.parameters, ctx.versions = (weight, bias), _versions(weight, bias)
        ctx.options, ctx.optimizer = (loss, group_size), optimizer
        return loss_forward(x, weight, indices, bias, labels, rows, loss, group_size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.optimizer is None:
            raise RuntimeError(
                "backward ran twice through one loss of a head with a fused optimizer: it would update twice"
            )
        x, indices, labels, rows = ctx.saved_tensors
        (weight, bias), optimizer = ctx.parameters, ctx.optimizer
        if _versions(weight, bias) != ctx.versions:
            raise RuntimeError(
                "the head's parameters changed between its loss and backward (another loss was updated in between?): with "
                "a fused optimizer call backward for each loss before computing the next"
            )
        scale = optimizer.loss_scale(x.device)
        dw_scale = _finite_only(upstream if scale is None else upstream / scale.to(upstream.dtype), x)
        update = optimizer.next_update(weight, bias, dw_scale)
        ctx.optimizer = None
        need_x = ctx.needs_input_grad[0]
        _, dx = loss_step_(
            x, weight, indices, bias, labels, rows, *ctx.options, upstream, dw_scale, *update, False, need_x
        )
        return dx if need_x else None, None, None, None, None, None, None, None, None


def updating_loss(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Targets,
    optimizer: UpdateRule,
    *,
    loss: Loss = "bce",
    reduction: Reduction = "mean",
    group_size: int = 1,
) -> Tensor:
    """``fixed_fan_in_loss`` whose ``backward`` updates ``weight`` and ``bias`` in place, instead of their getting gradients.

    The update uses the upstream gradient divided by the optimizer's loss scale, and is skipped, without a host sync,
    where that or ``x`` is not finite. The input gradient is that at the old weights. Arguments as in
    ``fixed_fan_in_step_``.

    Raises:
        ValueError, TypeError: as ``fixed_fan_in_loss``; also if parameters are not contiguous or need no gradient.
        RuntimeError: in backward: a second backward through one loss, or parameters that changed since the loss.
    """
    for name, tensor in (("weight", weight), ("bias", bias)):
        if isinstance(tensor, Tensor) and not tensor.requires_grad:
            raise ValueError(
                f"{name} must require a gradient to be updated in backward, but {name}.requires_grad is False"
            )
    _check_in_place(weight, bias)
    _, flat, positives, divisor = prepare(x, weight, indices, bias, targets, loss, reduction, group_size)
    return _UpdatingLoss.apply(flat, weight, indices, bias, *positives, loss, group_size, optimizer) / divisor
