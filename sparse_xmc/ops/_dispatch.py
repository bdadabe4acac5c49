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
# looked up once: ``watched`` and ``plain`` are asked in every call, and these are most of their time
_len_torch_dispatch_stack, _get_tracing_state = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_peek_interpreter_stack = torch._C._functorch.peek_interpreter_stack
_is_functorch_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_profiler_enabled = torch.autograd._profiler_enabled
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
    return _peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def watched() -> bool:
    """Whether something traces, profiles or transforms the calls of operations."""
    if torch.compiler.is_compiling():
        return True
    if _len_torch_dispatch_stack():
        announce()
        return True
    return (
        _get_tracing_state() is not None
        or _profiler_enabled()
        or _peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def plain(*tensors: Tensor) -> bool:
    """Whether these tensors are memory on a device, and nothing that wraps or stands for some."""
    # no generator here: it would take longer than ``watched``
    for tensor in tensors:  # noqa: SIM110
        if type(tensor) not in _PLAIN or tensor.is_meta or _is_functorch_wrapped(tensor):
            return False
    return True


def direct(*tensors: Tensor) -> bool:
    """Whether kernels may be called on these tensors without the dispatcher."""
    return not watched() and plain(*tensors)


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from these tensors while nothing watches."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a result computed from these tensors needs a place in a graph of gradients."""
    return recorded(*tensors) or (not torch.compiler.is_compiling() and transforming())


def straight(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` for calls that are ``direct``: without torch's search of all arguments for what wraps tensors, which
    takes a third of its time."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def mutated(*tensors: Tensor | None) -> None:
    """Tells autograd that a kernel wrote to these tensors."""
    torch._C._increment_version([tensor for tensor in tensors if tensor is not None])


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

    It gets the context, the upstream gradient, and whether nothing watches and that gradient is ``plain``.

    torch's ``once_differentiable`` lets a second derivative pass as zero where the upstream gradient is a constant, and as
    missing where it is asked for by ``torch.autograd.grad`` with ``allow_unused``.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        eager = not watched()
        if eager or not torch.compiler.is_compiling():
            if (not eager and transforming()) or _without_memory(upstream):
                raise RuntimeError(
                    f"the backward of {type(ctx).__name__.removesuffix('Backward')} takes one gradient at a time: no "
                    "is_grads_batched, jacobian(vectorize=True) or torch.func"
                )
            if upstream.is_neg():
                upstream = upstream.resolve_neg()
        eager = eager and plain(upstream)
        if not torch.is_grad_enabled():
            return backward(ctx, upstream, eager)
        with torch.no_grad():
            gradients = backward(ctx, upstream, eager)
        if torch.compiler.is_compiling():
            return gradients
        name = type(ctx).__name__.removesuffix("Backward")
        return _FirstOrderOnly.apply(name, len(gradients), *gradients, *ctx.saved_tensors, upstream)

    return wrapper
