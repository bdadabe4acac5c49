"""Ways to the input gradient, what they cost, and which of them a call takes.

===========  =============================================================================================
"atomic"     every tile adds its part to ``[D, B]`` with atomics, in no fixed order
"private"    programs add to buffers of their own, which are summed: deterministic, for labels in groups
"rows"       derivatives of a chunk of labels are written down and summed by feature, by an inverted index of the
             topology: deterministic, for labels with connections of their own (``linear_inverted``)
"dense"      as "rows", but the chunk's weights are spread out in a ``[labels, D]`` scratch that stays in the L2 cache and
             multiplied with the derivatives on tensor cores: deterministic, needs no index (``linear_dense``)
===========  =============================================================================================

With a group size of 1 atomics cost ``B * L * K`` additions in the L2 cache; rows read as many numbers of half the size, and
dense tiles ``L * D`` of them, however many connections there are. Forward and weight gradient gain nothing from dense
tiles: they would read ``x`` and the scratch again for every few labels, where the gather reads what it needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.triton_kernels import _tuning_store as store
from sparse_xmc.ops.triton_kernels._launch import cdiv, padded

WAYS = ("atomic", "private", "rows", "dense")
OF_SINGLE_LABELS = ("rows", "dense")
# bytes of what one launch leaves for the next: about half of the L2 cache of an H100 or H200
CHUNK_BYTES = 24 << 20
BLOCK_D, BLOCK_B = 128, 128  # tile of the input gradient in the dense way
MAX_DENSE_FEATURES = 16_384  # of a scratch that still holds hundreds of labels
_FORCED: list[str] = []


class Rates(NamedTuple):
    """What a GPU does in a second: float32 additions in L2, bytes read from there, tensor core operations; and a launch's
    seconds. The defaults are assumptions about an H100; ``python -m bench atomics`` measures the first two."""

    additions: float = 0.9e12
    l2_bytes: float = 5.5e12
    flops: float = 4e14
    launch: float = 4e-6


RATES_KEY = "rates of the input gradient's ways"


def rates(device: torch.device) -> Rates:
    """Those that were measured on this model of GPU, else the assumed ones."""
    if device.type != "cuda":
        return Rates()
    gpu = torch.cuda.get_device_name(device)
    known = store.read(gpu).get(RATES_KEY) or store.shipped(gpu).get(RATES_KEY) or {}
    return Rates()._replace(**{name: float(known[name]) for name in ("additions", "l2_bytes") if name in known})


def remember_rates(gpu: str, additions: float, l2_bytes: float) -> None:
    """Keeps measured rates beside the winners of searches."""
    store.write(gpu, RATES_KEY, {"additions": additions, "l2_bytes": l2_bytes})


class Problem(NamedTuple):
    """Sizes and dtypes that the cost of a way follows from."""

    B: int
    L: int
    D: int
    K: int
    x: torch.dtype
    weight: torch.dtype


def seconds(problem: Problem, found: Rates) -> dict[str, float]:
    """Predicted time of each way that serves a group size of 1, beyond what the ways share; the fastest first."""
    B, L, D, K = problem[:4]
    stride, weight_bytes = padded(max(1, B)), problem.weight.itemsize
    derivatives = L * stride * dz_dtype(problem.x).itemsize
    out = {"atomic": stride * L * K / found.additions}
    chunks = cdiv(L, labels_at_once("rows", problem))
    gathered = K * derivatives + 2 * L * K * weight_bytes
    out["rows"] = (derivatives + gathered) / found.l2_bytes + 2 * chunks * found.launch
    if dense_serves(problem):
        chunks = cdiv(L, labels_at_once("dense", problem))
        spread = (2 + cdiv(stride, BLOCK_B)) * L * D * weight_bytes
        read = (1 + cdiv(D, BLOCK_D)) * derivatives
        products = 2 * stride * D * L / found.flops
        out["dense"] = (spread + read) / found.l2_bytes + products + 3 * chunks * found.launch
    return dict(sorted(out.items(), key=lambda item: item[1]))


@contextlib.contextmanager
def forced(chosen: str) -> Iterator[None]:
    """Takes one way inside a block, for comparisons; a call that it can't serve raises."""
    if chosen not in WAYS:
        raise ValueError(f"the way must be one of {WAYS}, got {chosen!r}")
    _FORCED.append(chosen)
    try:
        yield
    finally:
        _FORCED.pop()


def choice() -> str | None:
    """What ways depend on beside a call: the forced one, "deterministic", or None."""
    if _FORCED:
        return _FORCED[-1]
    return "deterministic" if torch._C._get_deterministic_algorithms() else None


def ways(problem: Problem, group_size: int, device: torch.device) -> list[str]:
    """The ways that a call may take, the one to take without a search first; deterministic ones where torch is told to use
    deterministic algorithms. Only a way that needs no memory of the size of the layer is taken unasked.

    Raises:
        ValueError: the forced way does not serve the call.
    """
    chosen = choice()
    if chosen in WAYS:
        if chosen in OF_SINGLE_LABELS and group_size > 1:
            raise ValueError(f"the way {chosen!r} takes a group size of 1, got {group_size}")
        if chosen == "dense" and not dense_serves(problem):
            raise ValueError(
                f"the way 'dense' takes rows, up to {MAX_DENSE_FEATURES} features and no float64, "
                f"got {problem.B} rows, {problem.D} features and {problem.x}"
            )
        return [chosen]
    if group_size > 1:
        return ["private" if chosen else "atomic"]
    if chosen:
        return ["rows"]
    return [way for way in seconds(problem, rates(device)) if way != "rows"]


def dense_serves(problem: Problem) -> bool:
    """Whether the way "dense" can: Triton has no float64 products, and the scratch must hold many labels."""
    return 0 < problem.B and problem.D <= MAX_DENSE_FEATURES and torch.float64 not in (problem.x, problem.weight)


def dz_dtype(dtype: torch.dtype) -> torch.dtype:
    """How derivatives are written down: bfloat16 for bfloat16 inputs; float16 has too few small numbers."""
    return dtype if dtype == torch.bfloat16 else compute_dtype(dtype)


def labels_at_once(way: str, problem: Problem, multiple: int = 1) -> int:
    """How many labels a launch of the ways "rows" and "dense" takes."""
    row_bytes = padded(max(1, problem.B)) * dz_dtype(problem.x).itemsize
    if way == "dense":
        row_bytes += problem.D * problem.weight.itemsize
    return max(1, CHUNK_BYTES // row_bytes // multiple) * multiple
