"""Optimizers for the fused head: they hold state and hyperparameters, the arithmetic runs inside the loss kernel.

``head.fuse_optimizer(FusedSGD(0.1))`` makes ``head.loss(...).backward()`` update the head. They are torch optimizers, so LR
schedulers, ``state_dict``, closures and ``zero_grad``/``step`` in an ordinary loop work; ``step`` marks the end of an
optimizer step, before which a second backward (gradient accumulation, which an update in backward cannot do) is an error.
Hyperparameters in ``param_groups[0]`` are read at every update. For frameworks that step a single optimizer there is
``ChainedOptimizer``.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer

from sparse_xmc.ops._arguments import check_seed, compute_dtype
from sparse_xmc.ops.update import Update

_GLOBAL_PRE, _GLOBAL_POST = optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks
Kinds = dict[str, tuple[torch.Size, torch.dtype]]
_TORCHS_OWN = frozenset({"differentiable"})  # that torch adds to the defaults of a copied or loaded optimizer


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
        capturable: whether rate and count of updates live on the parameters' device (0-dim tensors in
            ``param_groups[0]``), where kernels read them: a step recorded in a CUDA graph then follows schedulers, which
            write a tensor's value, and counts on.

    Raises:
        ValueError, TypeError: a hyperparameter outside its range, or no number.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.optim import FusedAdagrad, FusedOptimizer
        >>> isinstance(FusedAdagrad(lr=0.05), FusedOptimizer)
        True
        >>> head, optimizer = FixedFanInLinear(16, 100, fan_in=8, seed=0), FusedAdagrad(lr=0.05)
        >>> optimizer.attach(head.weight, head.bias)  # what head.fuse_optimizer(optimizer) begins with
        >>> head.fuse_optimizer(optimizer)
        >>> optimizer.zero_grad()
        >>> head.loss(torch.randn(2, 16), [[4, 7], [99]]).backward()
        >>> optimizer.step()
        >>> state = optimizer.state_dict()
        >>> optimizer.load_state_dict(state)

        What an op asks of it:

        >>> update, scale = optimizer.next_update(head.weight, head.bias), optimizer.loss_scale(torch.device("cpu"))
        >>> optimizer.end_step()
    """

    _step_supports_amp_scaling = True  # GradScaler.step then calls step() without looking for gradients
    _adaptive = False
    capturable = False
    _updated = False  # since the last step()
    _ever_updated = False
    _placed: tuple[Any, ...] | None = None  # dtype, device and shape of the weight that state is for
    _checked: tuple[Any, ...] = (0,)  # state that fits

    def __init__(
        self,
        defaults: dict[str, Any],
        *,
        rounding: str,
        seed: int,
        grad_scaler: torch.amp.GradScaler | None,
        capturable: bool,
    ) -> None:
        if rounding not in ("stochastic", "nearest"):
            raise ValueError(f"rounding must be 'stochastic' or 'nearest', got {rounding!r}")
        for name in ("lr", "momentum", "weight_decay", "eps"):
            if not isinstance(defaults[name], (Real, Tensor)):
                raise TypeError(
                    f"{name} must be a number, got {type(defaults[name]).__name__} (a fused optimizer takes no parameters: "
                    "head.fuse_optimizer(optimizer) gives it the head's)"
                )
            if not defaults[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {defaults[name]}")
        check_seed(seed)
        self.grad_scaler, self.capturable = grad_scaler, capturable
        super().__init__([{"params": []}], {**defaults, "rounding": rounding, "seed": seed, "updates": 0})

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("grad_scaler", "capturable", "_updated", "_ever_updated")}
        return {**super().__getstate__(), **own}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuses: only the kernels of the head's loss apply this optimizer's updates.

        Raises:
            ValueError: always.
        """
        if self.param_groups:
            raise ValueError(
                f"{type(self).__name__} updates the one head that it is fused into and takes no further parameters: give "
                "them to another optimizer (optim.ChainedOptimizer makes one of both)"
            )
        super().add_param_group(param_group)

    def attach(self, weight: Tensor, bias: Tensor | None) -> None:
        """Makes these the parameters to update and allocates their state. Called by ``head.fuse_optimizer``.

        State from before is kept, in the parameters' dtype and on their device; gradients from before are dropped.

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
        self._place_state()

    def _place_state(self) -> None:
        """Puts all state where the parameters are, in their dtype."""
        parameters = self.param_groups[0]["params"]
        for parameter in parameters:
            self._allocate(parameter)
        self._place_counters()
        self._placed = parameters[0].dtype, parameters[0].device, parameters[0].shape
        self._checked = (0,)

    def _place_counters(self) -> None:
        """Puts rate and count of updates where they are read: on the parameters' device, or in Python."""
        group = self.param_groups[0]
        if self.capturable:
            device = group["params"][0].device
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64, device=device)
            group["updates"] = torch.as_tensor(group["updates"], dtype=torch.int64, device=device)
        else:
            group["updates"] = int(group["updates"])

    def _state_kinds(self, parameter: Tensor) -> Kinds:
        """Name, shape and dtype of all state that the parameter may have."""
        kinds: Kinds = {"momentum_buffer": (parameter.shape, parameter.dtype)}
        if self._adaptive:
            kinds["second_moment"] = (parameter.shape[:1], compute_dtype(parameter.dtype))
        return kinds

    def _allocate(self, parameter: Tensor) -> None:
        """Makes what the hyperparameters ask for and is not there; a momentum starts at zero whenever it is first used."""
        state, momentum = self.state[parameter], self.param_groups[0]["momentum"]
        for name, (shape, dtype) in self._state_kinds(parameter).items():
            held = state.get(name)
            if held is not None and held.shape == shape:
                state[name] = held.to(parameter.device, dtype)
            elif name != "momentum_buffer" or momentum > 0:
                state[name] = torch.zeros(shape, dtype=dtype, device=parameter.device)

    def _rule(self, weight: Tensor) -> tuple[float, float, float, Tensor | None]:
        """decay, gain, eps and applied of the next update of the second moments."""
        return 1.0, 1.0, 0.0, None

    def next_update(self, weight: Tensor, bias: Tensor | None) -> Update:
        """State and hyperparameters of the next update; see ``ops.UpdateRule``.

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
        self._updated = self._ever_updated = True
        group["updates"] += 1
        own, other = self.state[weight], {} if bias is None else self.state[bias]
        momentum = group["momentum"]
        if self._placed != (weight.dtype, weight.device, weight.shape) or (
            momentum > 0 and "momentum_buffer" not in own
        ):
            self._place_state()
        decay, gain, eps, applied = self._rule(weight)
        # by position: keywords would take twice the time
        update = Update(
            own["momentum_buffer"] if momentum > 0 else None,
            own.get("second_moment"),
            other.get("momentum_buffer") if momentum > 0 else None,
            other.get("second_moment"),
            group["lr"] if self.capturable else float(group["lr"]),
            momentum,
            group["weight_decay"],
            decay,
            gain,
            eps,
            applied,
            None,
            group["rounding"] == "stochastic",
            check_seed(group["seed"]),
            group["updates"],
            True,
        )
        if not all(map(operator.is_, update, self._checked)):  # other tensors than at the update before
            update.check(weight, bias)
            self._checked = update.buffers
        return update

    def loss_scale(self, device: torch.device) -> Tensor | None:
        """The GradScaler's factor as a 0-dim tensor, read without waiting for the device."""
        return None if self.grad_scaler is None else self.grad_scaler.scale(torch.ones((), device=device))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's. With a ``GradScaler``, which leaves out ``step`` after an overflow, it begins a new step too."""
        if self.grad_scaler is not None:
            self._updated = False
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Ends the optimizer step; the update itself happened in backward, that of ``closure`` if there is one.

        Returns:
            What ``closure`` returned.

        Raises:
            RuntimeError: no loss of the head has updated it so far; a parameter has a gradient, which would be lost; or
                a ``GradScaler`` calls that the optimizer was not made with.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        self._end()
        return value

    def end_step(self) -> None:
        """``step()`` for the op that updates and ends the step at once; as fast as nobody listens.

        torch wraps ``step`` in hooks and an entry for its profiler, which take longer than a small update.
        """
        listened = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or _GLOBAL_PRE or _GLOBAL_POST
        kind: Any = type(self)
        wrapped = self.__dict__.get("step")
        if (
            listened
            or (wrapped is not None and not hasattr(wrapped, "_wrapped_by_lr_sched"))
            or not _has_own_step(kind)
            or torch.autograd._profiler_enabled()
            or torch.compiler.is_compiling()
        ):
            self.step()
            return
        self._opt_called = True  # what a scheduler's wrapper notes
        self._end()

    def _end(self) -> None:
        """Raises unless the step's update was all that the head asked for."""
        name = type(self).__name__
        if self.grad_scaler is None and getattr(self, "found_inf", None) is not None:
            raise RuntimeError(
                "a GradScaler scaled the loss, so that the update in backward was too large by its factor: give it to the "
                f"optimizer, {name}(..., grad_scaler=scaler)"
            )
        if not self.param_groups[0]["params"]:
            raise RuntimeError(
                f"{name} belongs to no head, so that nothing is trained: call head.fuse_optimizer(optimizer)"
            )
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                raise RuntimeError(
                    f"a parameter {list(parameter.shape)} has a gradient, which a fused optimizer does not apply: train with "
                    "head.loss or head.step instead of head(x)"
                )
        if not self._ever_updated:
            raise RuntimeError(
                f"step() of {name} without an update of its head: a fused optimizer works in the backward of head.loss (or "
                "in head.step), and no loss of the head went that way"
            )
        self._updated = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps its own dtype (torch casts it to the parameter's) and its shape is checked.

        Raises:
            ValueError: the state is that of another kind of optimizer or of parameters of other shapes; or the optimizer
                belongs to no head yet.
        """
        groups, parameters = state_dict["param_groups"], self.param_groups[0]["params"]
        if len(groups) == 1 and groups[0]["params"] and not parameters:
            raise ValueError("the optimizer belongs to no head yet: call head.fuse_optimizer before load_state_dict")
        if len(groups) == 1 and len(groups[0]["params"]) == len(parameters):  # else torch raises
            missing = [name for name in self.defaults if name not in groups[0] and name not in _TORCHS_OWN]
            if missing:
                raise ValueError(f"the state is of another kind of optimizer: it has no {', '.join(missing)}")
            for index, parameter in zip(groups[0]["params"], parameters, strict=True):
                self._check_state(parameter, state_dict["state"].get(index, {}))
        super().load_state_dict(state_dict)
        for index, parameter in zip(groups[0]["params"], parameters, strict=True):
            kinds = self._state_kinds(parameter)
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[parameter][name] = value.to(parameter.device, kinds[name][1], copy=True)
        if parameters:
            self._place_counters()
        self._updated = False

    def _check_state(self, parameter: Tensor, state: dict[str, Tensor]) -> None:
        """Raises unless the state is whole; without a momentum it is (none was used until then)."""
        kinds = self._state_kinds(parameter)
        wanted = {name: list(shape) for name, (shape, _) in kinds.items() if name != "momentum_buffer" or name in state}
        found = {name: list(value.shape) for name, value in state.items()}
        if found != wanted:
            raise ValueError(
                f"the state does not fit a parameter {list(parameter.shape)}: it holds {found}, needed is {wanted}"
            )


@functools.cache
def _has_own_step(kind: Any) -> bool:
    """Whether the class has ``FusedOptimizer.step``, which torch wraps in every class that is instantiated."""
    return inspect.unwrap(kind.step) is inspect.unwrap(FusedOptimizer.step)
