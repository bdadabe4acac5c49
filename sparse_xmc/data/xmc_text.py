"""Sparse features as text: the formats of the Extreme Classification Repository and of svmlight.

One file: a header ``rows features labels``, then ``l1,l2 f:v f:v ...`` a line. Two files: ``rows features`` and ``f:v ...``,
beside ``rows labels`` and ``l:1 ...``. svmlight: lines of the first kind without a header. A column is the number that the
file writes, whether it counts from 0 or from 1.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.checked import WIDEST
from sparse_xmc.data.errors import DataError
from sparse_xmc.data.labels import LabelRows
from sparse_xmc.data.source import Source, numbered_lines

_NUMBER = "[0-9]{1,18}"
_HEADER = re.compile(rf"\s*({_NUMBER})\s+({_NUMBER})(?:\s+({_NUMBER}))?\s*")
_PAIRS = re.compile(r"\s*(?:[0-9]+:[^\s:]+(?:\s+|$))*")
_LABELLED = re.compile(r"(?:[+-]?[0-9]+(?:,[+-]?[0-9]+)*)?(?:\s+qid:[0-9]+)?(?:(?:^|\s)\s*[0-9]+:[^\s:]+)*\s*(?:#.*)?")
_QUERY = re.compile(r"\A\s*qid:[0-9]+(?=\s|\Z)")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_PLAIN = re.compile(r"\s*(?:[0-9]{1,18}:[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?(?:\s+|$))*")  # most rows there are
_TOO_LARGE = 2.0**128 - 2.0**103  # what rounds to infinity in float32


def parse_header(line: str) -> tuple[int, int, int] | None:
    """``(rows, features, labels)`` of a header line, None where the line is none."""
    match = _HEADER.fullmatch(line)
    return None if match is None or match[3] is None else (int(match[1]), int(match[2]), int(match[3]))


def two_numbers(line: str) -> tuple[int, int] | None:
    """``(rows, columns)`` of the header of a sparse matrix in text, None where the line is none."""
    match = _HEADER.fullmatch(line)
    return None if match is None or match[3] is not None else (int(match[1]), int(match[2]))


def parse_pairs(line: str) -> bool:
    """Whether a line holds nothing but ``column:value`` pairs, or nothing."""
    return _PAIRS.fullmatch(line) is not None


def is_labelled(line: str) -> bool:
    """Whether a line reads ``l1,l2 f:v f:v ...``; either part may be missing."""
    return _LABELLED.fullmatch(line) is not None


@dataclass
class _Rows:
    """Rows of ``column:value`` pairs as they are read."""

    path: str
    width: int | None
    what: str = "feature"
    widest: int = WIDEST
    columns: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("f"))
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    least: int = 1
    beyond: int | None = None  # line of the first column that is there only when columns count from 1

    def add(self, text: str, number: int) -> None:
        """Adds a row.

        Raises:
            DataError: it breaks the format.
        """
        if not self._add_plain(text):
            self._add_pair_by_pair(text, number)
        self.offsets.append(len(self.columns))

    def _add_plain(self, text: str) -> bool:
        """Adds a row at once, or nothing where that leaves a doubt about one of its pairs."""
        if not _PLAIN.fullmatch(text):
            return False
        parts = text.replace(":", " ").split()
        columns, values = list(map(int, parts[::2])), list(map(float, parts[1::2]))
        if not columns:
            return True
        bound = self.widest if self.width is None else self.width
        if max(columns) >= bound or len(set(columns)) < len(columns) or max(values) >= _TOO_LARGE:
            return False
        self.least = min(self.least, *columns)
        self.columns.extend(columns)
        self.values.extend(values)
        return True

    def _add_pair_by_pair(self, text: str, number: int) -> None:
        seen = set()
        for pair in text.split():
            name, _, value_text = pair.partition(":")
            if not _INTEGER.fullmatch(name) or not value_text:
                raise DataError(self.path, number, f"expected '{self.what}:value', got {pair!r:.80}")
            column = int(name[:30])
            value = float(value_text) if _FLOAT.fullmatch(value_text) else float("nan")
            if self.width is None and not 0 <= column < self.widest:
                raise DataError(self.path, number, f"{self.what} {name:.40} lies outside [0, {self.widest})")
            if self.width is not None and not 0 <= column <= self.width:
                raise DataError(self.path, number, self._outside(column))
            if column in seen:
                raise DataError(self.path, number, f"{self.what} {column} stands twice in the row")
            if not abs(value) < _TOO_LARGE:
                reason = f"{self.what} {column} has the value {value_text:.80}, not finite in float32"
                raise DataError(self.path, number, reason)
            seen.add(column)
            self.least = min(self.least, column)
            if column == self.width and self.beyond is None:
                self.beyond = number
            self.columns.append(column)
            self.values.append(value)

    def _outside(self, column: int) -> str:
        return f"{self.what} {column} lies outside [0, {self.width}) of the header"

    def matrix(self) -> sp.csr_matrix:
        if self.beyond is not None and self.least == 0:
            assert self.width is not None
            raise DataError(self.path, self.beyond, self._outside(self.width))
        columns = np.frombuffer(self.columns, dtype=np.int64)
        width = self.width
        if width is None:
            width = int(columns.max(initial=-1)) + 1
        elif self.beyond is not None:
            width += 1
        if width > self.widest:
            raise DataError(self.path, 1, f"{width} {self.what}s, more than {self.widest}")
        matrix = sp.csr_matrix(
            (np.frombuffer(self.values, dtype=np.float32), columns, np.frombuffer(self.offsets, dtype=np.int64)),
            shape=(len(self.offsets) - 1, width),
        )
        matrix.sort_indices()
        matrix.eliminate_zeros()
        return matrix


def _rows_of(path: str, count: int, lines: int) -> None:
    if lines != count:
        raise DataError(path, None, f"holds {lines} rows, its header says {count}")


def read_xmc_text(source: Source, *, progress: bool = False) -> tuple[sp.csr_matrix, LabelRows]:
    """Reads features ``[N, D]`` (float32 CSR) and labels (integers as in the file) of the one-file format.

    A row may lack labels or features. Numbers count from 0, or all from 1: then ``D`` itself may occur (column 0 is empty).

    Raises:
        DataError: a line breaks the format, an index lies outside the header's range, a value is not finite in float32,
            or the row count differs.
    """
    lines = numbered_lines(source, progress=progress)
    first = next(lines, None)
    header = None if first is None else parse_header(first[1])
    if header is None:
        raise DataError(source.name, 1, "expected a header of three integers 'rows features labels'")
    num_rows, num_features, num_labels = header
    labels, rows = LabelRows(), _Rows(source.name, num_features)
    least, beyond = 1, None
    for number, line in lines:
        if len(labels) == num_rows:
            if line.strip():
                raise DataError(source.name, number, f"more rows than the {num_rows} of the header")
            continue
        row, rest = _labels_and_rest(line, source.name, number)
        for label in row:
            if not 0 <= label <= num_labels:
                raise DataError(source.name, number, f"label {label} lies outside [0, {num_labels}) of the header")
            least = min(least, label)
            beyond = number if label == num_labels and beyond is None else beyond
        rows.add(rest, number)
        labels.append(row)
    if beyond is not None and least == 0:
        raise DataError(source.name, beyond, f"label {num_labels} lies outside [0, {num_labels}) of the header")
    _rows_of(source.name, num_rows, len(labels))
    return rows.matrix(), labels


def _labels_and_rest(line: str, path: str, number: int) -> tuple[list[int], str]:
    head, *rest = line.split(None, 1) if line[:1].strip() else ("", line)
    if ":" in head:
        head, rest = "", [line]
    try:
        row = [_integer(label) for label in head.split(",")] if head else []
    except ValueError:
        raise DataError(path, number, f"labels must be integers separated by commas, got {head!r:.80}") from None
    return row, "".join(rest)


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def read_pairs(source: Source, what: str = "feature", *, progress: bool = False) -> sp.csr_matrix:
    """A sparse matrix in text: a header ``rows columns`` (it may be missing), then ``column:value ...`` a line.

    Args:
        what: what a column is; "label" may be any 64-bit number.

    Raises:
        DataError: as of ``read_xmc_text``.
    """
    rows: _Rows | None = None
    header = None
    widest = WIDEST if what == "feature" else 2**62
    for number, line in numbered_lines(source, progress=progress):
        if rows is None:
            header = two_numbers(line)
            rows = _Rows(source.name, None if header is None else header[1], what, widest)
            if header is not None:
                continue
        if header is not None and len(rows.offsets) - 1 == header[0]:
            if line.strip():
                raise DataError(source.name, number, f"more rows than the {header[0]} of the header")
            continue
        rows.add(line, number)
    if rows is None:
        rows = _Rows(source.name, None)
    if header is not None:
        _rows_of(source.name, header[0], len(rows.offsets) - 1)
    return rows.matrix()


def read_svmlight(source: Source, *, progress: bool = False) -> tuple[sp.csr_matrix, LabelRows]:
    """Lines ``l1,l2 f:v f:v ...`` without a header; ``#`` begins a comment. The matrix is as wide as its largest column.
    ``qid:1`` behind the labels, which groups rows to be ranked, is passed over.

    Lines that are a comment as a whole are no rows. Empty lines may stand at the end only, as nothing tells whether they are.

    Raises:
        DataError: as of ``read_xmc_text``.
    """
    labels, rows, empty = LabelRows(), _Rows(source.name, None), None
    for number, line in numbered_lines(source, progress=progress):
        if line.startswith("#"):
            continue
        if not line:
            empty = empty or number
            continue
        if empty is not None:
            raise DataError(source.name, empty, "an empty line: every line must hold a row")
        row, rest = _labels_and_rest(line.partition("#")[0].rstrip(), source.name, number)
        rows.add(_QUERY.sub("", rest, count=1), number)
        labels.append(row)
    return rows.matrix(), labels
