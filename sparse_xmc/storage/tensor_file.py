"""safetensors files of tensors that may be spread over ranks: written piece by piece, read block by block.

The file is the same whatever the number of ranks, and no rank ever holds more of a spread tensor than its own block and
one piece of another's.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np

from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.regular import open_regular, parse_json

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_xmc.distributed.ranks import Ranks
    from sparse_xmc.storage.flusher import Flusher

    Numbers = Tensor | np.ndarray

_PIECE_BYTES = 1 << 24
_FLUSHED_BYTES = 1 << 27  # written before they are sent on to the disk
_CHECKED_BYTES = 1 << 18  # looked through while they are in the cache; whole numbers of every dtype
# by the dtype's name, torch's and NumPy's alike: its name in the file and its size
_NAMES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
}
_DTYPES = {name: (dtype, size) for dtype, (name, size) in _NAMES.items()}
_MOST_HEADER_BYTES = 100_000_000
_MOST_DIMENSIONS = 8
# integers of an element's size, and the bits of its positive infinity (float8 e4m3fn has none: of its NaN)
_BITS = {
    "float64": (np.int64, np.uint64, 0x7FF0 << 48),
    "float32": (np.int32, np.uint32, 0x7F80_0000),
    "float16": (np.int16, np.uint16, 0x7C00),
    "bfloat16": (np.int16, np.uint16, 0x7F80),
    "float8_e4m3fn": (np.int8, np.uint8, 0x7F),
    "float8_e5m2": (np.int8, np.uint8, 0x7C),
}


class Block(NamedTuple):
    """The rows of a tensor of ``total`` rows that a rank holds."""

    rows: range
    total: int


class Shards:
    """Which tensors are spread over the ranks.

    Args:
        ranks: those that write together, the first of them the file; None: this process alone.
        blocks: this rank's block by the name of a tensor, or by how names begin: up to a "." or "/". Tensors without
            rows, or with another number of them, are not spread.
    """

    def __init__(self, ranks: Ranks | None = None, blocks: Mapping[str, Block] | None = None) -> None:
        self.ranks, self.blocks = ranks, dict(blocks or {})

    @property
    def first(self) -> bool:
        return self.ranks is None or self.ranks.rank == 0

    def exchange(self, value: Any) -> list[Any]:
        """A JSON value of every rank, in order of ranks."""
        return [value] if self.ranks is None else self.ranks.gather_documents(value, "exchange about a checkpoint")

    def raise_together(self, failure: Exception | None) -> None:
        """Raises the first rank's failure on all ranks, so that none waits for the others."""
        if self.ranks is None or self.ranks.size == 1:
            if failure is not None:
                raise failure
            return
        own = None if failure is None else [isinstance(failure, FloatingPointError), str(failure)]
        for rank, said in enumerate(self.exchange(own)):
            if said is not None:
                if rank == self.ranks.rank and failure is not None:
                    raise failure
                raise FloatingPointError(said[1]) if said[0] else ArtefactError(said[1])

    def held(self, name: str, tensor: Numbers) -> Block | None:
        """The block that ``tensor`` is, None for one that is not spread."""
        block = self._block(name) if tensor.ndim else None
        return block if block is not None and len(tensor) == len(block.rows) else None

    def wanted(self, name: str, shape: list[int]) -> Block | None:
        """The block to be read of a whole tensor of this shape, None for all of it."""
        block = self._block(name)
        return block if block is not None and shape and shape[0] == block.total else None

    def _block(self, name: str) -> Block | None:
        exact = self.blocks.get(name)
        starts = (start for start in self.blocks if start.endswith((".", "/")) and name.startswith(start))
        return exact if exact is not None else next((self.blocks[start] for start in starts), None)


ALONE = Shards()


class Entry(NamedTuple):
    """A tensor of a file: where its bytes are, counted from the end of the header."""

    dtype: str
    itemsize: int
    shape: list[int]
    start: int
    stop: int


