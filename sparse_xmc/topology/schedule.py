"""When a layer is rewired and how much: one line in any training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from sparse_xmc.ops import RegrowBatch

DECAYS = ("constant", "linear", "cosine")
_ODD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive steps get unrelated seeds


class Rewirable(Protocol):
    @property
    def rewire_(self) -> Callable[..., Tensor]: ...


class RewireSchedule:
    """Calls ``layer.rewire_`` every ``interval`` optimizer steps between two points of the training.

    The amount (``fraction`` or ``threshold``) starts at the given value and decays to ``final`` at the end of the
    rewiring, not of the training. Seeds depend on ``seed`` and the step only: a resumed run rewires as an unbroken one.

    Args:
        layer: anything with ``rewire_``, as ``FixedFanInLinear``.
        total_steps: optimizer steps of the whole training.
        fraction, threshold: exactly one: amount at the start of the rewiring.
        interval: optimizer steps between rewirings.
        start, end: shares of the training, ``0 <= start <= end <= 1``: rewiring happens in steps
            ``start * total_steps < step <= end * total_steps``.
        decay: "constant", "linear" or "cosine".
        final: amount at the end of the rewiring ("linear" and "cosine").
        optimizer: whose state follows the connections.
        seed: of the regrown connections.
        options: further arguments of ``rewire_``: scope, regrow, init, candidates.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.topology import RewireSchedule
        >>> head = FixedFanInLinear(64, 100, fan_in=16, seed=0)
        >>> optimizer = torch.optim.Adam(head.parameters())
        >>> schedule = RewireSchedule(head, total_steps=30, fraction=0.25, interval=10, optimizer=optimizer)
        >>> for step in range(1, 31):
        ...     head.loss(torch.randn(2, 64), [[4, 7], [99]]).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     rewired = schedule.step()
        ...     if schedule.due(step):
        ...         print(f"step {step}: {schedule.amount(step):.3f} of the connections, {int(rewired)} in all")
        step 10: 0.123 of the connections, 100 in all
        >>> schedule.seed_at(10) == schedule.seed_at(20)
        False
    """

    def __init__(
        self,
        layer: Rewirable,
        total_steps: int,
        *,
        fraction: float | None = None,
        threshold: float | None = None,
        interval: int = 100,
        start: float = 0.0,
        end: float = 0.66,
        decay: str = "cosine",
        final: float = 0.0,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if (fraction is None) == (threshold is None):
            raise ValueError(
                f"give exactly one of fraction and threshold, got fraction={fraction}, threshold={threshold}"
            )
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
        if threshold is not None and not threshold >= 0:
            raise ValueError(f"threshold must not be negative or NaN, got {threshold}")
        if interval < 1:
            raise ValueError(f"interval must be at least 1, got {interval}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 0 <= start <= end <= 1:
            raise ValueError(f"start and end must satisfy 0 <= start <= end <= 1, got start={start}, end={end}")
        if decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
        self.name, self.initial = ("fraction", fraction) if threshold is None else ("threshold", threshold)
        if not 0 <= final <= (self.initial or 0.0):
            raise ValueError(f"final must lie between 0 and the initial amount {self.initial}, got {final}")
        self.layer, self.total_steps, self.interval = layer, total_steps, interval
        self.start, self.end, self.decay, self.final = start, end, decay, final
        self.optimizer, self.seed, self.options = optimizer, seed, options
        self.last_step = 0

    def due(self, step: int) -> bool:
        """Whether the layer is rewired after optimizer step ``step`` (from 1)."""
        inside = self.start * self.total_steps < step <= self.end * self.total_steps
        return inside and step % self.interval == 0

    def amount(self, step: int) -> float:
        """The fraction or threshold at ``step``."""
        first, last = self.start * self.total_steps, self.end * self.total_steps
        share = min(1.0, max(0.0, (step - first) / (last - first))) if last > first else 0.0
        initial = float(self.initial or 0.0)
        if self.decay == "constant":
            return initial
        left = 1 - share if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.final + (initial - self.final) * left

    def seed_at(self, step: int) -> int:
        """The seed of the rewiring after ``step``."""
        return (self.seed + _ODD * step) % (1 << 63)

    def step(self, batch: RegrowBatch | None = None) -> Tensor | None:
        """Counts one optimizer step and rewires if it is due: the number of new connections on the device, else None.

        ``batch`` is for ``regrow="gradient"`` and ``"informed"`` and may be given at every step.
        """
        self.last_step += 1
        if not self.due(self.last_step):
            return None
        options = {**self.options, self.name: self.amount(self.last_step)}
        return self.layer.rewire_(optimizer=self.optimizer, seed=self.seed_at(self.last_step), batch=batch, **options)

    def __call__(self, step: int) -> None:
        """Callback for a trainer that counts the steps itself: ``step`` has just been completed."""
        self.last_step = step - 1
        self.step()

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_step = int(state["last_step"])
