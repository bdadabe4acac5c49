"""Choice of block sizes, warps and stages for the matrix kernels.

A kernel lists its configurations, best guess first, and a rule says which of them suit a shape and dtype. ``autotune``
puts them behind ``triton.autotune``, which calls back here when it meets a new key:

========  ==========================================================================================
``off``   the first suitable configuration: a pure function of shape and dtype
``quick`` the remembered winner, else the fastest of the first 8 suitable ones (the default)
``full``  the winner remembered from a full search, else the fastest of all suitable ones
========  ==========================================================================================

``SPARSE_XMC_AUTOTUNE`` sets the mode. Keys hold powers of two in place of B, L and D, so that a new batch size does not
tune again. Winners are remembered in ``$SPARSE_XMC_CACHE_DIR/<GPU>.json`` (default ``~/.cache/sparse_xmc``), under
the kernel, a hash of its source, and Triton's version. In the interpreter nothing is ever searched.

Only kernels that overwrite their output belong here, or ones that add to a scratch tensor named in ``scratch``: a
search runs the kernel many times on the tensors of the call that triggered it.

Triton's ``cache_results`` was not used: it keys by compiler target, not by GPU, drops every timing when one
configuration is added to a list, and keeps no record that can be read, compared or shipped.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton

from sparse_xmc.ops._backend import interpreting
from sparse_xmc.ops.triton_kernels import _tuning_store as store

MODES = ("off", "quick", "full")
QUICK_CONFIGS = 8
_WARMUP_REP_MS = {"quick": (5, 20), "full": (25, 100)}
_FORCED_MODES: list[str] = []
_KERNELS: list[Any] = []


class Shape(NamedTuple):
    """What a configuration may depend on.

    B, L and D are powers of two, not below the true sizes. itemsize: bytes of an operand of ``tl.dot`` (constant
    ``DOT`` of the kernel), or of the accumulator (``ACC``) in kernels without it. x_bytes: of an element of ``xt_ptr``.
    """

    B: int
    L: int
    D: int
    K: int
    G: int
    itemsize: int
    x_bytes: int = 2

    @staticmethod
    def of(bucket: int, K: int, G: int, itemsize: int, x_bytes: int = 2) -> "Shape":
        B, L, D = (1 << (bucket >> shift & 0xFF) for shift in (0, 8, 16))
        return Shape(B, L, D, K, G, itemsize, x_bytes)


def bucket(B: int, L: int, D: int) -> int:
    """The powers of two that hold B, L and D as one integer, which kernels take as the argument ``bucket``."""
    exponents = ((max(size, 16) - 1).bit_length() for size in (B, L, D))
    return sum(exponent << shift for exponent, shift in zip(exponents, (0, 8, 16), strict=True))


def mode() -> str:
    """The search mode: of ``forced`` if inside it, else of ``SPARSE_XMC_AUTOTUNE``."""
    if interpreting():
        return "off"
    chosen = _FORCED_MODES[-1] if _FORCED_MODES else os.environ.get("SPARSE_XMC_AUTOTUNE", "quick")
    if chosen not in MODES:
        raise ValueError(f"SPARSE_XMC_AUTOTUNE must be one of {MODES}, got {chosen!r}")
    return chosen


@contextlib.contextmanager
def forced(chosen: str) -> Iterator[None]:
    """Runs a block in another search mode; choices made before it do not count inside, nor its choices after it."""
    if chosen not in MODES:
        raise ValueError(f"the mode must be one of {MODES}, got {chosen!r}")
    _FORCED_MODES.append(chosen)
    forget()
    try:
        yield
    finally:
        _FORCED_MODES.pop()
        forget()


def forget() -> None:
    """Drops this process's choices (not those on disk), as a change of mode or of the file needs."""
    for kernel in _KERNELS:
        kernel.cache.clear()
    store.read.cache_clear()


Suits = Callable[[dict[str, int], Shape], bool]


def suitable(configs: Sequence[triton.Config], suits: Suits, shape: Shape) -> list[triton.Config]:
    """The configurations whose constants suit a shape, in the order of the list; the last one if none does."""
    return [c for c in configs if suits(c.kwargs, shape)] or [configs[-1]]


