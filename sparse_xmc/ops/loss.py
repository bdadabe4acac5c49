"""Fused multi-label loss of a fixed fan-in layer: label tiles only, never a ``[B, L]`` tensor.

``backward`` runs a second sweep that recomputes the logits rather than scaling gradients that ``forward`` left behind.
On a CPU (L=200k, D=768, K=32, B=64, fp32, 2 cores) the sweep with updates takes 45 ms and the forward sweep 18 ms: the
other way would save 18 ms less the scaling of ``[L, K]``. Recomputing holds no ``[L, K]`` gradient between the
passes nor two of them in ``backward``, rounds it once with the true upstream gradient (a loss scale included, so float16
gradients do not underflow first) and works with ``retain_graph``. Where time counts, ``fixed_fan_in_step_`` is one sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import Targets, autocast, check_layer, compute_dtype, validate_indices
from sparse_xmc.ops._backend import debugging, kernels
from sparse_xmc.ops._contract import Gradients, Layer, Needed, Objective, Positives, Scaling
from sparse_xmc.ops._dispatch import define, differentiated, first_order, plain, recorded, straight, watched
from sparse_xmc.ops._objective import Loss, LossOptions, Reduction, divisor, objective, softmax_options
from sparse_xmc.ops._targets import sorted_positives
from sparse_xmc.ops.cross_entropy import fixed_fan_in_cross_entropy

if TYPE_CHECKING:
    from typing_extensions import Unpack

HEAD_SCHEMA = (
    "Tensor x, Tensor weight, Tensor indices, Tensor? bias, Tensor labels, Tensor rows, Tensor? pos_weight,"
    " Tensor? sample_weight, str loss, float[] numbers, SymInt[] integers"
)


class Problem(NamedTuple):
    """A checked call of the fused head. ``x [B, D]`` is flat and in the dtype that the kernels take. direct: whether they
    are called without the dispatcher."""

    x: Tensor
    layer: Layer
    positives: Positives
    objective: Objective
    divisor: float
    direct: bool

    def pack(self) -> tuple[Any, ...]:
        """The arguments of ``HEAD_SCHEMA``: all but the divisor, which a graph applies itself."""
        layer, positives, goal = self.layer, self.positives, self.objective
        return (
            self.x, *layer[:3], *positives[:2], goal.pos_weight, goal.sample_weight, goal.loss,
            (goal.gamma_pos, goal.gamma_neg, goal.clip),
            (layer.group_size, positives.num_rows, positives.num_labels),
        )  # fmt: skip

    @staticmethod
    def unpack(arguments: Sequence[Any], divisor: float = 1.0, direct: bool = False) -> Problem:
        """The inverse of ``pack``."""
        x, weight, indices, bias, labels, rows, pos_weight, sample_weight, loss, gammas, integers = arguments
        group_size, num_rows, num_labels = integers
        layer, positives = Layer(weight, indices, bias, group_size), Positives(labels, rows, num_rows, num_labels)
        goal = Objective(loss, pos_weight, sample_weight, *gammas)
        return Problem(x, layer, positives, goal, divisor, direct)


def _loss(*arguments: Any) -> Tensor:
    return kernels("loss", arguments[0]).loss_forward(*Problem.unpack(arguments)[:-1])


def _gradients(*arguments: Any) -> tuple[Tensor, ...]:
    """(dx [B, D], dw [L, K], db [L]); what is not needed is empty."""
    *packed, upstream, needed = arguments
    gradients = gradients_of(Problem.unpack(packed), upstream, Needed(*needed))
    return tuple(packed[0].new_empty(0) if g is None else g for g in gradients)


def gradients_of(problem: Problem, upstream: Tensor, needed: Needed) -> Gradients:
    """The gradients of the loss, straight from the kernels."""
    x, layer, positives, goal, divisor, _ = problem
    return kernels("loss", x).loss_gradients(x, layer, positives, goal, Scaling(divisor, upstream), needed)


def empty_gradients(x: Tensor, weight: Tensor, bias: Tensor | None, needed: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of the shapes that the gradients have."""
    need_x, need_weight, need_bias = needed
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if need_weight else x.new_empty(0),
        torch.empty_like(bias, memory_format=torch.contiguous_format)
        if need_bias and bias is not None
        else x.new_empty(0),
    )


