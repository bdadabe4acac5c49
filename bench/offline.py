"""Compiles the project's Triton kernels for GPUs that are not there, and reads what the compiler made of them.

Launchers run on meta tensors while ``recorded`` notes each kernel launch in place of performing it; ``compile_for``
then goes the way of the JIT: the same specialisation of dtypes, alignment and integers, the same options.
Needs a process without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# Triton 3.9 warns when it is unset and 3.10 stops contracting a*b+c without it
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.language import target_info
from triton.runtime.jit import JITFunction, create_function_from_signature

from bench.ptx_races import races


class Target(NamedTuple):
    """A GPU architecture: what a block may have of shared memory, and what a multiprocessor has in all."""

    gpu: GPUTarget
    block_shared: int
    shared: int
    warps: int
    tensor_core: str


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10, 164 << 10, 64, "mma"),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10, 228 << 10, 64, "wgmma"),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10, 64 << 10, 32, "mfma"),
}

_PTX = {
    "wgmma": r"\bwgmma\.mma_async",
    "mma": r"\bmma\.sync",
    "cp.async": r"\bcp\.async\.c[ag]",
    "red": r"\b(?:red|atom)\.",
    "shuffle": r"\bshfl\.",
}
_GCN = {
    "mfma": r"\bv_mfma",
    "red": r"\b(?:global|buffer)_atomic",
    "shuffle": r"\bds_bpermute|_dpp\b|\bds_swizzle",
}


class Launch(NamedTuple):
    """A recorded kernel launch."""

    kernel: JITFunction
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def recorded(launch: Callable[[], Any], target: Target | None = None) -> list[Launch]:
    """The kernel launches that ``launch`` would make, with the default configurations of tuned kernels on a target (sm_90)."""
    from sparse_xmc.ops.triton_kernels import head_tiling, tuning

    launches: list[Launch] = []

    def has_room(device: Any) -> bool:
        return target is None or target.tensor_core != "mma"

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(Launch(self, args, kwargs))

    def lanes_of(device: Any) -> int:
        return 32 if target is None else target.gpu.warp_size

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.multiple(head_tiling, has_room=has_room, lanes_of=lanes_of),
        tuning.forced("off"),
    ):
        launch()
    return launches


def compile_for(launch: Launch, target: Target) -> Any:
    """Triton's compiled kernel (``.asm``, ``.metadata``) of a launch."""
    fn = launch.kernel
    backend = make_backend(target.gpu)
    kwargs = {"debug": False, **launch.kwargs}
    if target.gpu.backend != "cuda":
        kwargs.pop("maxnreg", None)  # an option of NVIDIA's back end, which launchers leave out elsewhere
    bind = create_function_from_signature(fn.signature, fn.params, backend)
    options, signature, constants, attributes = fn._pack_args(backend, kwargs, *bind(*launch.args, **kwargs))
    source = ASTSource(fn, signature, constants, attributes)
    with _current(target.gpu):
        return triton.compile(source, target=target.gpu, options=options.__dict__)


@contextlib.contextmanager
def _current(gpu: GPUTarget) -> Iterator[None]:
    """Kernels that ask which target they are compiled for hear of this one; without a driver there would be none."""

    def current_target() -> GPUTarget:
        return gpu

    current_target.__triton_builtin__ = True  # type: ignore[attr-defined]
    with mock.patch.object(target_info, "current_target", current_target):
        yield


class Facts(NamedTuple):
    """What a compiled kernel needs and contains.

    registers: per thread (AMD: vector registers). spilled: bytes of stack per thread. shared: bytes per block.
    occupancy: share of a multiprocessor's warps that registers and shared memory admit.
    load_bytes: widest global load of a thread. instructions: counts of tensor-core and other notable instructions.
    tensor_dots: whether it has a ``tl.dot`` that belongs on tensor cores.
    races: what ``races`` finds in the PTX (AMD: nothing is looked for).
    """

    registers: int
    spilled: int
    shared: int
    warps: int
    occupancy: float
    load_bytes: int
    instructions: dict[str, int]
    tensor_dots: bool
    races: tuple[str, ...] = ()