def save_tensors(
    path: str, tensors: Mapping[str, Numbers], shards: Shards = ALONE, *, flusher: Flusher | None = None
) -> OSError | None:
    """Writes whole tensors (or arrays of NumPy), to be called on all ranks with the same names; the first rank writes.

    Args:
        flusher: has a large file go to the disk while the rest of it is written.

    Returns:
        What kept the first rank from writing. Raised only here it would leave the others waiting.

    Raises:
        ArtefactError: blocks of the ranks do not add up to a tensor.
    """
    order = sorted(tensors, key=lambda name: (-_itemsize(tensors[name]), name))  # keeps every tensor aligned
    held = {name: shards.held(name, tensors[name]) for name in order}
    placed = {name: (tensors[name], held[name]) for name in order}
    if not shards.first:
        return _write(None, path, placed, shards, None)
    try:
        out = open(path, "wb")  # noqa: SIM115 (closed below, where errors of closing are told from others)
    except OSError as error:
        _write(None, path, placed, shards, None)
        return error
    failure: OSError | None = None
    try:
        failure = _write(out, path, placed, shards, flusher)
    finally:
        try:
            out.close()
        except OSError as error:
            failure = failure or error
    return failure


def _write(
    out: BinaryIO | None,
    path: str,
    tensors: Mapping[str, tuple[Numbers, Block | None]],
    shards: Shards,
    flusher: Flusher | None,
) -> OSError | None:
    """Writes to ``out``, where there is one; takes the other ranks' pieces also when that fails. What failed."""
    failure: OSError | None = None
    unflushed = 0

    def write(content: Any) -> None:
        nonlocal failure, unflushed
        if out is not None and failure is None:
            try:
                unflushed += out.write(content)
            except OSError as error:
                failure = error
            if flusher is not None and unflushed >= _FLUSHED_BYTES:
                flusher.begin(path)
                unflushed = 0

    write(_header(tensors))
    for name, (tensor, block) in tensors.items():
        ranks = None if block is None else shards.ranks
        for piece in _pieces(tensor, block, ranks, f"{path}: {name}"):
            if out is not None:
                write(piece.data if isinstance(piece, np.ndarray) else piece.cpu().numpy().data)
    return failure


def _dtype_name(numbers: Numbers) -> str:
    return str(numbers.dtype).removeprefix("torch.")


def _itemsize(numbers: Numbers) -> int:
    return _NAMES[_dtype_name(numbers)][1]