def autotune(configs: Sequence[triton.Config], suits: Suits, scratch: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Decorates a kernel that has the arguments ``bucket``, ``K``, ``G`` and ``ACC``.

    Args:
        configs: all configurations, best guess first.
        suits: whether the constants of a configuration suit a shape; it must not depend on anything else.
        scratch: tensors that the kernel adds to, zero before each launch.
    """

    def decorate(function: Any) -> Any:
        search = _Search(function, suits, scratch)
        kernel = triton.autotune(
            configs=list(configs),
            key=["bucket", "K", "G"],
            prune_configs_by={"early_config_prune": search.prune},
            pre_hook=search.reset,
            do_bench=search.bench,
        )(function)
        kernel.suits = suits
        _KERNELS.append(kernel)
        return kernel

    return decorate


class _Search:
    """What ``triton.autotune`` asks about one kernel: which configurations to time, and their times."""

    def __init__(self, function: Any, suits: Suits, scratch: Sequence[str]):
        self.function, self.suits, self.scratch = function, suits, scratch
        self.candidates: list[triton.Config] = []
        self.times: list[float] = []
        self.gpu = self.key = ""

    def prune(self, configs: Sequence[triton.Config], named: dict[str, Any], **kwargs: Any) -> list[triton.Config]:
        """The configurations to time for a call: a single one where nothing is to be searched."""
        arguments = {**named, **kwargs}
        tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        operand = arguments.get("DOT", arguments["ACC"])
        x_bytes = tensors["xt_ptr"].element_size() if "xt_ptr" in tensors else 2
        shape = Shape.of(arguments["bucket"], arguments["K"], arguments["G"], operand.primitive_bitwidth // 8, x_bytes)
        self.candidates, self.times = suitable(configs, self.suits, shape), []
        chosen = mode()
        if chosen == "off":
            self.candidates = self.candidates[:1]
        else:
            self.gpu = torch.cuda.get_device_name(next(iter(tensors.values())).device)
            self.key = self._key(arguments, tensors, shape)
            known = store.read(self.gpu).get(self.key)
            if known and (chosen == "quick" or known["mode"] == "full"):
                self.candidates = [triton.Config(**known["config"])]
            elif chosen == "quick":
                self.candidates = self.candidates[:QUICK_CONFIGS]
        return self.candidates

    def reset(self, arguments: dict[str, Any], reset_only: bool = False) -> None:
        """Zeroes the scratch tensors before each run of a search and after it (``reset_to_zero`` would also do so where
        nothing is searched)."""
        if len(self.candidates) > 1:
            for name in self.scratch:
                arguments[name].zero_()

    def bench(self, call: Callable[[], Any], quantiles: Sequence[float]) -> Sequence[float]:
        """Times one candidate; after the last one the fastest is written to disk."""
        if len(self.candidates) == 1:
            return [0.0] * len(quantiles)
        self.times.append(float("inf"))
        try:
            warmup, rep = _WARMUP_REP_MS[mode()]
            times = triton.testing.do_bench(call, warmup=warmup, rep=rep, quantiles=quantiles)
            self.times[-1] = times[0]
            return times
        finally:
            if len(self.times) == len(self.candidates) and min(self.times) < float("inf"):
                self._remember(self.candidates[self.times.index(min(self.times))])

    def _remember(self, best: triton.Config) -> None:
        config = {"kwargs": best.kwargs, "num_warps": best.num_warps, "num_stages": best.num_stages}
        times = {"ms": min(self.times), "first_ms": self.times[0], "candidates": len(self.times)}
        store.write(self.gpu, self.key, {"config": config, **times, "mode": mode()})

    def _key(self, arguments: dict[str, Any], tensors: dict[str, torch.Tensor], shape: Shape) -> str:
        dtypes = " ".join(f"{name}={str(t.dtype).removeprefix('torch.')}" for name, t in sorted(tensors.items()))
        names = sorted(p.name for p in self.function.params if p.is_constexpr and p.name in arguments)
        constants = " ".join(f"{name}={arguments[name]}" for name in names)
        sizes = " ".join(f"{name}<={getattr(shape, name)}" for name in "BLD")
        version = f"{self.function.fn.__module__}.{self.function.fn.__name__} {self.function.cache_key[:16]}"
        return f"{version} triton={triton.__version__} {sizes} {constants} {dtypes}"
