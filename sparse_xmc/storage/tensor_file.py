"""safetensors files of tensors that may be spread over ranks: written piece by piece, read block by block.

The file is the same whatever the number of ranks, and no rank ever holds more of a spread tensor than its own block and
one piece of another's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparse_xmc.distributed.ranks import Ranks

_PIECE_BYTES = 1 << 24
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class Block(NamedTuple):
    """The rows of a tensor of ``total`` rows that a rank holds."""

    rows: range
    total: int


class Shards:
    """Which tensors are spread over the ranks.

    Args:
        ranks: those that write together, the first of them the file; None: this process alone.
        blocks: this rank's block, by how the names of the tensors begin. Under such a name tensors without rows, or
            with another number of them, are not spread.
    """

    def __init__(self, ranks: Ranks | None = None, blocks: Mapping[str, Block] | None = None) -> None:
        self.ranks, self.blocks = ranks, dict(blocks or {})

    @property
    def first(self) -> bool:
        return self.ranks is None or self.ranks.rank == 0

    def held(self, name: str, tensor: Tensor) -> Block | None:
        """The block that ``tensor`` is, None for one that is not spread."""
        block = self._block(name) if tensor.ndim else None
        return block if block is not None and len(tensor) == len(block.rows) else None

    def wanted(self, name: str, shape: list[int]) -> Block | None:
        """The block to be read of a whole tensor of this shape, None for all of it."""
        block = self._block(name)
        return block if block is not None and shape and shape[0] == block.total else None

    def _block(self, name: str) -> Block | None:
        return next((block for start, block in self.blocks.items() if name.startswith(start)), None)


ALONE = Shards()


def save_tensors(path: str, tensors: Mapping[str, Tensor], shards: Shards = ALONE) -> None:
    """Writes the whole tensors, to be called on all ranks with tensors of the same names; the first rank writes."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned
    held = {name: shards.held(name, tensors[name]) for name in order}
    with open(path, "wb") if shards.first else nullcontext() as file:
        if file is not None:
            file.write(_header({name: (tensors[name], held[name]) for name in order}))
        for name in order:
            block = held[name]
            for piece in _pieces(tensors[name].detach(), None if block is None else shards.ranks):
                if file is not None:
                    file.write(piece.cpu().numpy().data)


def _header(tensors: Mapping[str, tuple[Tensor, Block | None]]) -> bytes:
    entries, end = {}, 0
    for name, (tensor, block) in tensors.items():
        shape = list(tensor.shape) if block is None else [block.total, *tensor.shape[1:]]
        start, end = end, end + torch.Size(shape).numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(own: Tensor, ranks: Ranks | None) -> Iterator[Tensor]:
    """Bytes of a tensor, of a spread one those of all ranks' blocks: on the first rank; the others send theirs."""
    if ranks is None or ranks.size == 1:
        yield from _cut(own)
        return
    sizes = [size for (size,) in ranks.gather_integers([own.nbytes], "exchange of the blocks' sizes")]
    for sender, size in enumerate(sizes):
        pieces = _cut(own) if ranks.rank == sender else None
        for start in range(0, size, _PIECE_BYTES):
            length = min(_PIECE_BYTES, size - start)
            if pieces is not None:
                piece = next(pieces)
            elif ranks.rank == 0:
                piece = torch.empty(length, dtype=torch.uint8, device=ranks.device)
            else:
                continue
            yield ranks.pass_to_first(piece, sender, "passing of a block to the first rank")


def _cut(tensor: Tensor) -> Iterator[Tensor]:
    if tensor.numel():
        yield from tensor.contiguous().view(-1).view(torch.uint8).split(_PIECE_BYTES)


def load_tensors(path: str | os.PathLike[str], shards: Shards = ALONE) -> dict[str, Tensor]:
    """The tensors of a file, of spread ones this rank's block. The number of ranks that wrote it does not matter."""
    from safetensors import safe_open

    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            part = file.get_slice(name)
            block = shards.wanted(name, part.get_shape())
            tensors[name] = file.get_tensor(name) if block is None else part[block.rows.start : block.rows.stop]
    return tensors
