"""Tiles of the fused head: pure functions of shapes and dtypes, and how ``tl.dot`` multiplies in it."""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE
from sparse_xmc.ops._backend import interpreting
from sparse_xmc.ops.triton_kernels._dot import TRITON_DTYPES, fp32_precision

MAX_DOT_FAN_IN = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}  # beyond it a group's tile spills
MAX_FAN_IN = 8192


class Tiling(NamedTuple):
    """Block sizes of one launch.

    dot: whether a tile is a group of labels (``loss_group``). width: labels in a bucket of positives.
    num_stages: of the loads' pipeline. maxnreg: limit of registers per thread (NVIDIA), or None. hints: whether loads tell
        the cache that weights are read once and x again and again; only a search tries it.
    """

    dot: bool
    tiles: int
    width: int
    block_l: int
    block_k: int
    block_b: int
    num_warps: int
    num_stages: int = 3
    maxnreg: int | None = None
    hints: bool = False

    @property
    def elements(self) -> int:
        """Of the product of a tile without ``tl.dot``."""
        return self.block_l * self.block_k * self.block_b


@functools.cache
def has_room(device: torch.device) -> bool:
    """Whether registers are left beside a tile of 64 rows: on GPUs from sm_90 on, whose tensor cores read operands from shared
    memory, and on AMD's."""
    return device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 9


def lanes_of(device: torch.device) -> int:
    """Threads of a warp."""
    return 64 if device.type == "cuda" and torch.version.hip is not None else 32


@functools.cache
def tiling(
    B: int,
    L: int,
    K: int,
    G: int,
    dtype: torch.dtype,
    *,
    one_label: bool = False,
    few_registers: bool = False,
    wider: bool = False,
    room: bool = True,
    lanes: int = 32,
) -> Tiling:
    """The first guess. The batch enters by powers of two only.

    one_label: tiles of one label, where two may add to the same feature of memory without atomics.
    few_registers: whether 168 registers do for a group's tile: one 16-bit dtype, no second moments, atomics, no momenta of
        many labels in float16. Then three blocks fit a multiprocessor of sm_80 or sm_90.
    wider: whether weights are wider than 16-bit inputs.
    room, lanes: ``has_room`` and ``lanes_of`` of the device.
    """
    batch = triton.next_power_of_2(max(B, 1))
    if G > 1 and K <= MAX_DOT_FAN_IN.get(dtype, 0):
        block_k = max(16, triton.next_power_of_2(K))
        # products of float32 numbers as triples take three times the registers: fewer rows, and labels
        triples = dtype == torch.float32
        widest, most_rows, most_labels = (1024, 32, 32) if triples else (4096, 64, 64)
        if triples and block_k == 128 and not room:
            most_labels = 16
        block_l = min(max(16, triton.next_power_of_2(G)), max(16, 4096 // block_k), most_labels)
        block_b = min(max(16, batch), max(16, widest // block_k), max(16, 2048 // block_l), most_rows)
        if not room and (not triples or block_k == 32):
            block_b = max(16, block_b // 2)
        tiles = triton.cdiv(L, G) * triton.cdiv(G, block_l)
        maxnreg = None
        if few_registers and block_k <= 64 and block_k == K:
            maxnreg = 168
        elif (triples and block_k in (16, 128)) or (batch <= 32 and not room):
            maxnreg = 255  # left to itself the compiler takes fewer and spills
        # beside masks for connections that don't fill their block, operands of several terms take eight warps before sm_90
        crowded = wider and not room and block_k >= 64 and block_k != K
        warps = 256 // lanes if crowded or (triples and block_k == 128) else 4
        return Tiling(True, tiles, G, block_l, block_k, block_b, warps, num_stages=1, maxnreg=maxnreg)
    block_k = max(8, triton.next_power_of_2(K))
    if block_k > MAX_FAN_IN:
        raise ValueError(f"the Triton fused head takes a fan_in up to {MAX_FAN_IN}, got {K}")
    # 32 elements per thread, and one warp where that is enough: no barriers, and no thread repeats another's logits
    block_b = min(max(16, batch), max(16 if block_k <= 512 else 1, 1024 // block_k), 64)
    block_l = 1 if one_label else max(1, (16384 if interpreting() else 1024) // (block_k * block_b))
    width = max(32, block_l)
    # float64 takes two registers for each of them
    warps = max(1, min(16, block_l * block_k * block_b // (512 if dtype == torch.float64 else 1024)))
    return Tiling(False, triton.cdiv(L, block_l), width, block_l, block_k, block_b, warps)


def alternatives(first: Tiling) -> list[Tiling]:
    """What a search tries, the first guess first: batch tiles, warps and limits of registers that a tile fits into."""
    tried: tuple[tuple[int, int, int | None], ...]
    if first.dot:
        tried = ((64, 4, 168), (64, 4, None), (64, 4, 128), (32, 4, None), (32, 4, 128), (128, 8, None), (128, 8, 128))
    else:
        tried = ((64, 1, None), (32, 1, None), (64, 2, None), (32, 2, None), (128, 4, None), (16, 1, None))
    found = [first._replace(block_b=b, num_warps=w, maxnreg=r) for b, w, r in tried if b <= 2 * first.block_b]
    found.insert(0, first._replace(hints=True))
    return [
        first,
        *(tiles for tiles in found if tiles != first and (tiles.dot or tiles.elements <= 8192 * tiles.num_warps)),
    ]


def operands(activation: torch.dtype, weight: torch.dtype) -> tuple[tl.dtype, int, str]:
    """How ``tl.dot`` multiplies: dtype of its operands, how many of them make up a float32 number, float32 precision.

    Equal 16-bit dtypes, and 16-bit with 8-bit, are multiplied as they are. bfloat16 activations take a wider weight as
    three bfloat16 numbers, exactly. All else is multiplied as float32: with TensorFloat-32 where torch allows it, else
    as bfloat16 triples.
    """
    if activation != torch.float32 and weight in (activation, QUANTIZED_DTYPE):
        return TRITON_DTYPES[activation], 1, "ieee"
    if activation == torch.bfloat16:
        return tl.bfloat16, 3, "ieee"
    exact = "ieee" if interpreting() else "bf16x6"  # the interpreter knows no triples
    return tl.float32, 1, "tf32" if fp32_precision() == "tf32" else exact
