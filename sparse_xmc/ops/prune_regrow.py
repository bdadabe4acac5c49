"""Rewiring in place: the weakest connections are dropped and regrown at features that their row did not hold.

One pass over weights, indices and optimizer state; nothing of size ``[L, K]`` is allocated, nothing waits for
the device.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import (
    FLOAT_DTYPES,
    check_float,
    check_positive_int,
    check_seed,
    check_tensor,
    check_topology,
    validate_indices,
)
from sparse_xmc.ops._backend import debugging, kernels
from sparse_xmc.ops._contract import Rewiring
from sparse_xmc.ops._dispatch import define, direct, mutated
from sparse_xmc.ops._regrow import RegrowBatch, candidate_blocks

MAX_FAN_IN = 32_767


def _rewire_(
    weight: Tensor, indices: Tensor, state: Sequence[Tensor], mean_state: Sequence[Tensor], plan: Rewiring
) -> Tensor:
    """Runs the kernel, and tells autograd what it wrote to."""
    changed = kernels("prune_regrow", weight).rewire_(weight, indices, state, mean_state, plan)
    mutated(weight, indices, *state, *mean_state)
    return changed


def _rewire_op(*arguments: Any) -> Tensor:
    weight, indices, state, mean_state, counts, candidates, fixed, threshold, *rest = arguments
    in_features, group_size, use_max, seed, bound, first_row = rest
    plan = Rewiring(in_features, group_size, use_max, seed, first_row, fixed, threshold, counts, candidates, bound)
    return _rewire_(weight, indices, state, mean_state, plan)


rewire_ = define(
    "rewire_(Tensor(a0!) weight, Tensor(a1!) indices, Tensor(a2!)[] state, Tensor(a3!)[] mean_state, Tensor? counts,"
    " Tensor? candidates, SymInt fixed, float threshold, SymInt in_features, SymInt group_size, bool use_max,"
    " SymInt seed, float bound, SymInt first_row) -> Tensor",
    _rewire_op,
    lambda weight, *arguments: weight.new_empty((), dtype=torch.int64),
)


def _lowest(weight: Tensor, *arguments: Any) -> Tensor:
    return kernels("prune_regrow", weight).lowest_per_row(weight, *arguments)


lowest_per_row = define(
    "lowest_per_row(Tensor weight, SymInt rows, SymInt group_size, bool use_max, SymInt number, SymInt limit) -> Tensor",
    _lowest,
    lambda weight, R, *arguments: weight.new_empty(R, dtype=torch.int16),
)


def _rewired(
    weight: Tensor, indices: Tensor, state: Sequence[Tensor], mean_state: Sequence[Tensor], plan: Rewiring
) -> Tensor:
    """``_rewire_``, through the dispatcher where that is needed."""
    if direct(weight, indices, *state, *mean_state):
        return _rewire_(weight, indices, state, mean_state, plan)
    return rewire_(
        weight, indices, state, mean_state, plan.counts, plan.candidates, plan.fixed, plan.threshold, plan.in_features,
        plan.group_size, plan.use_max, plan.seed, plan.bound, plan.first_row,
    )  # fmt: skip


def _float32_at_least(value: float) -> float:
    """The least float32 number not below ``value``: ``w < value`` and ``w < result`` agree for float32 ``w``."""
    rounded = torch.tensor(value, dtype=torch.float32, device="cpu")
    if float(rounded) < value:
        rounded = torch.nextafter(rounded, rounded.new_tensor(math.inf))
    return float(rounded)


def _check_amount(fraction: float | None, threshold: float | None) -> None:
    for name, value in (("fraction", fraction), ("threshold", threshold)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} must be a number, got {value!r}")
    if (fraction is None) == (threshold is None):
        raise ValueError(f"give exactly one of fraction and threshold, got fraction={fraction}, threshold={threshold}")
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"threshold must not be negative or NaN, got {threshold}")


def _check_state(name: str, tensors: Sequence[Tensor], weight: Tensor) -> None:
    for i, tensor in enumerate(tensors):
        check_tensor(f"{name}[{i}]", tensor)
        if tensor.shape != weight.shape or tensor.device != weight.device or tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(
                f"{name}[{i}] must be a float tensor {list(weight.shape)} on {weight.device} like weight, "
                f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{name}[{i}] must be contiguous, got strides {tensor.stride()}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_range(indices: Tensor, in_features: int) -> None:
    """On a CPU, where it takes no time and kernels would write out of bounds; a GPU would have to be waited for."""
    if indices.device.type == "cpu" and not torch.compiler.is_compiling():
        values = indices.numpy()
        if values.max() >= in_features or values.min() < 0:
            raise ValueError(f"indices must lie in [0, {in_features}), got {values.min()} to {values.max()}")


@torch.no_grad()
def prune_regrow_(
    weight: Tensor,
    indices: Tensor,
    in_features: int,
    *,
    fraction: float | None = None,
    threshold: float | None = None,
    scope: str = "row",
    seed: int,
    state: Sequence[Tensor] = (),
    mean_state: Sequence[Tensor] = (),
    regrow: str = "random",
    init: str = "zero",
    group_size: int = 1,
    group_score: str = "mean",
    batch: RegrowBatch | None = None,
    candidates: int | None = None,
    first_row: int = 0,
    number: int | None = None,
) -> Tensor:
    """Drops the connections of lowest magnitude and regrows as many in each row, in place.

    A slot's score is ``|w|`` in float32; with ``group_size`` > 1 the mean or maximum of that over the group, whose
    labels are rewired together. Among equal scores the first slot goes first. A row rewires at most the ``D - K`` slots
    that it has free features for. Kept slots keep weight, index and state bit for bit, and their place.

    The result depends on the arguments and the seed alone, neither on threads nor on the device; only the means written
    to ``mean_state`` and the gradients and centroids of a batch may differ between devices in their last bits.

    Args:
        weight: ``[L, K]``, contiguous.
        indices: ``[ceil(L / group_size), K]``, contiguous, uint16 or int32, distinct within a row.
        in_features: ``D``.
        fraction: share of slots to rewire: ``floor(fraction * K)`` of every row, or with ``scope="global"`` the lowest
            ``floor(fraction * R * K)`` of all; ties count in the order of rows.
        threshold: rewire every slot whose score lies below it. Exactly one of ``fraction`` and ``threshold``.
        scope: "row" or "global"; a threshold is the same for all rows anyway.
        seed: of the random numbers, keyed by row and slot.
        state: tensors of weight's shape that become zero where the connection changed (momenta).
        mean_state: tensors of weight's shape that get their label's mean there (second moments, where zero would
            make the next step huge).
        regrow: "random": uniform over the features that the row did not hold; "gradient": of ``candidates`` such
            features those with the largest |gradient of the loss|; "informed": those with the largest |mean over the
            label's positives - mean over all| in ``batch`` (random ones for labels without positives there).
            For groups gradients and centroids are compared by their mean magnitude over the members.
        init: new weights are "zero" or "uniform" in +-1/sqrt(K).
        group_score: "mean" or "max".
        batch: what "gradient" and "informed" look at.
        candidates: number of sampled features per row for "gradient" (default ``4 K``); at least the number to rewire.
        first_row: number of the first row, if this is a part of a larger layer.
        number: how many slots ``scope="global"`` rewires in this part, in place of ``floor(fraction * R * K)``.

    Returns:
        Number of rewired slots of ``indices``: 0-dim int64 tensor on weight's device.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; nothing has changed then.

    Source:
        Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity", 2018 (SET);
        Evci et al., "Rigging the lottery", ICML 2020 (gradient).

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> weight, indices = torch.randn(1000, 16), ops.init_indices(1000, 64, 16, seed=0)
        >>> momentum = torch.ones_like(weight)
        >>> int(ops.prune_regrow_(weight, indices, 64, fraction=0.25, seed=1, state=[momentum]))
        4000
        >>> int((momentum == 0).sum())  # the state of a new connection begins anew
        4000
    """
    check_positive_int("in_features", in_features)
    shape = check_topology(weight, indices, in_features, group_size)
    check_float("weight", weight)
    if isinstance(first_row, bool) or not isinstance(first_row, int) or first_row < 0:
        raise ValueError(f"first_row must be an int of at least 0, got {first_row!r}")
    _check_amount(fraction, threshold)
    _check_choice("scope", scope, ("row", "global"))
    _check_choice("regrow", regrow, ("random", "gradient", "informed"))
    _check_choice("init", init, ("zero", "uniform"))
    _check_choice("group_score", group_score, ("mean", "max"))
    seed = check_seed(seed)
    _check_state("state", state, weight)
    _check_state("mean_state", mean_state, weight)
    for name, tensor in (("weight", weight), ("indices", indices)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")
    if shape.K > MAX_FAN_IN:
        raise ValueError(f"rewiring takes a fan_in of at most {MAX_FAN_IN}, got weight {list(weight.shape)}")
    if number is not None and (scope != "global" or fraction is None or not 0 <= number <= shape.R * shape.K):
        raise ValueError(
            f"number goes with a fraction of scope 'global' and lies in [0, {shape.R * shape.K}], got number={number}, "
            f"scope={scope!r}, fraction={fraction}"
        )
    if candidates is not None:
        check_positive_int("candidates", candidates)
    if (batch is None) != (regrow == "random"):
        raise ValueError(f"batch goes with regrow='gradient' or 'informed', got regrow={regrow!r}, batch={batch!r}")
    if batch is not None:
        batch.check(regrow, shape, weight)
    _check_range(indices, in_features)
    if debugging():
        validate_indices(indices, in_features)

    use_max = group_score == "max"
    bound = 0.0 if init == "zero" else 1 / math.sqrt(shape.K)
    limit = min(shape.K, shape.D - shape.K)
    fixed, counts, level = -1, None, 0.0
    if threshold is not None:
        level = _float32_at_least(threshold)
    elif fraction is not None and scope == "row":
        fixed = min(math.floor(fraction * shape.K), limit)
    elif fraction is not None:
        number = math.floor(fraction * (shape.R * shape.K)) if number is None else number
        if number == 0 or limit == 0:
            fixed = 0
        else:
            lowest = _lowest if direct(weight) else lowest_per_row
            counts = lowest(weight, shape.R, group_size, use_max, number, limit)
    if fixed == 0 or limit == 0:
        return torch.zeros((), dtype=torch.int64, device=weight.device)
    plan = Rewiring(in_features, group_size, use_max, seed, first_row, fixed, level, counts, bound=bound)
    if batch is None:
        return _rewired(weight, indices, state, mean_state, plan)
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    most = fixed if fixed > 0 else limit
    for start, stop, listed in candidate_blocks(
        batch, weight, indices, shape, group_size, regrow, most, candidates, seed, first_row
    ):
        labels = slice(start * group_size, stop * group_size)
        total += _rewired(
            weight[labels],
            indices[start:stop],
            [s[labels] for s in state],
            [s[labels] for s in mean_state],
            plan._replace(
                first_row=first_row + start,
                counts=None if counts is None else counts[start:stop],
                candidates=listed,
            ),
        )
    return total
