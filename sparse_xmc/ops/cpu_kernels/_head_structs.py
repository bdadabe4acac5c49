"""What a sweep of the fused head works on, as structs of pointers and numbers that the kernel builds for itself.

A struct made inside a kernel costs nothing, one that is passed in costs microseconds of every call. So a launcher passes
two arrays, ``Fields`` and ``Numbers``, and ``open_head`` turns them into the structs that inner functions take.

Memory of a sweep (``chunk`` = 64 rows of the batch, ``rows`` = labels of a tile and 4 that group kernels read ahead)::

    slab      [chunks, D, width]    x feature-major: chunk c starts at 64 c D; the last one is 16, 32 or 64 wide and
                                    holds zeros beyond the batch. A connection reads neighbouring numbers.
    sums      [parts, size of slab] the input gradient of each part, laid out like the slab
    scratch   [parts, ...]          of each part, in this order:
        z         [36, 64]          logits of a label (or of 32 of a group), then their derivatives
        product   [64]              loss of a tile, see ``_loss_label.derivative``
        linear    [64]
        group     [K, 64]           the rows of x that a group reads, one behind the other
        w, dw, old [rows, K]        a tile's weights, their gradient, their momenta
        b, db, old [rows]           the same of its biases
        row_weight [c]              of the rows of x, zero beyond the batch; c = rows of the slab. Without any: ones, c = 64
        offsets   [rows, K] uint32  where a connection's row of the slab starts
        products, linears [c] float64    loss of the tiles so far

    logits    [nnz]                 of the positives, where they have weights, with the sign that ``_flip`` gives them

Slab and sums stand in one allocation: so they keep clear of each other in a physically indexed cache.
"""

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

from sparse_xmc.ops.cpu_kernels._loss_group import ROWS
from sparse_xmc.ops.cpu_kernels._pointers import advance, at_address, pointer, same_kind

CHUNK = 64  # batch rows whose logits stay in registers: eight AVX2 registers
TILE_LABELS = 96  # 2^96 bounds the product of the softplus terms, which must not overflow float32
TILE_WEIGHTS = 4096
GROUP_LABELS = 32  # labels of a group that are worked on at once: their logits stay in the L1 cache
FORWARD, GRADIENTS, UPDATE = range(3)
BCE, HINGE, ASYMMETRIC = range(3)
LOSSES = {"bce": BCE, "squared_hinge": HINGE, "asymmetric": ASYMMETRIC}


class Fields(NamedTuple):
    """Addresses of tensors that the caller keeps alive (0: none), codes of their dtypes (``_storage``), sizes, choices."""

    slab: int
    sums: int
    size: int  # numbers in the slab
    scratch: int
    scratch_size: int  # bytes of a part
    losses: int  # [parts] float64
    labels: int
    rows: int
    nnz: int
    weight: int
    weight_code: int
    indices: int
    index_code: int
    bias: int
    bias_code: int
    dw: int
    dw_code: int
    db: int
    db_code: int
    buffer: int
    buffer_code: int
    moment: int
    bias_buffer: int
    bias_buffer_code: int
    bias_moment: int
    pos_weight: int
    logits: int
    sample_weight: int
    collectors: int
    B: int
    D: int
    K: int
    group_size: int
    loss: int
    mode: int
    need_x: int
    need_weight: int
    direct: int  # the weights have the dtype of the arithmetic and need no copy
    at_once: int  # weights are updated label by label: w = keep w + rate gradient
    stochastic: int
    seed: int
    step: int


class Numbers(NamedTuple):
    """In the dtype of the arithmetic. scale: of gradients that are stored, or applied by a rule."""

    scale: float = 1.0
    keep: float = 1.0
    rate: float = 1.0
    lr: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay: float = 0.0
    gain: float = 0.0
    correction: float = 1.0
    eps: float = 0.0
    gamma_pos: float = 0.0
    gamma_neg: float = 0.0
    clip: float = 0.0


class Head(NamedTuple):
    """The whole call: ``Fields`` and ``Numbers`` (f, n) and pointers to what is read again and again."""

    f: Any
    n: Any
    slab: Any
    sums: Any  # of this part
    labels: Any
    rows: Any
    pos_weight: Any
    logits: Any  # of positives
    constants: Any  # of the exponential
    backward: Any


