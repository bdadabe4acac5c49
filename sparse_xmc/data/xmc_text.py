"""The text format of the Extreme Classification Repository: a header ``N D L``, then ``l1,l2 f:v f:v ...`` a line."""

from __future__ import annotations

import os
import re
from array import array

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.errors import DataError, numbered_lines
from sparse_xmc.data.labels import LabelRows

_HEADER = re.compile(r"\s*([0-9]{1,18})\s+([0-9]{1,18})\s+([0-9]{1,18})\s*")
_TOO_LARGE = 2.0**128 - 2.0**103  # what rounds to infinity in float32


def parse_header(line: str) -> tuple[int, int, int] | None:
    """``(rows, features, labels)`` of a header line, None where the line is none."""
    match = _HEADER.fullmatch(line)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def read_xmc_text(path: str | os.PathLike[str], *, progress: bool = False) -> tuple[sp.csr_matrix, LabelRows]:
    """Reads features ``[N, D]`` (float32 CSR) and labels (integers as in the file). A row may lack labels or features.

    Raises:
        DataError: a line breaks the format, an index lies outside the header's range, a value is not finite in float32,
            or the row count differs.
    """
    lines = numbered_lines(path, progress=progress)
    first = next(lines, None)
    header = None if first is None else parse_header(first[1])
    if header is None:
        raise DataError(path, 1, "expected a header of three integers 'rows features labels'")
    num_rows, num_features, num_labels = header
    labels = LabelRows()
    columns, values, offsets = array("i"), array("f"), array("q", [0])
    for number, line in lines:
        if len(labels) == num_rows:
            if line.strip():
                raise DataError(path, number, f"more rows than the {num_rows} of the header")
            continue
        head, _, rest = line.partition(" ")
        if ":" in head:
            head, rest = "", line
        try:
            row = [int(label) for label in head.split(",")] if head else []
        except ValueError:
            raise DataError(path, number, f"labels must be integers separated by commas, got {head!r:.80}") from None
        for label in row:
            if not 0 <= label < num_labels:
                raise DataError(path, number, f"label {label} lies outside [0, {num_labels}) of the header")
        seen = set()
        for pair in rest.split():
            name, _, text = pair.partition(":")
            try:
                column, value = int(name), float(text)
            except ValueError:
                raise DataError(path, number, f"expected 'feature:value', got {pair!r:.80}") from None
            if not 0 <= column < num_features:
                raise DataError(path, number, f"feature {column} lies outside [0, {num_features}) of the header")
            if column in seen:
                raise DataError(path, number, f"feature {column} stands twice in the row")
            if not abs(value) < _TOO_LARGE:
                raise DataError(path, number, f"feature {column} has the value {text:.80}, not finite in float32")
            seen.add(column)
            columns.append(column)
            values.append(value)
        labels.append(row)
        offsets.append(len(columns))
    if len(labels) != num_rows:
        raise DataError(path, None, f"holds {len(labels)} rows, its header says {num_rows}")
    features = sp.csr_matrix(
        (
            np.frombuffer(values, dtype=np.float32),
            np.frombuffer(columns, dtype=np.int32),
            np.frombuffer(offsets, dtype=np.int64),
        ),
        shape=(num_rows, num_features),
    )
    features.sort_indices()
    return features, labels
