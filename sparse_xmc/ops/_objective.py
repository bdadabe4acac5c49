"""Losses and their options: what goes together, in which shape, and what a sum is divided by."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import check_constant, check_float, compute_dtype
from sparse_xmc.ops._contract import Objective

Loss = Literal["bce", "squared_hinge", "asymmetric", "cross_entropy", "sampled_softmax"]
Reduction = Literal["mean", "sum", "mean_all"]
FUSED_LOSSES = ("bce", "squared_hinge", "asymmetric")
REDUCTIONS = ("mean", "sum", "mean_all")

_ASYMMETRIC = {"gamma_pos": 0.0, "gamma_neg": 4.0, "clip": 0.05}  # the paper's
_SOFTMAX = ("label_smoothing", "ignore_index", "class_weight")
_UNWEIGHTED = {loss: Objective(loss) for loss in FUSED_LOSSES}


class LossOptions(TypedDict, total=False):
    """Options of a loss, all by keyword.

    pos_weight: ``[L]`` float, what the loss of a label's positives is multiplied by, as in ``BCEWithLogitsLoss``.
    sample_weight: ``[B]`` float, what the loss of a row is multiplied by. A mean still divides by the number of rows.
    gamma_pos, gamma_neg, clip: of "asymmetric": exponents of the focusing factors of positives (default 0) and negatives
        (4), and the probability below which a negative counts nothing (0.05).
    label_smoothing, ignore_index, class_weight: of "cross_entropy", as in ``torch.nn.functional.cross_entropy``.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear, ops
        >>> options: ops.LossOptions = {"pos_weight": torch.full((100,), 5.0), "sample_weight": torch.tensor([1.0, 0.5])}
        >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
        >>> loss = head.loss(torch.randn(2, 16), [[4, 7], [99]], **options)
    """

    pos_weight: Tensor | None
    sample_weight: Tensor | None
    gamma_pos: float
    gamma_neg: float
    clip: float
    label_smoothing: float
    ignore_index: int
    class_weight: Tensor | None


def whole_weight(name: str, value: Tensor, size: int) -> Tensor:
    """``value``, checked: the weights of a head that hands parts of them on.

    Raises:
        ValueError, TypeError: they are no floats, ask for a gradient, or are not ``[size]``.
    """
    _check_dense(name, value)
    check_constant(name, value)
    if tuple(value.shape) != (size,):
        raise ValueError(f"{name} must be [{size}], got {list(value.shape)}")
    return value


def _check_dense(name: str, value: Tensor) -> None:
    check_float(name, value)
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got layout {value.layout}")


def _weight(name: str, value: Tensor, size: int, what: str, like: Tensor) -> Tensor:
    """A tensor of weights as kernels read it."""
    dtype = compute_dtype(like.dtype)
    if (
        type(value) is Tensor
        and value.shape == (size,)
        and value.dtype is dtype
        and value.device == like.device
        and not value.requires_grad
        and value.is_contiguous()
        and size > 1  # one number may be a view whose negation torch puts off
    ):
        return value  # as in nearly every call; the checks one by one take longer than a small step may
    _check_dense(name, value)
    if tuple(value.shape) != (size,):
        raise ValueError(f"{name} must be [{size}], one number for each {what}, got {list(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on the weight's device {like.device}, got {value.device}")
    check_constant(name, value)
    if not torch.compiler.is_compiling():
        value = value.resolve_neg()
    return value.to(dtype).contiguous()


def objective(loss: str, options: Any, num_rows: int, weight: Tensor) -> Objective:
    """Checks the options of a fused loss of ``num_rows`` rows over the labels of ``weight [L, K]``."""
    if loss not in FUSED_LOSSES:
        raise ValueError(
            f"loss must be 'bce', 'squared_hinge' or 'asymmetric' (or, unfused, 'cross_entropy'), got {loss!r}"
        )
    if not options and loss != "asymmetric":
        return _UNWEIGHTED[loss]
    of_labels, of_rows = options.get("pos_weight"), options.get("sample_weight")
    if of_labels is not None:
        of_labels = _weight("pos_weight", of_labels, weight.shape[0], "label", weight)
    if of_rows is not None:
        of_rows = _weight("sample_weight", of_rows, num_rows, "row of x", weight)
    if loss != "asymmetric" and len(options) == (of_labels is not None) + (of_rows is not None):
        return Objective(loss, of_labels, of_rows)
    return Objective(loss, of_labels, of_rows, **_numbers(loss, options))


def _numbers(loss: str, options: Any) -> dict[str, float]:
    """The numbers of the asymmetric loss; raises for options that the loss does not have."""
    own = _ASYMMETRIC if loss == "asymmetric" else {}
    numbers = dict(own)
    for name, value in options.items():
        if name in own:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 <= value < (1 if name == "clip" else float("inf")):
                raise ValueError(f"{name} must be {'in [0, 1)' if name == 'clip' else 'finite and >= 0'}, got {value}")
            numbers[name] = float(value)
        elif name in _ASYMMETRIC:
            raise ValueError(f"{name} goes with loss='asymmetric', got loss={loss!r}")
        elif name in _SOFTMAX:
            raise ValueError(f"{name} goes with loss='cross_entropy', got loss={loss!r}")
        elif name not in ("pos_weight", "sample_weight"):
            raise TypeError(f"a loss has no option {name!r}: those are {', '.join(LossOptions.__annotations__)}")
    return numbers


def softmax_options(options: Any) -> dict[str, Any]:
    """Checks that only options of "cross_entropy" are given."""
    for name in options:
        if name not in _SOFTMAX:
            raise TypeError(f"loss='cross_entropy' has no option {name!r}: those are {', '.join(_SOFTMAX)}")
    return options


def divisor(reduction: str, num_rows: int, num_labels: int) -> float:
    """What the sum over rows and labels is divided by; 1 where there is nothing to sum."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'mean_all' or 'sum', got {reduction!r}")
    if reduction == "sum":
        return 1.0
    return float(max(1, num_rows) * (1 if reduction == "mean" else num_labels))
