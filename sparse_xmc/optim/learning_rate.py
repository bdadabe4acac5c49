"""Learning rates as pure functions of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

import math


def rate_factor(kind: str, step: int, total: int, warmup: float) -> float:
    """Share of the base learning rate at ``step`` of ``total``: a linear rise over ``warmup * total`` steps, then
    decay.

    Args:
        kind: ``"constant"``, ``"linear"`` (to 0 at the end) or ``"cosine"`` (to 0 at the end).
        warmup: share of the training in ``[0, 1)``.
    """
    rise = int(warmup * total)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(1, total - rise)
    if kind == "constant":
        return 1.0
    if kind == "linear":
        return 1 - done
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    raise ValueError(f"kind must be 'constant', 'linear' or 'cosine', got {kind!r}")
