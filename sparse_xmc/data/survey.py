"""How much a file of texts holds, told from its first rows and its number of lines, before any of it is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from sparse_xmc.data.errors import reading
from sparse_xmc.data.source import Source

_SAMPLED = 20_000  # rows that are looked into
_BLOCK = 1 << 20
_WORD = re.compile(r"\w\w+")


@dataclass(frozen=True)
class Survey:
    """What a training split holds, about.

    Args:
        rows, labels, terms: their numbers; labels and terms as Heaps' law goes on from the first rows.
        entries: pairs of a row and a term in it.
        positives: pairs of a row and a label of it.
        name_bytes: of a label's name, on average.
        frequent, frequent_positives: labels with many rows, and the pairs that they are in.
        most: rows of the most frequent label.
    """

    rows: int
    entries: int
    terms: int
    labels: int
    positives: int
    name_bytes: float = 8.0
    frequent: int = 0
    frequent_positives: int = 0
    most: int = 0


def count_lines(source: Source) -> int:
    """Lines of a file, decompressed, that are not empty."""
    count, last = 0, b"\n"
    with reading(source.name), source.open() as file:
        while block := file.read(_BLOCK):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")


def frequent_labels(ids: Any, share: float, often: int) -> tuple[int, int, int]:
    """How many labels have at least ``often`` rows, their rows, and those of the most frequent of all, in ``share`` times as
    many rows as have these ids."""
    counts = share * np.bincount(np.asarray(ids, dtype=np.int64))
    many = counts[counts >= often]
    return len(many), round(float(many.sum())), round(float(counts.max(initial=0)))


def survey(texts: Any, rows: int, min_df: int = 1, max_features: int | None = None, *, often: int = 20) -> Survey:
    """Of a split that yields texts and has ``labels`` meanwhile, of ``rows`` rows in all.

    Args:
        min_df, max_features: of the terms, as ``TfidfFeatures`` has them.
        often: rows from which on a label is frequent.
    """
    counts: dict[str, int] = {}
    half_terms = half_labels = entries = seen = 0
    for text in islice(iter(texts), _SAMPLED):
        terms = set(_WORD.findall(text.lower()))
        entries += len(terms)
        for term in terms:
            counts[term] = counts.get(term, 0) + 1
        seen += 1
        if 2 * seen == min(_SAMPLED, rows):
            half_terms, half_labels = _frequent(counts, min_df)[0], len(texts.labels.names)
    if not seen:
        return Survey(0, 0, 0, 0, 0)
    names = texts.labels.names
    terms_now, kept = _frequent(counts, min_df)
    share = rows / seen
    terms_all = _heaps(half_terms, terms_now, share)
    if max_features is not None:
        terms_all = min(terms_all, max_features)
    return Survey(
        rows,
        round(share * (entries if min_df == 1 or share > 4 else kept)),
        terms_all,
        _heaps(half_labels, len(names), share),
        round(share * len(texts.labels.ids)),
        float(np.mean([len(str(name)) for name in names[:1000]])) if names else 0.0,
        *frequent_labels(texts.labels.ids, share, often),
    )


def _frequent(counts: dict[str, int], min_df: int) -> tuple[int, int]:
    """Terms that enough rows have, and how often they occur."""
    own = [count for count in counts.values() if count >= min_df]
    return len(own), sum(own)


def _heaps(half: int, whole: int, share: float) -> int:
    """Distinct items of ``share`` times as many rows as gave ``whole``, half of which gave ``half``."""
    if not whole or share <= 1:
        return whole
    growth = np.log2(whole / half) if half else 1.0
    return round(whole * share ** min(growth, 1.0))
