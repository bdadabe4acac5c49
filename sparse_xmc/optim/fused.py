"""The update rules that the fused head knows, as optimizers: SGD, row-wise Adagrad, Adam with one moment per label."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_xmc.optim.fused_optimizer import FusedOptimizer, Kinds


class FusedSGD(FusedOptimizer):
    """SGD with momentum and weight decay, the rule of ``torch.optim.SGD`` (no dampening, no Nesterov).

    Weight decay applies to the weights, not to the bias. There is no momentum buffer where ``momentum`` is 0.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.optim import FusedSGD
        >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
        >>> head.fuse_optimizer(FusedSGD(lr=0.1, momentum=0.9))
        >>> loss, dx = head.step(torch.randn(2, 16), [[4, 7], [99]])
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
        capturable: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": 0.0}
        super().__init__(defaults, rounding=rounding, seed=seed, grad_scaler=grad_scaler, capturable=capturable)


class FusedAdagrad(FusedOptimizer):
    """Row-wise Adagrad: one scalar of state per label, and one for its bias.

    The step of a label is ``lr * g / (sqrt(sum over steps of mean(g^2)) + eps)``; ``weight_decay`` is decoupled. Labels
    differ by orders of magnitude in how often they are positive, which a scalar per label follows at ``1 / K`` of the
    memory of a scalar per connection. ``FusedAdam`` was more accurate on EURLEX57K (``reports/findings.md``).

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.optim import FusedAdagrad
        >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
        >>> optimizer = FusedAdagrad(lr=0.05)
        >>> head.fuse_optimizer(optimizer)
        >>> head.loss(torch.randn(2, 16), [[4, 7], [99]]).backward()
        >>> optimizer.step()
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
        capturable: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eps": eps}
        super().__init__(defaults, rounding=rounding, seed=seed, grad_scaler=grad_scaler, capturable=capturable)

    def _rule(self, weight: Tensor) -> tuple[float, float, float, Tensor | None]:
        return 1.0, 1.0, self.param_groups[0]["eps"], None


class FusedAdam(FusedOptimizer):
    """Adam with one second moment per label, and one for its bias; heavy-ball ``momentum`` in place of a first moment.

    The step of a label is ``lr * g / (sqrt(v) + eps)`` where ``v`` is the exponential average of ``mean(g^2)`` with rate
    ``beta2``, bias-corrected; ``weight_decay`` is decoupled. With ``momentum`` the step is up to ``1 / (1 - momentum)``
    times as long.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.optim import FusedAdam, rate_multiplier
        >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
        >>> optimizer = FusedAdam(lr=1e-3 * rate_multiplier(head))
        >>> head.fuse_optimizer(optimizer)
        >>> schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
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
        capturable: bool = False,
    ) -> None:
        if not 0 <= beta2 < 1:
            raise ValueError(f"beta2 must lie in [0, 1), got {beta2}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "beta2": beta2, "eps": eps}
        super().__init__(defaults, rounding=rounding, seed=seed, grad_scaler=grad_scaler, capturable=capturable)

    def _state_kinds(self, parameter: Tensor) -> Kinds:
        """Also the number of updates that were not skipped, which only the device knows."""
        kinds = super()._state_kinds(parameter)
        if parameter is self.param_groups[0]["params"][0]:
            kinds["step"] = (torch.Size(), torch.float64)
        return kinds

    def _rule(self, weight: Tensor) -> tuple[float, float, float, Tensor | None]:
        group = self.param_groups[0]
        beta2 = group["beta2"]
        return beta2, 1 - beta2, group["eps"], self.state[weight]["step"]
