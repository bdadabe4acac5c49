"""Experiment: the input gradient of groups summed in shared memory by a persistent kernel, instead of by atomics in L2.

    python -m bench.studies.shared_sums

A program of the persistent kernel (Gluon) keeps ``[D, BLOCK_B]`` sums of one slice of the batch in shared memory and takes
group after group: the features of a group are distinct, so its rows are read, added to and written back without atomics, and
a barrier separates one group from the next. At the end it writes its sums down. What both kernels start from, the product
``weight^T @ dz [K, BLOCK_B]`` of a group, is read from memory in either: it would cost them the same. Nothing runs; the
kernels are compiled for sm_90 and the executed warp instructions of a group counted in their machine code.

Triton 3.7 has ``shared_memory_descriptor.gather`` and ``scatter`` for this, 3.6 neither. ``atomic_scatter_add`` came with 3.8;
no group needs it, and for float32 the hardware has no addition in shared memory (it becomes a loop of compare-and-swap).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.compiler import make_backend
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import create_function_from_signature

from bench import offline
from bench.executed import executed
from bench.ptx_races import races

SM_90 = offline.TARGETS["sm_90"]


@triton.jit
def by_atomics(
    products_ptr,  # [groups, K, BLOCK_B]
    indices_ptr,  # [groups, K]
    dxt_ptr,  # [D, BLOCK_B], zeros
    groups,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    offs_k, offs_b = tl.arange(0, K), tl.arange(0, BLOCK_B)
    for group in range(tl.program_id(0), groups, tl.num_programs(0)):
        rows = tl.load(indices_ptr + group * K + offs_k).to(tl.int32)  # [K]
        product = tl.load(products_ptr + (group * K + offs_k)[:, None] * BLOCK_B + offs_b[None, :])  # [K, BLOCK_B]
        tl.atomic_add(dxt_ptr + rows[:, None] * BLOCK_B + offs_b[None, :], product, sem="relaxed")


@gluon.jit
def in_shared_memory(
    products_ptr,  # [groups, K, BLOCK_B]
    indices_ptr,  # [groups, K]
    dxt_ptr,  # [programs, D, BLOCK_B]
    groups,
    D: gl.constexpr,
    K: gl.constexpr,
    BLOCK_B: gl.constexpr,
):
    # a warp reads neighbouring numbers of one row, which lie in 32 different banks
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [gl.num_warps(), 1], [1, 0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    offs_k = gl.arange(0, K, gl.SliceLayout(1, layout))
    offs_b = gl.arange(0, BLOCK_B, gl.SliceLayout(0, layout))
    sums = gl.allocate_shared_memory(gl.float32, [D, BLOCK_B], plain, gl.zeros([D, BLOCK_B], gl.float32, layout))
    gl.barrier()
    for group in range(gl.program_id(0), groups, gl.num_programs(0)):
        rows = gl.load(indices_ptr + group * K + offs_k).to(gl.int32)  # [K]
        product = gl.load(products_ptr + (group * K + offs_k)[:, None] * BLOCK_B + offs_b[None, :])  # [K, BLOCK_B]
        places = rows[:, None] + gl.zeros([K, BLOCK_B], gl.int32, layout)
        held = sums.gather(places, 0)  # [K, BLOCK_B]
        sums.scatter(held + product, places, 0)
        gl.barrier()
    offs_d = gl.arange(0, D, gl.SliceLayout(1, layout))
    out = gl.program_id(0) * D * BLOCK_B + offs_d[:, None] * BLOCK_B + offs_b[None, :]
    gl.store(dxt_ptr + out, sums.load(layout))


class Count(NamedTuple):
    """Of one group, all warps: executed instructions; and of the kernel."""

    kernel: str
    D: int
    K: int
    BLOCK_B: int
    per_group: float
    shared_loads: int
    shared_stores: int
    atomics: int
    registers: int
    spilled: int
    shared: int


def compiled(kernel: Any, D: int, K: int, block_b: int, warps: int = 4) -> Any:
    """The kernel for sm_90, which is not there."""
    backend = make_backend(SM_90.gpu)
    keywords = {"D": D, "K": K, "BLOCK_B": block_b, "num_warps": warps, "debug": False}
    arguments = [torch.empty(64, dtype=dtype, device="meta") for dtype in (torch.float32, torch.uint16, torch.float32)]
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, *bind(*arguments, 20_941, **keywords)
    )
    source = GluonASTSource if kernel.is_gluon() else triton.compiler.ASTSource
    with offline._current(SM_90.gpu):
        return triton.compile(
            source(kernel, signature, constants, attributes), target=SM_90.gpu, options=options.__dict__
        )


def counted(kernel: Any, D: int, K: int, block_b: int, warps: int = 4) -> Count:
    """Counts of a kernel: the difference of one more group."""
    found = compiled(kernel, D, K, block_b, warps)
    sass = found.asm["sass"]

    def loops(number: int) -> float:
        return executed(sass, lambda names: float(number), 1.0)

    assert not races(found.asm["ptx"]), races(found.asm["ptx"])
    names = [len(re.findall(rule, sass)) for rule in (r"\bLDS\b", r"\bSTS\b", r"\b(?:RED|REDG|ATOMG|ATOM)\b")]
    registers, spilled = offline._nvidia_resources(found)
    per_group = warps * (loops(2) - loops(1))
    return Count(kernel.__name__, D, K, block_b, per_group, *names, registers, spilled, found.metadata.shared)


def main() -> None:
    for D, K, block_b in ((512, 64, 32), (512, 64, 64), (1024, 64, 32), (512, 128, 64)):
        for kernel in (by_atomics, in_shared_memory):
            try:
                print(counted(kernel, D, K, block_b))
            except Exception as error:  # a compiler may raise anything, and that is a result
                print(f"{kernel.__name__} D={D} K={K} BLOCK_B={block_b}: {type(error).__name__}: {str(error)[-300:]}")


if __name__ == "__main__":
    main()
