"""Fused update: the weight gradient of a label tile is applied where it is computed and never reaches memory.

Two ways in: ``fixed_fan_in_step_`` computes loss, input gradient and update in one sweep; ``updating_loss_`` is a loss
whose ``backward`` performs the update with the true upstream gradient, for ordinary training loops. The rule of the
update stands in ``update.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import Targets, compute_dtype
from sparse_xmc.ops._backend import kernels
from sparse_xmc.ops._contract import Layer, Scaling
from sparse_xmc.ops._dispatch import define, first_order, mutated, straight
from sparse_xmc.ops._objective import Loss, LossOptions, Reduction
from sparse_xmc.ops.loss import HEAD_SCHEMA, Problem, empty_gradients, loss_of, prepare
from sparse_xmc.ops.update import RULE, STATE, Update, UpdateRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

Results = tuple[Tensor | None, Tensor | None]


def _check_capture(update: Update, device: torch.device) -> None:
    """A captured graph repeats the numbers of its capture: the rate would never change, and every replay would round with
    the same noise."""
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return
    numbers = [name for name in ("lr", "step") if not isinstance(getattr(update, name), Tensor)]
    if numbers:
        raise RuntimeError(
            f"{' and '.join(numbers)} of the fused update must be tensors on {device} while a CUDA graph is captured: every "
            "replay would use the numbers of the capture"
        )


def _step(problem: Problem, scaling: Scaling, update: Update, need_loss: bool, need_x: bool) -> Results:
    """Runs the kernel, and tells autograd what it wrote to."""
    x, layer, positives, goal, _, _ = problem
    if x.is_cuda:
        _check_capture(update, x.device)
    if not update.checked:
        update.check(layer.weight, layer.bias)
    results = kernels("loss", x).loss_step_(
        x, layer, positives, goal, scaling, update, need_loss=need_loss, need_x=need_x
    )
    mutated(layer.weight, layer.bias, *update[:4], update.applied)
    return results


def _pack(update: Update) -> tuple[Any, ...]:
    """An update as the arguments ``state`` to ``integers`` of ``head_step_``. ``present``: which tensors there are, as
    bits, since torch can't trace a list that is written to and holds None."""
    lr, step = update.lr, update.step
    present = sum(1 << i for i, name in enumerate(STATE) if getattr(update, name) is not None)
    scalars = [update.correction, *(n if isinstance(n, Tensor) else None for n in (lr, step))]
    rule = [0.0 if isinstance(value, Tensor) else value for value in (getattr(update, name) for name in RULE)]
    counters = (update.seed, 0 if isinstance(step, Tensor) else step, int(update.stochastic), present)
    return update.state(), scalars, rule, counters


def _unpack(state: Any, scalars: Any, rule: Any, counters: Any) -> Update:
    """The inverse of ``_pack``."""
    seed, number, stochastic, present = counters
    found = iter(state)
    tensors = {name: next(found) for i, name in enumerate(STATE) if present >> i & 1}
    correction, lr, step = scalars
    numbers = dict(zip(RULE, rule, strict=True))
    if lr is not None:
        numbers["lr"] = lr
    step = number if step is None else step
    return Update(**tensors, **numbers, correction=correction, stochastic=bool(stochastic), seed=seed, step=step)


def _step_op(*arguments: Any) -> tuple[Tensor, Tensor]:
    """(loss, dx [B, D]); what is not needed is empty."""
    problem = Problem.unpack(arguments[:11])
    upstream, loss_scale, *update, (need_loss, need_x) = arguments[11:]
    scaling = Scaling(problem.divisor, upstream, loss_scale)
    total, dx = _step(problem, scaling, _unpack(*update), need_loss, need_x)
    return problem.x.new_empty(0) if total is None else total, problem.x.new_empty(0) if dx is None else dx


def _step_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    need_loss, need_x = arguments[-1]
    total = x.new_empty((), dtype=compute_dtype(x.dtype)) if need_loss else x.new_empty(0)
    return total, empty_gradients(x, x, None, (need_x, False, False))[0]


head_step_ = define(
    "head_step_("
    + HEAD_SCHEMA.replace("Tensor weight", "Tensor(a!) weight").replace("Tensor? bias", "Tensor(b!)? bias")
    + ", Tensor? upstream, Tensor? loss_scale, Tensor(c!)[] state, Tensor?[] scalars, float[] rule, int[] counters,"
    " bool[] needed) -> (Tensor, Tensor)",
    _step_op,
    _step_fake,
)


def updated(problem: Problem, scaling: Scaling, update: Update, need_loss: bool, need_x: bool) -> Results:
    """``_step``, through the dispatcher where that is needed."""
    if problem.direct:
        return _step(problem, scaling, update, need_loss, need_x)
    one = (
        scaling.upstream
        if scaling.upstream is not None
        else problem.x.new_ones((), dtype=compute_dtype(problem.x.dtype))
    )
    total, dx = head_step_(
        *problem.pack(), one / problem.divisor, scaling.loss_scale, *_pack(update), (need_loss, need_x)
    )
    return total / problem.divisor if need_loss else None, dx if need_x else None


