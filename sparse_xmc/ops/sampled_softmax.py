"""Softmax cross-entropy over a sample of the labels, for heads whose full softmax costs too much.

The sum over all labels ``Z = exp(z_t) + sum over j != t of exp(z_j)`` of a row with target ``t`` is estimated from ``n``
draws ``j_i`` with probabilities ``q``, shared by the rows of the batch, as ``exp(z_t) + sum over i with j_i != t of
exp(z_{j_i} - log(n q_{j_i}))``, whose expectation is ``Z``: the target, which is always there, is not corrected. Only the
drawn labels and the targets are read: no ``[B, L]`` tensor, ``B * n`` logits.

Sources: Bengio and Senecal, "Adaptive importance sampling to accelerate training of a neural probabilistic language
model", IEEE TNN 2008; in-batch negatives with log q: Yi et al., "Sampling-bias-corrected neural modeling for large corpus
item recommendations", RecSys 2019.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_xmc.ops._arguments import (
    autocast,
    check_constant,
    check_layer,
    check_positive_int,
    check_tensor,
    compute_dtype,
)
from sparse_xmc.ops.cross_entropy import IGNORE_INDEX, Softmax, check_classes
from sparse_xmc.ops.linear import fixed_fan_in_linear

_NEVER = 1e30  # a logarithm beyond all others, whose differences are finite
Sampling = Literal["uniform", "popularity", "in_batch"]


def fixed_fan_in_sampled_softmax(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    sampling: Sampling = "uniform",
    num_negatives: int | None = None,
    frequencies: Tensor | None = None,
    reduction: str = "mean",
    group_size: int = 1,
    ignore_index: int = IGNORE_INDEX,
    sparse_gradient: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """An estimate of ``fixed_fan_in_loss(..., loss="cross_entropy")`` from ``num_negatives`` labels.

    Args:
        x, weight, indices, bias, group_size: as in ``fixed_fan_in_linear``.
        targets: class of every row, integers ``[B]``.
        sampling: where the negatives come from: "uniform" over all labels; "popularity": in proportion to ``frequencies``;
            "in_batch": the targets of the batch, which are taken to be drawn in proportion to ``frequencies``.
        num_negatives: ``n``, draws with replacement; for "in_batch" the number of targets.
        frequencies: ``[L]`` counts or weights of the labels in the training data, for "popularity" and "in_batch". A
            label of frequency 0 is never drawn as a negative, so that nothing lowers its score: add a constant to draw it.
        reduction: "mean" over the rows that count, or "sum".
        ignore_index: target of rows that do not count.
        sparse_gradient: whether the gradient of ``weight`` is a sparse COO tensor of the rows that were read, for
            ``optim.RowSparseAdagrad`` or ``torch.optim.SparseAdam``; else it is dense ``[L, K]``.
        generator: of the draws; None: torch's global one.

    Returns:
        0-dim, in float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value, is missing, or has no effect.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> x, weight = torch.randn(2, 16), torch.zeros(100, 8)
        >>> indices = ops.init_indices(100, 16, 8, seed=0)
        >>> loss = ops.fixed_fan_in_sampled_softmax(x, weight, indices, None, torch.tensor([4, 99]), num_negatives=20)
        >>> 4 < float(loss) < 5  # of equal scores the softmax over all labels has log 100 = 4.6
        True
    """
    shape = check_layer(x, weight, indices, bias, group_size)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    flat = autocast(x).reshape(-1, shape.D)
    targets = check_classes(targets, x.shape[:-1], Softmax(0.0, None, ignore_index, 0, shape.L), x.device)
    counted = targets != ignore_index
    target = torch.where(counted, targets, 0)
    share = _shares(sampling, num_negatives, frequencies, shape.L, x.device)
    negatives, log_count = _draw(sampling, num_negatives, share, target, counted, shape.L, generator)

    def rows_of(labels: Tensor) -> Tensor:
        return F.embedding(labels, weight, sparse=sparse_gradient)

    wide = compute_dtype(x.dtype)
    own_bias = None if bias is None else bias[negatives]
    scores = fixed_fan_in_linear(flat, rows_of(negatives), indices[negatives // group_size], own_bias)
    scores = scores.to(wide) - log_count.to(wide)
    scores = scores.masked_fill(negatives == target[:, None], -_NEVER)
    own = (flat.gather(1, indices[target // group_size].long()).to(wide) * rows_of(target)).sum(1)
    if bias is not None:
        own = own + bias[target]
    losses = torch.logaddexp(scores.logsumexp(1), own) - own
    total = torch.where(counted, losses, 0).sum()
    return total if reduction == "sum" else total / counted.sum()


def _shares(
    sampling: str, num_negatives: int | None, frequencies: Tensor | None, L: int, device: torch.device
) -> Tensor | None:
    """Probability of every label to be drawn ``[L]`` in float64; None for uniform draws."""
    if sampling not in ("uniform", "popularity", "in_batch"):
        raise ValueError(f"sampling must be 'uniform', 'popularity' or 'in_batch', got {sampling!r}")
    if sampling == "in_batch":
        if num_negatives is not None:
            raise ValueError(f"num_negatives of sampling='in_batch' is the number of targets, got {num_negatives}")
    elif num_negatives is None:
        raise ValueError(f"sampling={sampling!r} needs num_negatives, the number of labels that are drawn")
    else:
        check_positive_int("num_negatives", num_negatives)
    if sampling == "uniform":
        if frequencies is not None:
            raise ValueError("frequencies have no effect on sampling='uniform': choose 'popularity' or 'in_batch'")
        return None
    if frequencies is None:
        raise ValueError(f"sampling={sampling!r} needs frequencies [{L}], the labels' counts in the training data")
    check_tensor("frequencies", frequencies)
    check_constant("frequencies", frequencies)
    if tuple(frequencies.shape) != (L,) or frequencies.device != device:
        raise ValueError(
            f"frequencies must be [{L}] on {device}, got {list(frequencies.shape)} on {frequencies.device}"
        )
    weights = frequencies.detach().double()
    total = weights.sum()
    if device.type == "cpu" and not (bool((weights >= 0).all()) and bool(total > 0) and bool(total.isfinite())):
        raise ValueError("frequencies must be finite, not negative and not all zero")
    return weights / total


def _draw(
    sampling: str,
    num_negatives: int | None,
    share: Tensor | None,
    target: Tensor,
    counted: Tensor,
    L: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Drawn labels ``[n]`` and the logarithm of the number of times that each is expected among them."""
    if share is None:
        assert num_negatives is not None
        negatives = torch.randint(L, (num_negatives,), device=target.device, generator=generator)
        return negatives, torch.full((), num_negatives / L, dtype=torch.float64, device=target.device).log()
    if sampling == "popularity":
        assert num_negatives is not None
        at = torch.rand(num_negatives, dtype=torch.float64, device=target.device, generator=generator)
        ends = share.cumsum(0)
        negatives = torch.searchsorted(ends, at * ends[-1], right=True).clamp(max=L - 1)
        return negatives, (share[negatives] * num_negatives).log()
    expected = share[target] * counted.sum()
    if target.device.type == "cpu" and bool(((expected == 0) & counted).any()):
        label = int(target[(expected == 0) & counted][0])
        raise ValueError(f"frequencies must be positive for the batch's targets, label {label} has 0")
    return target, torch.where(counted, expected.log(), _NEVER)
