"""Optimizers for the fused head: they hold state and hyperparameters, the arithmetic runs inside the loss kernel.

``head.fuse_optimizer(FusedSGD(0.1))`` makes ``head.loss(...).backward()`` update the head. They are torch optimizers, so LR
schedulers, ``state_dict`` and ``zero_grad``/``step`` in an ordinary loop work; ``step`` marks the end of an optimizer step,
before which a second backward (gradient accumulation, which an update in backward cannot do) is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.step import Update


class FusedOptimizer(torch.optim.Optimizer):
    """Common part of the fused optimizers.

    Args:
        defaults: hyperparameters, kept in ``param_groups[0]``.
        rounding: of bfloat16 and float16 parameters and momenta: "stochastic" (unbiased) or "nearest". With "nearest"
            an update below half an ulp is lost; bfloat16 weights then stop learning at small rates.
        seed: of stochastic rounding. The noise depends on it, the label, the slot and the count of updates only.
        grad_scaler: the ``torch.amp.GradScaler`` that scales the loss, if any; its factor is removed from the update.

    Raises:
        ValueError: a hyperparameter outside its range.
    """

    _step_supports_amp_scaling = True  # GradScaler.step then calls step() without looking for gradients

    def __init__(
        self, defaults: dict[str, Any], *, rounding: str, seed: int, grad_scaler: torch.amp.GradScaler | None
    ) -> None:
        if rounding not in ("stochastic", "nearest"):
            raise ValueError(f"rounding must be 'stochastic' or 'nearest', got {rounding!r}")
        for name in ("lr", "momentum", "weight_decay", "eps"):
            if not defaults[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {defaults[name]}")
        self.grad_scaler = grad_scaler
        self._updated = False
        super().__init__([{"params": []}], {**defaults, "rounding": rounding, "seed": seed, "updates": 0})

    def attach(self, weight: Tensor, bias: Tensor | None) -> None:
        """Makes these the parameters to update and allocates their state. Called by ``head.fuse_optimizer``.

        Raises:
            RuntimeError: it already updates other parameters.
        """
        parameters = [p for p in (weight, bias) if p is not None]
        group = self.param_groups[0]
        if group["params"] and any(a is not b for a, b in zip(group["params"], parameters, strict=True)):
            raise RuntimeError("a fused optimizer updates one head; this one already has another's parameters")
        group["params"] = parameters
        for parameter in parameters:
            self.state[parameter] = self._initial_state(parameter)

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = {}
        if self.param_groups[0]["momentum"] > 0:
            state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
        if self._adaptive:
            acc = compute_dtype(parameter.dtype)
            state["second_moment"] = torch.zeros(parameter.shape[0], dtype=acc, device=parameter.device)
        return state

    _adaptive = False

    def _scalars(self, group: dict[str, Any], count: int) -> dict[str, float]:
        """decay, gain, correction and eps of update number ``count`` (from 1)."""
        return {}

    def next_update(self, weight: Tensor, bias: Tensor | None) -> Update:
        """State and hyperparameters of the next update; see ``ops.step.UpdateRule``.

        Raises:
            RuntimeError: the parameters are not this optimizer's, or there was an update since the last ``step()``.
        """
        group = self.param_groups[0]
        if not group["params"] or group["params"][0] is not weight:
            raise RuntimeError("the optimizer was not attached to this head: call head.fuse_optimizer(optimizer)")
        if self._updated:
            raise RuntimeError(
                "a second backward before optimizer.step(): a fused optimizer updates in backward and cannot accumulate "
                "gradients; call step() after each backward, or train with larger batches"
            )
        self._updated = True
        group["updates"] += 1
        own, other = self.state[weight], {} if bias is None else self.state[bias]
        return Update(
            own.get("momentum_buffer"),
            own.get("second_moment"),
            other.get("momentum_buffer"),
            other.get("second_moment"),
            lr=float(group["lr"]),
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            **self._scalars(group, group["updates"]),
            stochastic=group["rounding"] == "stochastic",
            seed=group["seed"],
            step=group["updates"],
        )

    def loss_scale(self, device: torch.device) -> Tensor | None:
        """The GradScaler's factor as a 0-dim tensor, read without waiting for the device."""
        return None if self.grad_scaler is None else self.grad_scaler.scale(torch.ones((), device=device))

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Ends the optimizer step; the update itself happened in backward."""
        if closure is not None:
            raise ValueError("a fused optimizer updates in backward and takes no closure")
        self._updated = False

    def state_tensors(self, weight: Tensor) -> list[Tensor]:
        """State with one number per connection, ``[L, K]``: what a rewire resets where a connection changed."""
        return [t for t in self.state.get(weight, {}).values() if t.shape == weight.shape]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps its own dtype (torch casts it to the parameter's)."""
        super().load_state_dict(state_dict)
        for index, parameter in enumerate(self.param_groups[0]["params"]):
            for name, value in state_dict["state"].get(index, {}).items():
                kind = compute_dtype(parameter.dtype) if name == "second_moment" else parameter.dtype
                self.state[parameter][name] = value.to(parameter.device, kind, copy=True)


class FusedSGD(FusedOptimizer):
    """SGD with momentum and weight decay, the rule of ``torch.optim.SGD`` (no dampening, no Nesterov).

    Weight decay applies to the weights, not to the bias. There is no momentum buffer where ``momentum`` is 0.
    """

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        rounding: str = "stochastic",
        seed: int = 0,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": 0.0}
        super().__init__(defaults, rounding=rounding, seed=seed, grad_scaler=grad_scaler)


class FusedAdagrad(FusedOptimizer):
    """Row-wise Adagrad: one scalar of state per label, and one for its bias.

    The step of a label is ``lr * g / (sqrt(sum over steps of mean(g^2)) + eps)``; ``weight_decay`` is decoupled. Labels
    differ by orders of magnitude in how often they are positive, which a scalar per label follows at ``1 / K`` of the
    memory of a scalar per connection. ``FusedAdam`` was more accurate on EURLEX57K (``reports/findings.md``).
    """

    _adaptive = True

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        *,
        rounding: str = "stochastic",
        seed: int = 0,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        super().__init__(defaults, rounding=rounding, seed=seed, grad_scaler=grad_scaler)

    def _scalars(self, group: dict[str, Any], count: int) -> dict[str, float]:
        return {"decay": 1.0, "gain": 1.0, "correction": 1.0, "eps": group["eps"]}


class FusedAdam(FusedOptimizer):
    """Adam with one second moment per label, and one for its bias; heavy-ball ``momentum`` in place of a first moment.

    The step of a label is ``lr * g / (sqrt(v) + eps)`` where ``v`` is the exponential average of ``mean(g^2)`` with rate
    ``beta2``, bias-corrected; ``weight_decay`` is decoupled. With ``momentum`` the step is up to ``1 / (1 - momentum)``
    times as long.
    """

    _adaptive = True

    def __init__(
        self,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        beta2: float = 0.999,
        eps: float = 1e-8,
        *,
        rounding: str = "stochastic",
        seed: int = 0,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if not 0 <= beta2 < 1:
            raise ValueError(f"beta2 must lie in [0, 1), got {beta2}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "beta2": beta2, "eps": eps}
        super().__init__(defaults, rounding=rounding, seed=seed, grad_scaler=grad_scaler)

    def _scalars(self, group: dict[str, Any], count: int) -> dict[str, float]:
        beta2 = group["beta2"]
        return {"decay": beta2, "gain": 1 - beta2, "correction": 1 / (1 - beta2**count), "eps": group["eps"]}