class Work(NamedTuple):
    """Scratch memory of a part."""

    z: Any
    product: Any
    linear: Any
    group: Any
    w: Any
    dw: Any
    old: Any
    b: Any
    db: Any
    old_b: Any
    row_weight: Any
    offsets: Any
    products: Any
    linears: Any


class Tile(NamedTuple):
    """Labels ``first`` to ``first + n - 1``: weights ``w [n, K]``, biases ``b [n]`` and where their gradients go."""

    first: Any
    n: Any
    w: Any
    dw: Any  # or w, where they are updated at once
    b: Any
    db: Any
    in_place: Any  # w is where the weights are stored


class Chunk(NamedTuple):
    """Rows ``first`` to ``first + count - 1`` of the batch: ``[D, width]`` each of the slab and of its gradient, and
    ``row_weight [width]``. place: of its rows among the collectors."""

    table: Any
    sums: Any
    row_weight: Any
    place: Any
    first: Any
    count: Any
    width: Any


@register_jitable
def tile_labels(K):
    """Labels whose weights and gradients are worked on together."""
    return max(1, min(TILE_LABELS, TILE_WEIGHTS // K))


@register_jitable
def chunk_width(rows):
    """Rows that a chunk of ``rows <= 64`` batch rows is padded to."""
    return 16 if rows <= 16 else 32 if rows <= 32 else CHUNK


@register_jitable
def _counts(K, collectors):
    """Numbers and offsets in the scratch memory of a part."""
    rows = tile_labels(K) + ROWS
    floats = (GROUP_LABELS + ROWS + 2 + K) * CHUNK + 3 * rows * K + 3 * rows + collectors
    return (floats + 15) // 16 * 16, (rows * K + 15) // 16 * 16


def scratch_size(K: int, itemsize: int, collectors: int) -> int:
    """Bytes of scratch memory of a part."""
    floats, offsets = _counts(K, collectors)
    return floats * itemsize + offsets * 4 + 2 * collectors * 8


@register_jitable
def open_head(fields, numbers, constants, part):
    """The call's struct, for one part of the labels."""
    f = Fields(*to_fixed_tuple(fields, FIELDS))
    n = Numbers(*to_fixed_tuple(numbers, NUMBERS))
    like = pointer(constants)
    sums = same_kind(np.uint64(f.sums), like)
    return Head(
        f,
        n,
        same_kind(np.uint64(f.slab), like),
        advance(sums, part * f.size) if f.need_x else sums,
        at_address(np.uint64(f.labels), np.int64),
        at_address(np.uint64(f.rows), np.int32),
        same_kind(np.uint64(f.pos_weight), like),
        same_kind(np.uint64(f.logits), like),
        like,
        f.mode != FORWARD,
    )


@register_jitable
def open_work(head, part, itemsize):
    """A part's scratch memory; numbers are zero, but for the rows' weights."""
    K, collectors = head.f.K, head.f.collectors
    room = tile_labels(K) + ROWS
    floats, offsets = _counts(K, collectors)
    start = np.uint64(head.f.scratch + part * head.f.scratch_size)
    z = same_kind(start, head.slab)
    for i in range(floats):
        z[i] = 0
    product = advance(z, (GROUP_LABELS + ROWS) * CHUNK)
    linear = advance(product, CHUNK)
    group = advance(linear, CHUNK)
    w = advance(group, K * CHUNK)
    dw = advance(w, room * K)
    old = advance(dw, room * K)
    b = advance(old, room * K)
    db = advance(b, room)
    old_b = advance(db, room)
    row_weight = advance(old_b, room)
    if head.f.sample_weight != 0:
        given = same_kind(np.uint64(head.f.sample_weight), z)
        for i in range(head.f.B):
            row_weight[i] = given[i]
    else:
        for i in range(collectors):
            row_weight[i] = 1
    behind = start + np.uint64(floats * itemsize)
    products = at_address(behind + np.uint64(offsets * 4), np.float64)
    for i in range(2 * collectors):
        products[i] = 0
    places = at_address(behind, np.uint32)
    return Work(
        z, product, linear, group, w, dw, old, b, db, old_b, row_weight, places, products, advance(products, collectors)
    )  # fmt: skip


FIELDS, NUMBERS = len(Fields._fields), len(Numbers._fields)
