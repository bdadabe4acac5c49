"""Several optimizers as one, for frameworks that know a single one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ChainedOptimizer(Optimizer):
    """Steps, saves and loads several optimizers together, e.g. that of an encoder and the fused one of its head.

    ``param_groups`` are those of the optimizers, one after the other, so that schedulers reach all of them. It serves
    Lightning's automatic optimization, ``transformers.Trainer(optimizers=...)`` and ``torch.amp.GradScaler``, whose check
    for inf and NaN then covers all gradients: after an overflow none of the optimizers steps.

    Args:
        optimizers: at least one; fused optimizers are attached to their heads before.

    Raises:
        TypeError: something is not a ``torch.optim.Optimizer``.
        ValueError: no optimizer, one without parameters, or a parameter that belongs to two.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.optim import ChainedOptimizer, FusedAdagrad
        >>> encoder, head = torch.nn.Linear(8, 16), FixedFanInLinear(16, 100, fan_in=8, seed=0)
        >>> of_head = FusedAdagrad(lr=0.05)
        >>> head.fuse_optimizer(of_head)
        >>> optimizer = ChainedOptimizer(torch.optim.AdamW(encoder.parameters()), of_head)
        >>> optimizer.zero_grad()
        >>> head.loss(encoder(torch.randn(2, 8)), [[4, 7], [99]]).backward()
        >>> optimizer.step()
        >>> optimizer.load_state_dict(optimizer.state_dict())
    """

    _step_supports_amp_scaling = True

    def __init__(self, *optimizers: Optimizer) -> None:
        if not optimizers:
            raise ValueError("optimizers must be at least one, got none")
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise TypeError(f"optimizers must be torch.optim.Optimizer, got {type(optimizer).__name__}")
            if not any(group["params"] for group in optimizer.param_groups):
                raise ValueError(
                    f"{type(optimizer).__name__} holds no parameters: attach fused optimizers to their head first"
                )
        counts = Counter(id(p) for o in optimizers for group in o.param_groups for p in group["params"])
        if any(count > 1 for count in counts.values()):
            raise ValueError("a parameter must belong to one optimizer, got one that stands in several or twice")
        self.optimizers = list(optimizers)
        shared = set.intersection(*(set(o.defaults) for o in optimizers))
        super().__init__([{"params": []}], {name: optimizers[0].defaults[name] for name in sorted(shared)})

    @property  # type: ignore[override]
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizers' own groups; what is written into one takes effect."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if groups:
            raise AttributeError("param_groups of a ChainedOptimizer are those of its optimizers: set theirs")

    @property  # type: ignore[override]
    def state(self) -> dict[Tensor, Any]:
        """The optimizers' own state of every parameter."""
        return {parameter: held for optimizer in self.optimizers for parameter, held in optimizer.state.items()}

    @state.setter
    def state(self, state: dict[Tensor, Any]) -> None:
        if state:
            raise AttributeError("state of a ChainedOptimizer is that of its optimizers: set theirs")

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "optimizers": self.optimizers}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuses: which optimizer is meant can't be known.

        Raises:
            ValueError: always.
        """
        if param_group["params"]:
            raise ValueError("a ChainedOptimizer takes no further parameters: add the group to one of its optimizers")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """``zero_grad`` of every optimizer."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """``closure`` once, then a step of every optimizer; returns what ``closure`` returned."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        overflow = found_inf is not None and bool(found_inf)
        for optimizer in self.optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False) and found_inf is not None:
                self._scaled_step(optimizer, scale, found_inf)
            elif not overflow:
                if scale is not None:
                    _unscale(optimizer, scale)
                optimizer.step()
        return value

    @staticmethod
    def _scaled_step(optimizer: Any, scale: Tensor | None, found_inf: Tensor) -> None:
        """A step of an optimizer that divides by the scale itself, called as GradScaler would."""
        optimizer.grad_scale, optimizer.found_inf = scale, found_inf
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf

    def state_dict(self) -> dict[str, Any]:
        """As torch's: parameters are numbered through all optimizers."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for optimizer in self.optimizers:
            first, own = sum(len(group["params"]) for group in groups), optimizer.state_dict()
            state.update({first + index: value for index, value in own["state"].items()})
            groups += [
                {**group, "params": [first + index for index in group["params"]]} for group in own["param_groups"]
            ]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state of every optimizer.

        Raises:
            ValueError: the groups are not as many, or hold other numbers of parameters, as those of the optimizers.
        """
        sizes = [len(group["params"]) for group in self.param_groups]
        found = [len(group["params"]) for group in state_dict["param_groups"]]
        if found != sizes:
            raise ValueError(f"the state is of groups of {found} parameters, the optimizers' groups hold {sizes}")
        groups = iter(state_dict["param_groups"])
        for optimizer in self.optimizers:
            own = [next(groups) for _ in optimizer.param_groups]
            held = {index for group in own for index in group["params"]}
            state = {index: value for index, value in state_dict["state"].items() if index in held}
            optimizer.load_state_dict({"state": state, "param_groups": own})


def _unscale(optimizer: Optimizer, scale: Tensor) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(scale.double().reciprocal().float().to(parameter.grad.device))
