"""The update of a fused head: what an optimizer hands over, and the arithmetic that both back ends carry out."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype

# fields of ``Update`` that are written, and those that are numbers of the rule
STATE = ("momentum_buffer", "second_moment", "bias_momentum_buffer", "bias_second_moment", "applied")
RULE = ("lr", "momentum", "weight_decay", "decay", "gain", "eps")


def _check(name: str, state: Tensor | None, dtype: torch.dtype, size: torch.Size, device: torch.device) -> None:
    if state is None:
        return
    if state.dtype != dtype:
        raise TypeError(f"{name} of the update must be {dtype}, got {state.dtype}")
    if state.device != device:
        raise ValueError(f"{name} of the update must be on the weight's device {device}, got {state.device}")
    if state.shape != size or not state.is_contiguous():
        raise ValueError(
            f"{name} of the update must be {list(size)} and contiguous, got {list(state.shape)} with strides "
            f"{state.stride()}"
        )


class Update(NamedTuple):
    """One update of a layer's parameters, in place, in the sweep that computes their gradients.

    In float32 (float64 for float64 inputs), for each label with the gradient ``g [K]`` of its weights::

        v = decay * v + gain * mean_k(g^2)                           if second_moment is given
        u = g / (sqrt(correction * v) + eps)                         (u = g without second_moment)
        u = u + weight_decay * w
        m = momentum * m + u                                         if momentum_buffer is given (u = m from here)
        w = w - lr * u

    The bias follows the same rule with its own state and without weight decay (mean over its single gradient). That is
    ``torch.optim.SGD`` without second_moment; row-wise Adagrad with decay = gain = 1; a row-wise Adam-like second
    moment with decay = beta2, gain = 1 - beta2 and the correction of ``applied``.

    ``g`` is the gradient of the loss times the factor that ``_contract.Scaling`` describes. If that factor or ``x`` is
    not finite then nothing is updated: weight, bias and state keep their bits, and nobody waits for the device.

    Args:
        momentum_buffer: ``[L, K]`` in weight's dtype, or None; bias_momentum_buffer: ``[L]`` in bias's dtype, or None.
        second_moment, bias_second_moment: ``[L]`` in the accumulation dtype, or None.
        lr: a number, or a 0-dim float64 tensor on weight's device that is read when the kernel runs.
        applied: 0-dim float64 on weight's device: how many updates were not skipped. This one adds itself, and the
            correction is ``1 / (1 - decay ** applied)``.
        correction: without ``applied``: 0-dim in the accumulation dtype on weight's device, or None for 1.
        stochastic: how bfloat16 and float16 weights, biases and momenta are rounded when stored: stochastically
            (unbiased, subnormals included) or to nearest even. A finite value saturates at the largest finite one and
            never becomes inf; inf and NaN pass through. Without effect on float32 and float64.
        seed, step: of the random bits; ``step`` is a number or a 0-dim int64 tensor on weight's device. They are
            Philox4x32 with 7 rounds, key = seed (64 bits), counter = (label, slot // 8, step mod 2^32, stream).
            Stream 0: weight, 1: momentum_buffer, 2: bias, 3: its momentum (slot 0). Slot k takes 16 bits: half
            (k % 2) (0 = low) of word (k % 8) // 2. A value lies a fraction f above the representable one next to it
            towards zero (f in units of their distance); with u the 16 bits it is rounded away from zero iff
            u >= 65536 - round(65536 f) (bfloat16: add u to the float32 bits and drop the low 16).
        checked: whether the state was looked at by ``check`` before; else the op does.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> sgd = ops.Update(lr=0.1, momentum=0.9, momentum_buffer=torch.zeros(100, 8))
        >>> [tensor.shape for tensor in sgd.state()]
        [torch.Size([100, 8])]
        >>> sgd.check(torch.zeros(100, 8), None)  # raises for another layer's parameters
    """

    momentum_buffer: Tensor | None = None
    second_moment: Tensor | None = None
    bias_momentum_buffer: Tensor | None = None
    bias_second_moment: Tensor | None = None
    lr: float | Tensor = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: float = 1.0
    gain: float = 1.0
    eps: float = 0.0
    applied: Tensor | None = None
    correction: Tensor | None = None
    stochastic: bool = True
    seed: int = 0
    step: int | Tensor = 0
    checked: bool = False

    @property
    def buffers(self) -> tuple[Tensor | None, ...]:
        """(momentum_buffer, second_moment, bias_momentum_buffer, bias_second_moment)"""
        return self[:4]

    def check(self, weight: Tensor, bias: Tensor | None) -> None:
        """Raises ``ValueError`` or ``TypeError`` unless the state is what an update of these parameters writes to."""
        device, acc = weight.device, compute_dtype(weight.dtype)
        _check("momentum_buffer", self.momentum_buffer, weight.dtype, weight.shape, device)
        _check("second_moment", self.second_moment, acc, weight.shape[:1], device)
        if bias is not None:
            _check("bias_momentum_buffer", self.bias_momentum_buffer, bias.dtype, bias.shape, device)
            _check("bias_second_moment", self.bias_second_moment, acc, bias.shape, device)

    def state(self) -> list[Tensor]:
        """The tensors that the update writes beside weight and bias."""
        tensors = [getattr(self, name) for name in STATE]
        return [tensor for tensor in tensors if tensor is not None]


class UpdateRule(Protocol):
    """What the fused head asks of an optimizer (``sparse_xmc.optim.fused``).

    Examples:
        Plain gradient descent is the least that a head takes as its optimizer:

        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear, ops
        >>> class Descent(ops.UpdateRule):
        ...     def attach(self, weight, bias):
        ...         pass
        ...     def next_update(self, weight, bias):
        ...         return ops.Update(lr=0.1)
        ...     def loss_scale(self, device):
        ...         return None
        ...     def end_step(self):
        ...         pass
        >>> head = FixedFanInLinear(16, 100, fan_in=8, seed=0)
        >>> head.fuse_optimizer(Descent())
        >>> x = torch.randn(2, 16)
        >>> first, _ = head.step(x, [[4, 7], [99]])
        >>> second, _ = head.step(x, [[4, 7], [99]])
        >>> bool(second < first)
        True
    """

    def attach(self, weight: Tensor, bias: Tensor | None) -> None:
        """Makes these the parameters that it updates."""

    def next_update(self, weight: Tensor, bias: Tensor | None) -> Update:
        """State and hyperparameters of the next update of these parameters; counts it."""

    def loss_scale(self, device: torch.device) -> Tensor | None:
        """The factor (0-dim) in upstream gradients that the update must divide by, or None for 1."""

    def end_step(self) -> Any:
        """Ends an optimizer step as ``step()`` does: the next update belongs to the next one."""
