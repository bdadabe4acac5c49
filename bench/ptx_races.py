"""Finds in PTX where one thread may store to global memory what another thread of the block has yet to load.

Where every warp of a block holds a value, Triton lets all of them load it and one of them store it. If nothing makes the
block wait between the two, a late warp loads the new value in place of the old one. In PTX that is a load and a store
of one address under different predicates, and a way from one to the other without a barrier.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_GUARD = r"(?:@(!?%p\d+)\s+)?"
_LABEL = re.compile(r"(\$L\w+):")
_JUMP = re.compile(_GUARD + r"bra(?:\.uni)?\s+(\$L\w+)")
_LEAVE = re.compile(r"(?:ret|exit)\b")
_BARRIER = re.compile(_GUARD + r"(?:bar(?:rier)?\.(?:cta\.)?sync|bar\.red)")
_LOAD = re.compile(_GUARD + r"ld\.global\S*\s.*\[\s*(%\w+)\s*(?:\+\s*(-?\d+)\s*)?\]")
_STORE = re.compile(_GUARD + r"st\.global\S*\s+\[\s*(%\w+)\s*(?:\+\s*(-?\d+)\s*)?\]")
_LINE = re.compile(r"\.loc\s.*//\s*(\S+)")

Load = tuple[str, str, str, str]  # address, offset, predicate, source line


class _Block(NamedTuple):
    """A straight run of instructions and the numbers of the blocks that may follow it."""

    code: list[tuple[str, str]]  # (instruction, source line)
    next: list[int]


def races(ptx: str) -> list[str]:
    """``"<line of the load> is stored to at <line>"`` for each such pair of a kernel, in order; empty if there is none."""
    blocks = _blocks(ptx)
    pending: list[set[Load]] = [set() for _ in blocks]
    found: dict[str, None] = {}
    visited: set[int] = set()
    due = [0] if blocks else []
    while due:
        number = due.pop()
        visited.add(number)
        left = _after(blocks[number], pending[number], found)
        for following in blocks[number].next:
            if following not in visited or not left <= pending[following]:
                pending[following] |= left
                due.append(following)
    return list(found)


def _after(block: _Block, loads: set[Load], found: dict[str, None]) -> set[Load]:
    """The loads that no barrier follows at the block's end, given those at its beginning; notes the pairs in between."""
    loads = set(loads)
    for instruction, source in block.code:
        if _BARRIER.match(instruction):
            loads.clear()
        elif match := _LOAD.match(instruction):
            loads.add((match[2], match[3] or "0", match[1] or "", source))
        elif match := _STORE.match(instruction):
            for address, offset, predicate, line in loads:
                if (address, offset) == (match[2], match[3] or "0") and predicate != (match[1] or ""):
                    found[f"{line} is stored to at {source}"] = None
    return loads


def _blocks(ptx: str) -> list[_Block]:
    """The basic blocks of a kernel, the entry first."""
    runs, labels = [], {}
    run: list[tuple[str, str]] = []
    for instruction, source in _instructions(ptx):
        if label := _LABEL.match(instruction):
            runs.append(run)
            run = []
            labels[label[1]] = len(runs)
            continue
        run.append((instruction, source))
        if _JUMP.match(instruction) or _LEAVE.match(instruction):
            runs.append(run)
            run = []
    runs.append(run)
    blocks = []
    for number, code in enumerate(runs):
        last = code[-1][0] if code else ""
        jump = _JUMP.match(last)
        onwards = not _LEAVE.match(last) and not (jump and jump[1] is None)
        following = [labels[jump[2]]] if jump else []
        blocks.append(_Block(code, following + [number + 1] * (onwards and number + 1 < len(runs))))
    return blocks


def _instructions(ptx: str) -> Iterator[tuple[str, str]]:
    """Each instruction or label with the source line that it was made from."""
    source = "an unknown line"
    for line in ptx.splitlines():
        text = line.split("//")[0].strip() if not line.lstrip().startswith(".loc") else line.strip()
        if match := _LINE.match(text):
            source = match[1]
        elif text and not text.startswith((".", "{", "}", "(", ")")):
            yield text, source