def _check_in_place(layer: Layer) -> None:
    weight, _, bias, _ = layer
    if weight.is_contiguous() and (bias is None or bias.is_contiguous()):
        return
    name, tensor = ("bias", bias) if weight.is_contiguous() and bias is not None else ("weight", weight)
    raise ValueError(f"{name} must be contiguous to be updated in place, got strides {tensor.stride()}")


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
    need_loss: bool = True,
    **options: Unpack[LossOptions],
) -> tuple[Any, Tensor | None]:
    """Loss, input gradient and update of ``weight`` and ``bias`` in one sweep over the labels, in place.

    Nothing is updated, without a host sync, where ``x`` holds inf or NaN.

    Args:
        optimizer: its next update is applied and ends its step. If it carries a loss scale then the returned input gradient
            is multiplied by it, as that of a scaled loss would be.
        need_input_grad: whether the gradient with respect to ``x`` is computed.
        need_loss: whether the loss is; on a GPU it is a good part of the arithmetic.
        The others: as in ``fixed_fan_in_loss``.

    Returns:
        ``(loss, dx)``: the loss before the update (0-dim) and its gradient ``[..., D]`` at the old weights, or None where
        not needed.

    Raises:
        ValueError, TypeError: as ``fixed_fan_in_loss``; also for parameters that are not contiguous.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> from sparse_xmc.optim import FusedSGD
        >>> x, weight = torch.randn(2, 16), torch.zeros(100, 8)
        >>> indices, optimizer = ops.init_indices(100, 16, 8, seed=0), FusedSGD(lr=0.1)
        >>> optimizer.attach(weight, None)
        >>> loss, dx = ops.fixed_fan_in_step_(x, weight, indices, None, [[4, 7], [99]], optimizer)
        >>> bool((weight != 0).any())
        True
    """
    before = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)  # torch.no_grad at an eighth of its time
    try:
        problem = prepare(x, weight, indices, bias, targets, loss, reduction, group_size, options)
        _check_in_place(problem.layer)
        scale = optimizer.loss_scale(x.device)
        scaling = Scaling(problem.divisor, scale, scale)
        total, dx = updated(problem, scaling, optimizer.next_update(weight, bias), need_loss, need_input_grad)
        optimizer.end_step()
        if dx is not None and (dx.ndim != x.ndim or dx.dtype != x.dtype):
            dx = dx.reshape(x.shape).to(x.dtype)
        return total, dx
    finally:
        torch._C._set_grad_enabled(before)


def _versions(weight: Tensor, bias: Tensor | None) -> tuple[int, int]:
    return weight._version, 0 if bias is None else bias._version


class _UpdatingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, optimizer: UpdateRule, divisor: float, eager: bool, *arguments: Any) -> Tensor:
        """``arguments``: of ``Problem.pack``. Weight and bias are not saved: backward changes their values on purpose."""
        x, weight, indices, bias, *others = arguments
        ctx.save_for_backward(x, indices, *others[:4])
        ctx.parameters, ctx.versions = (weight, bias), _versions(weight, bias)
        ctx.options, ctx.optimizer, ctx.divisor, ctx.eager = others[4:], optimizer, divisor, eager
        return loss_of(Problem.unpack(arguments, divisor, eager))

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor, eager: bool) -> tuple[Tensor | None, ...]:
        if ctx.optimizer is None:
            raise RuntimeError(
                "backward ran twice through one loss of a head with a fused optimizer: it would update twice"
            )
        x, indices, *others = ctx.saved_tensors
        (weight, bias), optimizer = ctx.parameters, ctx.optimizer
        if _versions(weight, bias) != ctx.versions:
            raise RuntimeError(
                "the head's parameters changed between its loss and backward (another loss was updated in between?): with "
                "a fused optimizer call backward for each loss before computing the next"
            )
        problem = Problem.unpack((x, weight, indices, bias, *others, *ctx.options), ctx.divisor, eager and ctx.eager)
        scaling = Scaling(problem.divisor, upstream, optimizer.loss_scale(x.device))
        update = optimizer.next_update(weight, bias)
        ctx.optimizer = None
        _, dx = updated(problem, scaling, update, False, ctx.needs_input_grad[3])
        return None, None, None, dx, *[None] * 10


_apply = straight(_UpdatingLoss)


def updating_loss_(
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
    **options: Unpack[LossOptions],
) -> Tensor:
    """``fixed_fan_in_loss`` whose ``backward`` updates ``weight`` and ``bias`` in place, instead of their getting gradients.

    The update uses the upstream gradient divided by the optimizer's loss scale, and is skipped, without a host sync,
    where that or ``x`` is not finite. The input gradient is that at the old weights. Arguments as in
    ``fixed_fan_in_step_``.

    Raises:
        ValueError, TypeError: as ``fixed_fan_in_loss``; also if parameters are not contiguous or need no gradient.
        RuntimeError: in backward: a second backward through one loss, or parameters that changed since the loss.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> from sparse_xmc.optim import FusedSGD
        >>> x, weight = torch.randn(2, 16), torch.zeros(100, 8, requires_grad=True)
        >>> indices, optimizer = ops.init_indices(100, 16, 8, seed=0), FusedSGD(lr=0.1)
        >>> optimizer.attach(weight, None)
        >>> ops.updating_loss_(x, weight, indices, None, [[4, 7], [99]], optimizer).backward()
        >>> bool((weight != 0).any()), weight.grad
        (True, None)
    """
    for name, tensor in (("weight", weight), ("bias", bias)):
        if isinstance(tensor, Tensor) and not tensor.requires_grad:
            raise ValueError(
                f"{name} must require a gradient to be updated in backward, but {name}.requires_grad is False"
            )
    problem = prepare(x, weight, indices, bias, targets, loss, reduction, group_size, options)
    _check_in_place(problem.layer)
    apply = _apply if problem.direct else _UpdatingLoss.apply
    return apply(optimizer, problem.divisor, problem.direct, *problem.pack())