def _header(tensors: Mapping[str, tuple[Numbers, Block | None]]) -> bytes:
    entries, end = {}, 0
    for name, (tensor, block) in tensors.items():
        shape = list(tensor.shape) if block is None else [block.total, *tensor.shape[1:]]
        start, end = end, end + math.prod(shape) * _itemsize(tensor)
        entries[name] = {"dtype": _NAMES[_dtype_name(tensor)][0], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(own: Numbers, block: Block | None, ranks: Ranks | None, what: str) -> Iterator[Numbers]:
    """Bytes of a tensor, of a spread one those of all ranks' blocks: on the first rank; the others send theirs."""
    if ranks is None or block is None or ranks.size == 1:
        yield from _cut(own)
        return
    import torch

    row, size_of_one = math.prod(own.shape[1:]), _itemsize(own)
    said = ranks.gather_integers(
        [block.rows.start, block.rows.stop, block.total, row, size_of_one], "exchange of the blocks' sizes"
    )
    for sender, rows in _senders(said, what):
        size = rows * row * size_of_one
        pieces = _cut(own) if ranks.rank == sender else None
        for start in range(0, size, _PIECE_BYTES):
            length = min(_PIECE_BYTES, size - start)
            if pieces is not None:
                piece = torch.as_tensor(next(pieces)).to(ranks.device)
            elif ranks.rank == 0:
                piece = torch.empty(length, dtype=torch.uint8, device=ranks.device)
            else:
                continue
            yield ranks.pass_to_first(piece, sender, "passing of a block to the first rank")


def _senders(said: list[list[int]], what: str) -> Iterator[tuple[int, int]]:
    """Ranks whose blocks make the whole tensor, in order, with their rows; of replicas the first one.

    Raises:
        ArtefactError: the blocks leave rows out, or are of different tensors.
    """
    total = said[0][2]
    if any(one[2:] != said[0][2:] for one in said):
        raise ArtefactError(
            f"the ranks' blocks (first row, last, all rows, numbers in a row, bytes) do not fit: {said}", what
        )
    found, at = [], 0
    while at < total:
        sender = next((rank for rank, one in enumerate(said) if one[0] == at and one[1] > at), None)
        if sender is None:
            raise ArtefactError(f"the ranks' blocks of {total} rows do not fit: no one has row {at}", what)
        found.append((sender, said[sender][1] - at))
        at = said[sender][1]
    yield from found


def _cut(numbers: Numbers) -> Iterator[Numbers]:
    raw = _bytes_of(numbers)
    for start in range(0, len(raw), _PIECE_BYTES):
        yield raw[start : start + _PIECE_BYTES]


def _bytes_of(numbers: Numbers) -> Numbers:
    """The bytes ``[n]`` of a tensor, where it is, or of an array."""
    if isinstance(numbers, np.ndarray):
        return np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
    import torch

    return numbers.detach().contiguous().view(-1).view(torch.uint8)


def load_tensors(
    path: str,
    shards: Shards = ALONE,
    *,
    finite: Callable[[str], bool] | None = None,
    mapped: bool = False,
) -> tuple[dict[str, Tensor], int]:
    """The tensors of a file, of spread ones this rank's block, and the CRC-32 of the whole file, read once.

    The number of ranks that wrote it does not matter.

    Args:
        finite: tells by its name whether a tensor may hold neither NaN nor infinity; None: any may.
        mapped: whether tensors stay in the file until they are used, for contents that are copied at once to where they
            belong: no memory is taken, but who shortens the file meanwhile ends the process.

    Raises:
        ArtefactError: the file is missing, no regular file or no sound safetensors file, or a number is not finite.
    """
    import torch

    def as_tensor(raw: np.ndarray, dtype: str, shape: list[int]) -> Tensor:
        kind = getattr(torch, dtype)
        tensor = torch.from_numpy(raw) if len(raw) else torch.empty(0, dtype=torch.uint8)
        return (tensor if tensor.data_ptr() % kind.itemsize == 0 else tensor.clone()).view(kind).view(shape)

    return _load(path, shards, finite, mapped, as_tensor)


def load_arrays(path: str, *, finite: Callable[[str], bool] | None = None) -> tuple[dict[str, np.ndarray], int]:
    """As ``load_tensors``, for NumPy and without torch.

    Raises:
        ArtefactError: likewise, or NumPy lacks the dtype of a tensor.
    """

    def as_array(raw: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
        if dtype == "bfloat16" or dtype.startswith("float8"):
            raise ArtefactError(f"holds {dtype}, which NumPy lacks", path)
        aligned = raw.ctypes.data % np.dtype(dtype).itemsize == 0
        return (raw if aligned else raw.copy()).view(dtype).reshape(shape)

    return _load(path, ALONE, finite, False, as_array)


def _load(
    path: str,
    shards: Shards,
    finite: Callable[[str], bool] | None,
    mapped: bool,
    make: Callable[[np.ndarray, str, list[int]], Any],
) -> tuple[dict[str, Any], int]:
    tensors: dict[str, Any] = {}
    with open_regular(path) as file:
        entries, crc = _read_header(file, path)
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            row = math.prod(entry.shape[1:]) * entry.itemsize
            block = shards.wanted(name, entry.shape)
            whole = entry.stop - entry.start
            first, last = (0, whole) if block is None else (block.rows.start * row, block.rows.stop * row)
            checked = entry.dtype if finite is not None and finite(name) else None
            begin = file.tell()
            try:
                if mapped:
                    crc = _skip(file, whole, crc, path, checked)
                    raw = _mapped(file, begin + first, last - first)
                else:
                    raw = np.empty(last - first, dtype=np.uint8)
                    crc = _skip(file, first, crc, path, checked)
                    crc = _fill(file, raw, crc, path, checked)
                    crc = _skip(file, whole - last, crc, path, checked)
            except FloatingPointError:
                raise ArtefactError(f"is damaged: {name} holds NaN or infinity", path) from None
            shape = entry.shape if block is None else [len(block.rows), *entry.shape[1:]]
            tensors[name] = make(raw, entry.dtype, shape)
    return tensors, crc


def _mapped(file: BinaryIO, start: int, length: int) -> np.ndarray:
    """Bytes of a file as memory that is filled when it is used; what is written to it does not reach the file."""
    if not length:
        return np.empty(0, dtype=np.uint8)
    page = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    memory = mmap.mmap(file.fileno(), start - page + length, access=mmap.ACCESS_COPY, offset=page)
    return np.frombuffer(memory, dtype=np.uint8, count=length, offset=start - page)


def check_tensors(path: str) -> int:
    """The CRC-32 of a file that is a sound one of tensors from its first to its last byte.

    Raises:
        ArtefactError: it is none.
    """
    with open_regular(path) as file:
        entries, crc = _read_header(file, path)
        crc = _skip(file, max((entry.stop for entry in entries.values()), default=0), crc, path)
    return crc


def _read_header(file: BinaryIO, path: str) -> tuple[dict[str, Entry], int]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > _MOST_HEADER_BYTES:
        raise ArtefactError(f"is damaged: a header of {length:,} bytes", path)
    text = file.read(length)
    if len(text) < length:
        raise ArtefactError(f"is truncated: {len(text):,} bytes of a header of {length:,}", path)
    document = parse_json(text, path, " (header)")
    if not isinstance(document, dict):
        raise ArtefactError(f"is damaged: its header is {document!r:.40}", path)
    document.pop("__metadata__", None)
    entries = {name: _entry(name, value, path) for name, value in document.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise ArtefactError(f"is damaged: {name!r:.80} begins at byte {entry.start:,}, not at {end:,}", path)
        end = entry.stop
    found, told = os.fstat(file.fileno()).st_size, 8 + length + end  # before memory is taken for what the header tells
    if found != told:
        change = "truncated" if found < told else "damaged"
        raise ArtefactError(f"is {change}: {found:,} bytes, its header tells of {told:,}", path)
    return entries, zlib.crc32(text, zlib.crc32(start))


def _entry(name: str, value: Any, path: str) -> Entry:
    found = value if isinstance(value, dict) else {}
    kind, shape, place = _DTYPES.get(str(found.get("dtype"))), found.get("shape"), found.get("data_offsets")
    if kind is not None and _are_sizes(shape) and _are_sizes(place) and len(place) == 2:
        fits = place[1] - place[0] == math.prod(shape) * kind[1]
        if fits and len(shape) <= _MOST_DIMENSIONS:
            return Entry(*kind, shape, *place)
    raise ArtefactError(f"is damaged: {name!r:.80} is described as {value!r:.200}", path)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 62 for number in value)


def _fill(file: BinaryIO, target: np.ndarray, crc: int, path: str, checked: str | None = None) -> int:
    """Reads until ``target`` (bytes) is full; the checksum with these bytes.

    Raises:
        FloatingPointError: a number of dtype ``checked`` is NaN or infinite.
    """
    for start in range(0, len(target), _CHECKED_BYTES):
        piece = target[start : start + _CHECKED_BYTES]
        view, done = piece.data, 0
        while done < len(view):
            got = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise ArtefactError("is truncated: it is shorter than its tensors", path)
            done += got
        crc = zlib.crc32(view, crc)
        if checked is not None and not _finite(piece, checked):
            raise FloatingPointError
    return crc


def _skip(file: BinaryIO, length: int, crc: int, path: str, checked: str | None = None) -> int:
    """Reads bytes for the sake of their checksum; see ``_fill``."""
    scratch = np.empty(min(length, _CHECKED_BYTES), dtype=np.uint8)
    while length:
        crc = _fill(file, scratch[:length], crc, path, checked)
        length -= min(length, len(scratch))
    return crc


def all_finite(numbers: Numbers) -> bool:
    """Whether a tensor or an array holds neither NaN nor infinity; on the CPU at the speed of its memory, uncopied."""
    name = _dtype_name(numbers)
    if name not in _BITS:
        return True
    if not isinstance(numbers, np.ndarray) and numbers.device.type != "cpu":
        return all(bool(piece.isfinite().all()) for piece in numbers.detach().reshape(-1).split(_PIECE_BYTES))
    raw = np.asarray(_bytes_of(numbers))
    return all(_finite(raw[start : start + _CHECKED_BYTES], name) for start in range(0, len(raw), _CHECKED_BYTES))


def _finite(raw: np.ndarray, dtype: str) -> bool:
    """``all_finite`` of the bytes of some numbers: by their bits, at the speed of integers."""
    if dtype not in _BITS:
        return True
    signed, unsigned, infinity = _BITS[dtype]
    positive, negative = raw.view(signed), raw.view(unsigned)
    return bool(positive.max() < infinity and negative.max() < infinity | 1 << 8 * positive.itemsize - 1)
