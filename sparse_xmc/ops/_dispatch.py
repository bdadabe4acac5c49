"""How an op reaches its kernels: straight in eager code, through torch's dispatcher where something watches its calls.

The dispatcher costs more than a small layer's arithmetic, and only tracers and tensor subclasses have a use for it. For
them every op is also defined in the library ``sparse_xmc``, so that a graph holds one node for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sparse_xmc.ops._flops import announce

_PLAIN = frozenset((Tensor, torch.nn.Parameter))
_LIBRARY = torch.library.Library("sparse_xmc", "DEF")


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines ``sparse_xmc::<schema>`` with its kernel for every device and its shapes, and returns it.

    Programs that were exported with a schema hold it forever: one that was released is never changed, only joined by
    another (``_old_schemas.py``). What an implementation writes to, it reports by ``mutated``.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, torch._disable_dynamo(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparse_xmc::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.sparse_xmc, name).default


def transforming() -> bool:
    """Whether a functorch transform (vmap, grad, ...) or a level of forward-mode differentiation is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def watched() -> bool:
    """Whether something traces, profiles or transforms the calls of operations."""
    if torch.compiler.is_compiling():
        return True
    if torch._C._len_torch_dispatch_stack():
        announce()
        return True
    return (
        torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def plain(*tensors: Tensor) -> bool:
    """Whether these tensors are memory on a device, and nothing that wraps or stands for some."""
    # no generator here: it would take longer than ``watched``
    for tensor in tensors:  # noqa: SIM110
        if type(tensor) not in _PLAIN or tensor.is_meta:
            return False
    return True


def direct(*tensors: Tensor) -> bool:
    """Whether kernels may be called on these tensors without the dispatcher."""
    return not watched() and plain(*tensors)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a result computed from these tensors needs a place in a graph of gradients."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return not torch.compiler.is_compiling() and transforming()


def mutated(*tensors: Tensor | None) -> None:
    """Tells autograd that a kernel wrote to these tensors."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if tensor is not None])


class NoGrad:
    """``torch.no_grad`` at a quarter of its time, for a ``with`` statement; the object is not entered twice."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_grad_enabled(self._before)


class _FirstOrderOnly(torch.autograd.Function):
    """Passes gradients on as functions of the tensors that they were computed from, whose differentiation raises."""

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.name = name
        return tuple(None if g is None else g.view_as(g) for g in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            f"second derivatives are not implemented: the gradient of {ctx.name} was differentiated again"
        )


def _without_memory(tensor: Tensor) -> bool:
    """Whether a plain tensor stands for several, as in the vmap of ``torch.autograd.grad``."""
    if type(tensor) is not Tensor or tensor.is_meta:
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False


def first_order(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Decorates the ``backward`` of an autograd function whose gradients can't be differentiated again: doing so raises.

    torch's ``once_differentiable`` lets a second derivative pass as zero where the upstream gradient is a constant, and as
    missing where it is asked for by ``torch.autograd.grad`` with ``allow_unused``.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.compiler.is_compiling():
            # lists: generators would take longer than what they go through
            if transforming() or True in [_without_memory(g) for g in upstream]:
                raise RuntimeError(
                    f"the backward of {type(ctx).__name__.removesuffix('Backward')} takes one gradient at a time: no "
                    "is_grads_batched, jacobian(vectorize=True) or torch.func"
                )
            upstream = tuple([g.resolve_neg() for g in upstream])
        if not torch.is_grad_enabled():
            return backward(ctx, *upstream)
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if torch.compiler.is_compiling():
            return gradients
        name = type(ctx).__name__.removesuffix("Backward")
        return _FirstOrderOnly.apply(name, len(gradients), *gradients, *ctx.saved_tensors, *upstream)

    return wrapper