head_loss = define(
    f"head_loss({HEAD_SCHEMA}) -> Tensor",
    _loss,
    lambda x, *arguments: x.new_empty((), dtype=compute_dtype(x.dtype)),
)
head_gradients = define(
    f"head_gradients({HEAD_SCHEMA}, Tensor upstream, bool[] needed) -> (Tensor, Tensor, Tensor)",
    _gradients,
    lambda x, weight, indices, bias, *arguments: empty_gradients(x, weight, bias, arguments[-1]),
)


def loss_of(problem: Problem) -> Tensor:
    """The loss of a problem, without a place in a graph of gradients."""
    if problem.direct:
        return kernels("loss", problem.x).loss_forward(*problem[:-1])
    return head_loss(*problem.pack()) / problem.divisor


def _gradients_at(problem: Problem, upstream: Tensor, needed: Needed) -> Gradients:
    """``gradients_of`` through the dispatcher."""
    found = head_gradients(*problem.pack(), upstream / problem.divisor, needed)
    dx, dw, db = (g if wanted else None for g, wanted in zip(found, needed, strict=True))
    return dx, dw, db


class _FixedFanInLoss(torch.autograd.Function):
    """For tracers, which look for tensors among the arguments."""

    @staticmethod
    def forward(ctx: Any, divisor: float, *arguments: Any) -> Tensor:
        """``arguments``: of ``Problem.pack``."""
        ctx.save_for_backward(*arguments[:8])
        ctx.options, ctx.divisor = arguments[8:], divisor
        return loss_of(Problem.unpack(arguments, divisor))

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor, _: bool) -> tuple[Tensor | None, ...]:
        problem = Problem.unpack((*ctx.saved_tensors, *ctx.options), ctx.divisor)
        need_x, need_weight, _, need_bias = ctx.needs_input_grad[1:5]
        dx, dw, db = _gradients_at(problem, upstream, Needed(need_x, need_weight, need_bias))
        return None, dx, dw, None, db, *[None] * 7


class _EagerLoss(torch.autograd.Function):
    """The same for eager calls: torch looks at every argument, which takes time."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The tensors: those of the problem. It is kept without what backward may change or free."""
        ctx.save_for_backward(x, weight, problem.layer.indices, bias)
        ctx.others = problem.layer.group_size, *problem[2:-1]
        return kernels("loss", x).loss_forward(*problem[:-1])

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor, eager: bool) -> tuple[Tensor | None, ...]:
        x, weight, indices, bias = ctx.saved_tensors
        group_size, positives, goal, divisor = ctx.others
        layer, needed = Layer(weight, indices, bias, group_size), Needed(*ctx.needs_input_grad[1:])
        if eager:
            scaling = Scaling(divisor, upstream)
            return None, *kernels("loss", x).loss_gradients(x, layer, positives, goal, scaling, needed)
        return None, *_gradients_at(Problem(x, layer, positives, goal, divisor, False), upstream, needed)


_apply = straight(_EagerLoss)


