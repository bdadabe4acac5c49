"""Executed warp instructions of a compiled kernel, counted in its machine code (SASS) instead of measured.

Loops count as often as the caller says. A loop that the caller does not know, with all that is passed over together with
it (what only tiles with positives do, say), counts by the share of tiles that enter it. Caches, latencies and clocks are
no part of the figure: it bounds from below how long the schedulers are busy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_LABEL = re.compile(r"^\s*\.?(L\w+):\s*$")
_INSTRUCTION = re.compile(
    r"^\s*(?:[\w-]+:[\w-]+:[\w-]+:[\w-]+:[\w-]+\s+)?(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)\s*(.*)$"
)
_LEAVES = ("EXIT", "RET")

Trips = Callable[[list[str]], float | None]


@dataclass
class _Block:
    label: str
    names: list[str] = field(default_factory=list)
    next: list[int] = field(default_factory=list)


def executed(sass: str, trips: Trips, entered: float) -> float:
    """Expected number of instructions that a warp executes.

    Args:
        sass: the listing as Triton prints it (``compiled.asm["sass"]``).
        trips: how often a loop with these instruction names runs; None for one that only a share of the tiles enters.
        entered: that share.
    """
    blocks = _blocks(sass)
    loops = {(start, end): trips(_names(blocks, start, end)) for start, end in _loops(blocks)}
    known = sorted((loop for loop, number in loops.items() if number is not None), key=lambda loop: loop[0])
    rare = _passed_over(blocks, known, [loop for loop, number in loops.items() if number is None])
    total = 0.0
    for number, block in enumerate(blocks):
        times = entered if number in rare else 1.0
        for start, end in known:
            if start <= number <= end:
                times *= loops[start, end] or 0.0
        # what fills a listing up behind its end is never reached
        total += times * sum(name != "NOP" for name in block.names)
    return total


def _blocks(sass: str) -> list[_Block]:
    """The basic blocks of a listing, the entry first."""
    blocks, jumps = [_Block("")], {}
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            blocks.append(_Block(label[1]))
        elif (match := _INSTRUCTION.match(line)) and not line.startswith("Function"):
            predicate, name, rest = match.groups()
            blocks[-1].names.append(name)
            if name.startswith(("BRA", "BRX", *_LEAVES)):
                target = re.search(r"\bL\w+", rest) if name.startswith("BRA") else None
                jumps[len(blocks) - 1] = (target[0] if target else None, predicate is not None)
                blocks.append(_Block(""))
    places = {block.label: number for number, block in enumerate(blocks) if block.label}
    for number, block in enumerate(blocks):
        target, falls_through = jumps.get(number, (None, True))
        block.next = [places[target]] if target in places else []
        block.next += [number + 1] * (falls_through and number + 1 < len(blocks))
    return blocks


def _loops(blocks: list[_Block]) -> list[tuple[int, int]]:
    """First and last block of every loop; the one at the end of a listing that traps a lost thread is none."""
    found: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for target in block.next:
            if target <= number and not (target == number and len(block.names) == 1):
                found[target] = max(number, found.get(target, 0))
    return list(found.items())


def _names(blocks: list[_Block], start: int, end: int) -> list[str]:
    return [name for block in blocks[start : end + 1] for name in block.names]


def _passed_over(blocks: list[_Block], known: list[tuple[int, int]], unknown: Iterable[tuple[int, int]]) -> set[int]:
    """The blocks that a way past the unknown loops avoids together with them."""
    rare: set[int] = set()
    innermost = [loop for loop in known if not any(loop != k and loop[0] <= k[0] and k[1] <= loop[1] for k in known)]
    stops = [0, *(place for loop in innermost for place in loop), len(blocks) - 1]
    for start, end in zip(stops, stops[1:], strict=False):
        avoidable = {b for b in _between(blocks, start, end) if _reaches(blocks, start, end, without=b)}
        for first, last in unknown:
            spread = {b for b in range(first, last + 1) if b in avoidable}
            while spread - rare:
                rare |= spread
                near = {b for b in avoidable for to in blocks[b].next if to in spread}
                spread |= near | {to for b in spread for to in blocks[b].next if to in avoidable}
    return rare


def _between(blocks: list[_Block], start: int, end: int) -> set[int]:
    """The blocks on ways from start to end (or out of the kernel), without the two."""
    return {b for b in range(len(blocks)) if start < b < end}


def _reaches(blocks: list[_Block], start: int, end: int, *, without: int) -> bool:
    seen, due = {start, without}, [start]
    while due:
        block = due.pop()
        for to in blocks[block].next:
            if to == end:
                return True
            if to not in seen and start <= to <= end:
                seen.add(to)
                due.append(to)
        if not blocks[block].next and end == len(blocks) - 1:
            return True
    return False
