"""Choice of block sizes, warps and other constants of the kernels.

A kernel lists its configurations, best guess first. The first call of a kind chooses among them:

========  ==========================================================================================
``off``   the first configuration: a pure function of shape and dtype
``quick`` the remembered winner, else the fastest of the first 8 (the default)
``full``  the winner remembered from a full search, else the fastest of all
========  ==========================================================================================

``SPARSE_XMC_AUTOTUNE`` sets the mode. Keys hold powers of two in place of B, L and D, so that a new batch size does not
tune again. Winners are remembered in ``$SPARSE_XMC_CACHE_DIR/<GPU>.json`` (default ``~/.cache/sparse_xmc``), under
the kernel, a hash of its source, and Triton's version; those that are shipped with the package count where there is no
such entry. Nothing is searched in the interpreter nor while a CUDA graph is captured.

A search runs a kernel many times. Kernels that overwrite their output, or add to a tensor that may be zeroed, are
run on the tensors of the call that asked (``Tuned``); those that change parameters in place run on copies of a part of them,
which their launchers make.

Triton's ``autotune`` was not used: it runs on the call's tensors only, takes longer than a launch even where it has
nothing to do, and its ``cache_results`` keys by compiler target, not by GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.errors import OutOfResources, PTXASError

from sparse_xmc.ops._backend import interpreting
from sparse_xmc.ops.triton_kernels import _tuning_store as store
from sparse_xmc.ops.triton_kernels._launch import Launch, Plans

MODES = ("off", "quick", "full")
QUICK_CONFIGS = 8
_WARMUP_REP_MS = {"quick": (5, 20), "full": (25, 100)}
_FORCED_MODES: list[str] = []

Config = dict[str, Any]  # constants of a kernel, and options of its compilation such as num_warps


class Shape(NamedTuple):
    """What a configuration may depend on.

    B, L and D are powers of two, not below the true sizes. itemsize: bytes of an operand of ``tl.dot`` (constant
    ``DOT`` of the kernel), or of the accumulator (``ACC``) in kernels without it. x_bytes: of an element of ``x``.
    terms: numbers that a wider weight is multiplied as. room: ``head_tiling.has_room`` of the device.
    """

    B: int
    L: int
    D: int
    K: int
    G: int
    itemsize: int
    x_bytes: int = 2
    terms: int = 1
    room: bool = True

    @staticmethod
    def of(B: int, L: int, D: int, K: int, G: int, itemsize: int, x_bytes: int = 2) -> Shape:
        """That of a call with these sizes."""
        B, L, D = (1 << (max(size, 16) - 1).bit_length() for size in (B, L, D))
        return Shape(B, L, D, K, G, itemsize, x_bytes)


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
    Plans.forget()
    store.read.cache_clear()
    store.shipped.cache_clear()


Suits = Callable[[Config, Shape], bool]


def suitable(configs: Sequence[Config], suits: Suits, shape: Shape) -> list[Config]:
    """The configurations that suit a shape, in the order of the list; the last one if none does."""
    return [config for config in configs if suits(config, shape)] or [configs[-1]]


def key_of(kernel: Any, shape: Shape, constants: dict[str, Any]) -> str:
    """Under what a winner is remembered: kernel and version of its source, Triton's version, sizes and constants."""
    version = f"{kernel.fn.__module__}.{kernel.fn.__name__} {kernel.cache_key[:16]}"
    sizes = " ".join(f"{name}<={getattr(shape, name)}" for name in "BLD")
    named = " ".join(f"{name}={value}" for name, value in sorted(constants.items()))
    return f"{version} triton={triton.__version__} {sizes} K={shape.K} G={shape.G} {named}"


def fastest(
    device: torch.device,
    key: Callable[[], str],
    candidates: Sequence[Config],
    attempt: Callable[[Config], Callable[[], Any]],
) -> tuple[Config, bool]:
    """The configuration to take on a device, and whether that is settled (False: a later call may search).

    Args:
        key: what the winner is remembered under.
        candidates: best guess first.
        attempt: returns a function that launches with a configuration, on memory that a search may write to.
    """
    chosen = mode()
    if chosen == "off" or len(candidates) == 1:
        return candidates[0], True
    gpu, name = torch.cuda.get_device_name(device), key()
    known = store.read(gpu).get(name) or store.shipped(gpu).get(name)
    if known and known["config"] in candidates and (chosen == "quick" or known["mode"] == "full"):
        return known["config"], True
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return candidates[0], False
    if chosen == "quick":
        candidates = candidates[:QUICK_CONFIGS]
    times = [_milliseconds(attempt, config, *_WARMUP_REP_MS[chosen]) for config in candidates]
    best = times.index(min(times))
    if times[best] == float("inf"):
        return candidates[0], True
    figures = {"ms": times[best], "first_ms": times[0], "candidates": len(times), "mode": chosen}
    store.write(gpu, name, {"config": candidates[best], **figures})
    return candidates[best], True


def _milliseconds(attempt: Callable[[Config], Callable[[], Any]], config: Config, warmup: int, rep: int) -> float:
    """Median time of a candidate; infinity where it does not fit the device."""
    try:
        return float(triton.testing.do_bench(attempt(config), warmup=warmup, rep=rep, quantiles=(0.5,)))
    except (OutOfResources, CompileTimeAssertionFailure, PTXASError):
        return float("inf")


class Tuned:
    """A kernel that writes nothing but its results, its configurations, and the launches chosen so far.

    Args:
        kernel: a ``triton.jit`` function; its constants are those of a configuration and those given to ``choose``.
        configs: all configurations, best guess first.
        suits: whether a configuration suits a shape; it must not depend on anything else.
    """

    def __init__(self, kernel: Any, configs: Sequence[Config], suits: Suits) -> None:
        self.kernel, self.configs, self.suits = kernel, list(configs), suits
        self.plans = Plans()

    def choose(
        self,
        key: tuple[Any, ...],
        shape: Shape,
        grid: Callable[[Config], tuple[int, ...]],
        constants: dict[str, Any],
        arguments: tuple[Any, ...],
        scratch: Tensor | None = None,
    ) -> Launch:
        """The launch for calls like the one with ``arguments``, which it takes the part of in a search.

        Args:
            key: under which ``plans`` has it from now on.
            scratch: what the kernel adds to: zeroed before each run of a search and behind it.
        """

        def launch(config: Config) -> Launch:
            return Launch(self.kernel, grid(config), **constants, **config)

        searched = []

        def attempt(config: Config) -> Callable[[], None]:
            tried = launch(config)
            searched.append(config)

            def run() -> None:
                if scratch is not None:
                    scratch.zero_()
                tried(None, *arguments)

            return run

        def name() -> str:
            named = zip(self.kernel.params, arguments, strict=False)
            dtypes = {p.name: str(a.dtype).removeprefix("torch.") for p, a in named if isinstance(a, Tensor)}
            return key_of(self.kernel, shape, {**constants, **dtypes})

        candidates = suitable(self.configs, self.suits, shape)
        config, settled = fastest(arguments[0].device, name, candidates, attempt)
        if scratch is not None and searched:
            scratch.zero_()
        chosen = launch(config)
        return self.plans.keep(key, chosen) if settled else chosen