def prepare(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Targets,
    loss: str,
    reduction: str,
    group_size: int,
    options: LossOptions,
) -> Problem:
    """Checks the arguments of the fused head."""
    shape = check_layer(x, weight, indices, bias, group_size)
    num_rows = x.numel() // shape.D
    goal = objective(loss, options, num_rows, weight)
    divided = divisor(reduction, num_rows, shape.L)
    eager = not watched()
    positives = sorted_positives(targets, num_rows, shape.L, weight.device, eager=eager)
    if positives.labels.device != weight.device:
        raise ValueError(f"targets must be on the weight's device {weight.device}, got {positives.labels.device}")
    if debugging():
        validate_indices(indices, shape.D)
    x = autocast(x)
    x = x if x.ndim == 2 else x.reshape(-1, shape.D)
    eager = eager and plain(x, weight, indices, positives.labels)
    return Problem(x, Layer(weight, indices, bias, group_size), positives, goal, divided, eager)


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
    **options: Unpack[LossOptions],
) -> Tensor:
    """Multi-label or softmax loss of ``fixed_fan_in_linear(x, ...)``, without its logits in memory.

    Value and gradients are those of the unfused expression; logits, loss and sums are float32 (float64 for float64
    inputs) and gradients are rounded once. Peak memory is that of the gradients plus ``O(B * D)``.

    Args:
        x: ``[..., D]``; leading dimensions are flattened to ``B`` rows. Autocast casts it to its dtype.
        weight, indices, bias, group_size: as in ``fixed_fan_in_linear``.
        targets: ``torch.sparse_csr`` matrix ``[B, L]`` whose entries are the positives. Values are ignored; a label
            that stands twice in a row counts once. Or the pair ``(crow_indices, col_indices)`` of such a matrix:
            ``torch.compile`` takes no sparse tensor, so only with the pair does the call fit into one graph. Or COO,
            SciPy, dense multi-hot, or a list of lists of label ids: see ``ops._target_forms``. Or what
            ``ops.sort_targets`` made of them, which saves sorting here.
        loss: "bce": binary cross-entropy with logits. "squared_hinge": ``max(0, 1 - t z)^2`` with ``t`` = 1 for positives,
            -1 otherwise; labels whose rows are all at zero are skipped in backward. "asymmetric": see
            ``ops._contract.Objective``. "cross_entropy": softmax over the labels; ``targets`` are class ids, int64
            ``[B]``; see ``ops.cross_entropy.fixed_fan_in_cross_entropy``.
        reduction: "sum" over rows and labels; "mean": that sum divided by ``B``, so that the size of a gradient does not
            depend on the number of labels; "mean_all": divided by ``B * L``, the mean of ``torch.nn.BCEWithLogitsLoss``.
            0 for ``B = 0``. "cross_entropy" knows "sum" and "mean".
        options: ``ops.LossOptions``: weights of labels and rows, and what a single loss has.

    Returns:
        0-dim float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device, layout or name; an option that the loss does
            not have. On a CPU also targets outside ``[0, L)`` and broken row offsets; a GPU asserts them later.
        RuntimeError: in a second backward: second derivatives are not implemented.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> x, weight = torch.randn(2, 16), torch.zeros(100, 8, requires_grad=True)
        >>> indices = ops.init_indices(100, 16, 8, seed=0)
        >>> loss = ops.fixed_fan_in_loss(x, weight, indices, None, [[4, 7], [99]], reduction="mean_all")
        >>> round(loss.item(), 4)  # log 2: nothing is known yet
        0.6931
        >>> loss.backward()
        >>> weight.grad.shape
        torch.Size([100, 8])

        Propensity-weighted (Qaraei et al., "Convex surrogates for unbiased loss functions in extreme classification with
        missing labels", WWW 2021): a positive that is seen with propensity ``p`` stands for ``1 / p`` of them.

        >>> from sparse_xmc.metrics import inverse_propensities
        >>> inverse = torch.from_numpy(inverse_propensities(torch.ones(100).numpy(), num_rows=1000)).float()
        >>> loss = ops.fixed_fan_in_loss(x, weight, indices, None, [[4, 7], [99]], pos_weight=2 * inverse - 1)
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
            **softmax_options(options),
        )
    problem = prepare(x, weight, indices, bias, targets, loss, reduction, group_size, options)
    if not (recorded if problem.direct else differentiated)(x, weight, bias):
        return loss_of(problem)
    if problem.direct:
        return _apply(problem, problem.x, weight, bias)
    return _FixedFanInLoss.apply(problem.divisor, *problem.pack())
