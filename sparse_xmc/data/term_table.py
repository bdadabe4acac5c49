"""A growing set of terms as flat arrays, in which kernels look terms up by their bytes."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

from sparse_xmc.kernels.characters import SCRIPT, SPACE, WORD

# scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, Tai Le and Tham, kana, Bopomofo, Han
_SCRIPTS = (
    "0E00-0EFF 1000-109F 1780-17FF 1950-19DF 1A20-1AAF 3005-3007 3021-3029 3031-312F 31A0-31BF 31F0-31FF 3400-4DBF "
    "4E00-9FFF A9E0-A9FF AA60-AA7F F900-FAFF FF66-FF9F 1AFF0-1AFFF 1B000-1B16F 20000-3FFFF"
)


@functools.cache
def character_classes(scripts: bool) -> np.ndarray:
    """Class of each code point ``[0x110000]``; ``scripts``: whether scripts without spaces have a class of their own."""
    classes = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    everything = np.arange(sys.maxunicode + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for pattern, value in ((r"\w+", WORD), (r"\s+", SPACE)):
        for match in re.finditer(pattern, everything):
            classes[match.start() : match.end()] = value
    for code in np.flatnonzero(classes == SPACE):
        if not chr(code).isspace():
            classes[code] = 0
    for interval in _SCRIPTS.split() if scripts else ():
        low, high = (int(end, 16) for end in interval.split("-"))
        for code in range(low, high + 1):
            # vowels and tones are marks, no characters of words to Python
            if classes[code] == WORD or unicodedata.category(chr(code)).startswith("M"):
                classes[code] = WORD | SCRIPT
    return classes


def encode(text: str) -> bytes:
    """UTF-8 of a text in lower case; half a surrogate pair is taken as it is."""
    return text.lower().encode("utf-8", "surrogatepass")


def pack(parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Byte strings as one array of bytes and ``len(parts) + 1`` offsets."""
    starts = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    return np.frombuffer(bytearray(b"".join(parts)), dtype=np.uint8), starts


class TermTable:
    """Distinct terms, numbered in order of addition.

    Attributes:
        slots, heads, offsets, arena, fill: as ``kernels.terms`` describes them.
    """

    def __init__(self, terms: Sequence[str] = ()) -> None:
        text, starts = pack([term.encode("utf-8", "surrogatepass") for term in terms])
        self.slots = np.zeros(1 << max(10, (4 * len(terms)).bit_length()), dtype=np.int64)
        self.offsets = np.zeros(len(self.slots) // 2, dtype=np.int64)
        self.heads = np.empty(len(self.offsets), dtype=np.uint64)
        self.arena = np.empty(max(1 << 12, len(text)), dtype=np.uint8)
        self.fill = np.zeros(2, dtype=np.int64)
        self.add(text, starts)

    def __len__(self) -> int:
        return int(self.fill[0])

    def reserve(self, terms: int, size: int) -> None:
        """Makes room for that many more terms of that many bytes in all."""
        terms, size = len(self) + terms, int(self.fill[1]) + size
        if size > len(self.arena):
            self.arena = _longer(self.arena, max(size, 2 * len(self.arena)))
        if terms >= len(self.offsets) or 2 * terms > len(self.slots):
            from sparse_xmc.kernels.terms import fill_slots

            self.slots = np.zeros(1 << max(10, (4 * terms).bit_length()), dtype=np.int64)
            self.offsets = _longer(self.offsets, len(self.slots) // 2 + 1)
            self.heads = _longer(self.heads, len(self.offsets))
            fill_slots(self.slots, self.heads, self.offsets, self.arena, len(self))

    def add(self, text: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Adds the terms ``text[starts[i]:starts[i + 1]]`` that are new; returns the ids of all of them."""
        from sparse_xmc.kernels.terms import add_terms

        ids = np.empty(len(starts) - 1, dtype=np.int64)
        if len(ids):
            self.reserve(len(ids), len(text))
            add_terms(text, starts, self.slots, self.heads, self.offsets, self.arena, self.fill, ids)
        return ids

    def term(self, i: int) -> str:
        return self.arena[self.offsets[i] : self.offsets[i + 1]].tobytes().decode("utf-8", "surrogatepass")

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """The bytes of all terms and their offsets."""
        return self.arena[: self.fill[1]], self.offsets[: len(self) + 1]


def _longer(array: np.ndarray, size: int) -> np.ndarray:
    longer = np.empty(size, dtype=array.dtype)
    longer[: len(array)] = array
    return longer
