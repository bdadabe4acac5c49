"""Filter files of label-feature data sets: ``row label`` pairs that do not count at evaluation."""

from __future__ import annotations

import os

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.errors import DataError
from sparse_xmc.data.labels import LabelVocabulary
from sparse_xmc.data.source import numbered_lines


def read_filter(path: str | os.PathLike[str], num_rows: int, vocabulary: LabelVocabulary) -> sp.csr_matrix:
    """Pairs to exclude as a binary CSR matrix ``[N, L]``: one ``row label`` a line, rows from 0, labels as in the data.

    A label may contain spaces. Pairs whose label the vocabulary lacks are never predicted and are left out, with a
    warning where those are all.

    Raises:
        DataError: a line is no pair, or its row lies outside ``[0, num_rows)``.

    Examples:
        >>> from sparse_xmc.data import LabelVocabulary, read_filter
        >>> with open("filter.txt", "w") as file:
        ...     print("0 food\\n1 home", file=file)
        >>> read_filter("filter.txt", 2, LabelVocabulary(["food", "home"])).toarray()
        array([[1., 0.],
               [0., 1.]], dtype=float32)
    """
    rows, columns = [], []
    unknown: list[str] = []
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            name, label = line.strip().split(None, 1)
            row = int(name)
        except ValueError:
            raise DataError(path, number, f"expected 'row label', got {line!r:.80}") from None
        if not 0 <= row < num_rows:
            raise DataError(path, number, f"row {row} lies outside [0, {num_rows})")
        column = vocabulary.index(label)
        if column is None:
            unknown.append(label)
        else:
            rows.append(row)
            columns.append(column)
    if not columns:
        vocabulary.warn_unless_known(os.fspath(path), unknown)
    matrix = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(num_rows, len(vocabulary)))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
