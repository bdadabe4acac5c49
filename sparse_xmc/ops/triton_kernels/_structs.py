"""What travels together through the device code of the fused head, and the constants of a tile.

A kernel makes the structs from its flat arguments: across a launch they would lose the types that annotations give to
numbers, and inside they cost nothing.
"""

from typing import Any, NamedTuple

import triton


class Layer(NamedTuple):
    """The layer's parameters. ``bias`` may be None."""

    weight: Any  # [L, K]
    indices: Any  # [ceil(L / G), K]
    bias: Any  # [L]
    L: Any


class Batch(NamedTuple):
    """The inputs, feature-major with zeros from column B on."""

    xt: Any  # [D, stride]
    B: Any
    stride: Any


class Positives(NamedTuple):
    """The positives by (label, row); a bucket of WIDTH labels owns ``labels[starts[bucket] : starts[bucket + 1]]``."""

    labels: Any  # [nnz] ascending
    rows: Any  # [nnz], B for entries that do not count
    starts: Any  # [buckets + 1]


class Objective(NamedTuple):
    """What the loss depends on beside logits. Weights may be None."""

    pos_weight: Any  # [L]
    sample_weight: Any  # [B]
    gamma_pos: Any
    gamma_neg: Any
    clip: Any


class InputGradient(NamedTuple):
    """Where a tile's part of the input gradient goes; see ``Tile.DX``. ``first``: the label of row 0 of dz and weight."""

    dxt: Any  # [D, stride]
    dz: Any  # [labels, stride]
    weight: Any  # [labels, K], or [labels, D] in the way "dense"
    first: Any
    D: Any


class Gradients(NamedTuple):
    """Where the parameters' gradients go, and what they are multiplied by."""

    dw: Any  # [L, K]
    db: Any  # [L]
    scale: Any


class Update(NamedTuple):
    """State and hyperparameters of an update in place, as ``sparse_xmc.ops`` specifies it. State may be None."""

    weight_momentum: Any  # [L, K]
    weight_moment: Any  # [L]
    bias_momentum: Any  # [L]
    bias_moment: Any  # [L]
    lr: Any
    momentum: Any
    weight_decay: Any
    decay: Any
    gain: Any
    correction: Any
    eps: Any
    seed: Any
    step: Any


class Tile(NamedTuple):
    """Constants of the compilation.

    LOSS: "bce", "squared_hinge" or "asymmetric". UPDATE: whether gradients are applied instead of stored.
    DX: "none"; "atomic": added to dxt; "private": added to dxt, which no other program touches; "rows" and "dense":
    derivatives and old weights are written down, for a kernel that sums them by feature or multiplies them.
    EVEN: connections and rows of the batch fill their blocks, and need no mask. WIDTH: labels in a bucket of positives.
    DOT: dtype of matrix operands. TERMS: how many of them make up a weight, or a derivative for the weight gradient.
    SHIFT: power of two that keeps small derivatives out of DOT's subnormal range.
    ONCE, AGAIN: eviction policies of loads, of what is read once (weights) and by every program (x); "" leaves it to the GPU.
    """

    K: int
    G: int
    LOSS: str
    NEED_LOSS: bool
    NEED_WEIGHT: bool
    UPDATE: bool
    STOCHASTIC: bool
    DX: str
    EVEN: bool
    WIDE: bool
    WIDTH: int
    DOT: Any
    TERMS: int
    PRECISION: Any
    SHIFT: float
    BLOCK_L: int
    BLOCK_K: int
    BLOCK_B: int
    ONCE: str
    AGAIN: str


@triton.constexpr_function
def tile_of(*constants: Any) -> Tile:
    """The constants of a launch under their names; the last one is whether loads have eviction policies."""
    once, again = ("evict_first", "evict_last") if constants[-1] else ("", "")
    values: Any = (*constants[:-1], once, again)
    return Tile(*values)
