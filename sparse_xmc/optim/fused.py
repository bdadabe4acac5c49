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

from sparse_xmc.ops._arguments import check_seed, compute_dtype
from sparse_xmc.ops.step import Update


class FusedOptimizer(torch.optim.Optimizer):
    """Common part of the fused optimizers.

    Args:
        defaults: hyperparameters, kept in ``param_groups[0]``.
        rounding: of bfloat16 and float16 parameters and momenta: "stochastic" (unbiased) or "nearest". With "nearest"
            an update below half an ulp is lost; bfloat16 weights then stop learning at small rates.
        seed: of stochastic rounding. The noise depends on it, the label, the slot and the count of updates only.
        grad_scaler: the ``torch.amp.GradScaler`` that scales the loss, if any; its factor is removed from the update. It
            looks for inf in the gradients of the other optimizers, so it needs one beside this; a head on its own has no
            use for it, since the loss and its gradients are computed in float32.

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
        check_seed(seed)
        self.grad_scaler = grad_scaler
        self._updated = False
        super().__init__([{"params": []}], {**defaults, "rounding": rounding, "seed": seed, "updates": 0})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "grad_scaler": self.grad_scaler, "_updated": self._updated}

    def attach(self, weight: Tensor, bias: Tensor | None) -> None:
        """Makes these the parameters to update and allocates their state. Called by ``head.fuse_optimizer``.

        State that fits the parameters is kept; gradients from before are dropped.

        Raises:
            RuntimeError: it already updates other parameters.
        """
        parameters = [p for p in (weight, bias) if p is not None]
        group = self.param_groups[0]
        if group["params"] and any(a is not b for a, b in zip(group["params"], parameters, strict=True)):
            raise RuntimeError("a fused optimizer updates one head; this one already has another's parameters")
        group["params"] = parameters
        for parameter in parameters:
            parameter.grad = None
            kinds = self._state_kinds(parameter, self.param_groups[0])
            known = {name: (value.shape, value.dtype) for name, value in self.state[parameter].items()}
            if known != kinds or any(value.device != parameter.device for value in self.state[parameter].values()):
                self.state[parameter] = {
                    name: torch.zeros(shape, dtype=dtype, device=parameter.device)
                    for name, (shape, dtype) in kinds.items()
                }

    def _state_kinds(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Name, shape and dtype of the parameter's state under these hyperparameters."""
        kinds = {}
        if group["momentum"] > 0:
            kinds["momentum_buffer"] = (parameter.shape, parameter.dtype)
        if self._adaptive:
            kinds["second_moment"] = (parameter.shape[:1], compute_dtype(parameter.dtype))
        return kinds

    _adaptive = False

    def _rule(self, weight: Tensor, scale: Tensor) -> dict[str, Any]:
        """decay, gain, correction and eps of the next update of the second moments."""
        return {}

    def next_update(self, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Update:
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
            **self._rule(weight, scale),
            stochastic=group["rounding"] == "stochastic",
            seed=check_seed(group["seed"]),
            step=group["updates"],
        )

    def loss_scale(self, device: torch.device) -> Tensor | None:
        """The GradScaler's factor as a 0-dim tensor, read without waiting for the device."""
        return None if self.grad_scaler is None else self.grad_scaler.scale(torch.ones((), device=device))

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Ends the optimizer step; the update itself happened in backward.

        Raises:
            RuntimeError: a parameter has a gradient, which would be lost; or a ``GradScaler`` calls that the optimizer
                was not made with.
        """
        if closure is not None:
            raise ValueError("a fused optimizer updates in backward and takes no closure")
        self._updated = False
        if self.grad_scaler is None and getattr(self, "grad_scale", None) is not None:
            raise RuntimeError(
                "a GradScaler scaled the loss, so that the update in backward was too large by its factor: give it to the "
                f"optimizer, {type(self).__name__}(..., grad_scaler=scaler)"
            )
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                raise RuntimeError(
                    f"a parameter {list(parameter.shape)} has a gradient, which a fused optimizer does not apply: train with "
                    "head.loss or head.step instead of head(x)"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps its own dtype (torch casts it to the parameter's) and its shape is checked.

        Raises:
            ValueError: the state is that of another kind of optimizer or of parameters of other shapes.
        """
        group = state_dict["param_groups"][0]
        parameters = self.param_groups[0]["params"]
        if len(group["params"]) == len(parameters):  # else torch raises
            missing = [name for name in self.defaults if name not in group]
            if missing:
                raise ValueError(f"the state is of another kind of optimizer: it has no {', '.join(missing)}")
            for index, parameter in zip(group["params"], parameters, strict=True):
                wanted = {name: list(shape) for name, (shape, _) in self._state_kinds(parameter, group).items()}
                found = {name: list(value.shape) for name, value in state_dict["state"].get(index, {}).items()}
                if found != wanted:
                    raise ValueError(
                        f"the state does not fit a parameter {list(parameter.shape)}: it holds {found}, needed is {wanted}"
                    )
        super().load_state_dict(state_dict)
        for index, parameter in zip(group["params"], parameters, strict=True):
            for name, (_, dtype) in self._state_kinds(parameter, group).items():
                value = state_dict["state"][index][name]
                self.state[parameter][name] = value.to(parameter.device, dtype, copy=True)


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

    def _rule(self, weight: Tensor, scale: Tensor) -> dict[str, Any]:
        return {"decay": 1.0, "gain": 1.0, "eps": self.param_groups[0]["eps"]}


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

    def _state_kinds(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Also the number of updates that were not skipped, which only the device knows."""
        kinds = super()._state_kinds(parameter, group)
        if parameter is self.param_groups[0]["params"][0]:
            kinds["step"] = (torch.Size(), torch.float64)
        return kinds

    def _rule(self, weight: Tensor, scale: Tensor) -> dict[str, Any]:
        group, state = self.param_groups[0], self.state[weight]
        beta2 = group["beta2"]
        state["step"] = state["step"].to(weight.device) + scale.isfinite()
        correction = (1 / (1 - beta2 ** state["step"])).to(compute_dtype(weight.dtype))
        return {"decay": beta2, "gain": 1 - beta2, "correction": correction, "eps": group["eps"]}