def facts(compiled: Any, target: Target) -> Facts:
    """Reads registers, spills, shared memory and notable instructions of a compiled kernel."""
    nvidia = target.gpu.backend == "cuda"
    text = compiled.asm["ptx" if nvidia else "amdgcn"]
    registers, spilled = _nvidia_resources(compiled) if nvidia else _amd_resources(text)
    instructions = {name: len(re.findall(rule, text)) for name, rule in (_PTX if nvidia else _GCN).items()}
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    if nvidia:
        by_registers = 65_536 // (-(-registers // 8) * 8 * 32 * warps)
        shared_unit = shared + 1024
    else:
        by_registers = min(8, 512 // max(-(-registers // 8) * 8, 8)) * 4 // warps
        shared_unit = shared
    blocks = min(by_registers, target.shared // shared_unit if shared_unit else 64, target.warps // warps)
    return Facts(
        registers,
        spilled,
        shared,
        warps,
        blocks * warps / target.warps,
        _widest_load(text, nvidia),
        {name: count for name, count in instructions.items() if count},
        _wants_tensor_cores(compiled.asm["ttir"]),
        tuple(races(text)) if nvidia else (),
    )


def problems(found: Facts, target: Target, *, wgmma: bool = True, spill_tolerance: int = 16) -> list[str]:
    """Why a kernel must not be shipped; empty if it may."""
    out = []
    if found.spilled > spill_tolerance:
        out.append(f"spills {found.spilled} bytes per thread")
    if found.shared > target.block_shared:
        out.append(f"needs {found.shared} bytes of shared memory, {target.block_shared} is the limit")
    wanted = "mma" if target.tensor_core == "wgmma" and not wgmma else target.tensor_core
    if found.tensor_dots and not (
        found.instructions.get(wanted) or (wanted == "mma" and "wgmma" in found.instructions)
    ):
        out.append(f"has a tl.dot but no {wanted} instruction: {found.instructions}")
    out += [f"races: {race}" for race in found.races]
    return out


def inner_loops(compiled: Any, target: Target) -> list[Counter[str]]:
    """Instructions of each innermost loop, by name, in the listing (PTX or AMD assembler; ptxas may still shorten it)."""
    nvidia = target.gpu.backend == "cuda"
    code: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []
    for line in compiled.asm["ptx" if nvidia else "amdgcn"].splitlines():
        if label := re.match(r"\s*([$.]L\w+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+(?:@!?%p\d+\s+)?([a-z][\w.:]*)\b(.*)", line):
            name, rest = instruction.groups()
            if name.startswith(("bra", "s_cbranch", "s_branch")):
                jumps += [(labels[to], len(code)) for to in re.findall(r"[$.]L\w+", rest) if to in labels]
            code.append(name)
    inner = {(a, b) for a, b in jumps if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in jumps)}
    return [Counter(code[a : b + 1]) for a, b in sorted(inner)]


def _wants_tensor_cores(ttir: str) -> bool:
    dots = re.findall(r"\btt\.dot\b.*", ttir)
    return any(re.search(r"x(?:bf16|f16)[>,]", dot) or "inputPrecision = tf32" in dot for dot in dots)


def _widest_load(text: str, nvidia: bool) -> int:
    if not nvidia:
        units = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}
        found = re.findall(r"\b(?:buffer|global)_load_([a-z]+)(?:_d16)?(?:x(\d))?", text)
        return max((units.get(unit, 4) * int(count or 1) for unit, count in found), default=0)
    loads = re.findall(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)\b", text)
    copies = re.findall(r"\bcp\.async\.c[ag][\w.]*\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(0x[0-9a-f]+|\d+)", text)
    return max([int(n or 1) * int(bits) // 8 for n, bits in loads] + [int(size, 0) for size in copies], default=0)


def _nvidia_resources(compiled: Any) -> tuple[int, int]:
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", _cuobjdump(compiled, "-res-usage")))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def _amd_resources(text: str) -> tuple[int, int]:
    def value(name: str) -> int:
        match = re.search(rf"^[\s-]*\.{name}:\s*(\d+)", text, re.MULTILINE)
        assert match, f"no {name} in the listing"
        return int(match[1])

    return value("vgpr_count"), value("private_segment_fixed_size")


def _cuobjdump(compiled: Any, option: str) -> str:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    with _file(compiled.asm["cubin"]) as path:
        command = [str(tools / "cuobjdump"), option, path]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(content)
        yield str(path)
