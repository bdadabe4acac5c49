"""Counts of terms for a stream of texts: cut into chunks, counted on all threads while the stream is read on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from sparse_xmc.data.term_table import TermTable, character_classes, encode, pack
from sparse_xmc.kernels.threads import num_threads

_CHUNK = 1 << 18  # bytes of text counted at a time


@dataclass
class Counts:
    """Rows of a chunk: ids of terms in order of first occurrence, as ``counter`` numbers them, and their counts."""

    counter: Counter
    rows: np.ndarray
    ids: np.ndarray
    counts: np.ndarray


class Counter:
    """Counts the terms of chunks, one chunk after the other.

    Args:
        table: the terms; None: columns are hashes.
        grow: whether unknown terms are added.
        limits: longest run of words, shortest and longest run of characters, number of columns of hashes.
        scripts: whether runs of scripts without spaces are cut into characters.
    """

    def __init__(self, table: TermTable | None, grow: bool, limits: tuple[int, int, int, int], scripts: bool) -> None:
        self.hashed = table is None
        self.table = TermTable() if table is None else table
        max_word, lo, hi, _ = limits
        runs = 2 * (hi - lo + 1) if hi else 0
        # most terms of a text by its bytes, and most bytes of these terms: runs of words, of characters, of scripts
        self._terms, self._bytes = max_word + runs + 3, max_word**2 + runs * (4 * hi + 2) + 9
        self.grow, self.scripts = grow, scripts
        self.limits = np.array([*limits, self._terms, self._bytes], dtype=np.int64)
        size = limits[3] if self.hashed else len(self.table.offsets)
        self._seen = np.full(size + 1, -1, dtype=np.int64)
        self._seen[-1] = 0
        self._scratch = np.empty(0, dtype=np.uint8)
        self._begins = self._ends = np.empty(0, dtype=np.int64)

    def _reserve(self, size: int) -> None:
        """Makes room for the terms of a text of that many bytes."""
        self.table.reserve(self._terms * (size + 2), self._bytes * (size + 2))
        if len(self._seen) < len(self.table.offsets) + 1:
            seen = np.full(len(self.table.offsets) + 1, -1, dtype=np.int64)
            seen[: len(self._seen) - 1], seen[-1] = self._seen[:-1], self._seen[-1]
            self._seen = seen

    def count(self, parts: list[bytes]) -> Counts:
        from sparse_xmc.kernels.terms import ADD, FIND, HASH, count_terms

        text, starts = pack(parts)
        longest = max(map(len, parts), default=0)
        if len(self._begins) < self._terms * (longest + 2):
            self._begins, self._ends = (np.empty(self._terms * (longest + 2), dtype=np.int64) for _ in range(2))
            self._scratch = np.empty((self._bytes + 2) * (longest + 2), dtype=np.uint8)
        rows = np.zeros(len(parts) + 1, dtype=np.int64)
        size = max(len(text) // 4, self._terms * (longest + 2))
        ids, counts = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
        mode = HASH if self.hashed else ADD if self.grow else FIND
        classes, done, table = character_classes(self.scripts), 0, self.table
        while True:
            done = count_terms(
                text,
                starts,
                done,
                classes,
                self.limits,
                mode,
                table.slots,
                table.heads,
                table.offsets,
                table.arena,
                table.fill,
                self._seen,
                self._scratch,
                self._begins,
                self._ends,
                rows,
                ids,
                counts,
            )
            if done == len(parts):
                break
            needed = int(rows[done]) + self._terms * (len(parts[done]) + 2)
            if needed > len(ids):
                ids, counts = (np.resize(array, max(needed, 2 * size)) for array in (ids, counts))
                size = len(ids)
            if self.grow:
                self._reserve(len(parts[done]))
        total = int(rows[-1])
        self._seen[-1] += total
        return Counts(self, rows, ids[:total].copy(), counts[:total].copy())


def _chunks(texts: Iterable[str]) -> Iterator[list[bytes]]:
    parts, size = [], 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must be strings, got {type(text).__name__}")
        part = encode(text)
        parts.append(part)
        size += len(part)
        if size >= _CHUNK:
            yield parts
            parts, size = [], 0
    if parts:
        yield parts


def count_stream(texts: Iterable[str], make: Callable[[], Counter]) -> Iterator[Counts]:
    """Yields the counts of consecutive chunks of texts, in order; each thread has a counter of its own.

    Raises:
        TypeError: ``texts`` is one string, or holds something else than strings.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError("texts must be an iterable of strings, got one string")
    chunks, threads = _chunks(texts), num_threads()
    first = next(chunks, None)
    if first is None:
        return
    second = next(chunks, None) if threads > 1 else None
    if second is None:
        counter = make()
        yield counter.count(first)
        for chunk in chunks:
            yield counter.count(chunk)
        return
    idle: SimpleQueue[Counter] = SimpleQueue()
    for _ in range(threads):
        idle.put(make())

    def work(chunk: list[bytes]) -> Counts:
        counter = idle.get()
        try:
            return counter.count(chunk)
        finally:
            idle.put(counter)

    with ThreadPoolExecutor(threads, thread_name_prefix="terms") as pool:
        waiting: deque[Future[Counts]] = deque([pool.submit(work, first), pool.submit(work, second)])
        for chunk in chunks:
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
