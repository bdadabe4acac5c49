"""Labels as their owner writes them, and the order in which a model holds them."""

from __future__ import annotations

import re
import warnings
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.checked import canonical_csr

Label = Any  # what the file holds: str or int
_INTEGER = re.compile("0|-?[1-9][0-9]{0,99}")


def as_label(text: str) -> Label:
    """A label of a file without types: an integer where that is written back as the same text (``007`` is not)."""
    return int(text) if _INTEGER.fullmatch(text) else text


def _plain(label: Any) -> Label:
    """A label as Python's own string or integer."""
    if isinstance(label, str):
        return str(label)
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        return int(label)
    raise TypeError(f"a label must be a string or an integer, got {label!r:.80}")


@dataclass
class LabelRows:
    """The labels of each row of a file, in compact form: ``names[ids[offsets[i]:offsets[i + 1]]]`` for row ``i``.

    A label that stands twice in a row is kept once. ``names`` are in order of first appearance.

    Examples:
        >>> from sparse_xmc.data import LabelRows
        >>> rows = LabelRows()
        >>> rows.append(["food", "home"])
        >>> rows.append(["food"])
        >>> rows.row(1), rows.counts()
        (['food'], array([2, 1]))
        >>> import scipy.sparse as sp
        >>> LabelRows.from_csr(sp.csr_matrix([[0, 1, 1]])).row(0)
        [1, 2]
    """

    names: list[Label] = field(default_factory=list)
    ids: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    _known: dict[Label, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def append(self, labels: Iterable[Label]) -> None:
        """Adds a row.

        Raises:
            TypeError: a label is neither a string nor an integer (of Python or NumPy).
        """
        labels = [label if type(label) in (str, int) else _plain(label) for label in labels]
        for label in dict.fromkeys(labels):
            known = self._known.get(label)
            if known is None:
                known = self._known[label] = len(self.names)
                self.names.append(label)
            self.ids.append(known)
        self.offsets.append(len(self.ids))

    @classmethod
    def from_csr(cls, matrix: sp.csr_matrix) -> LabelRows:
        """Rows of a sparse matrix ``[N, L]``; labels are named by their column. A stored zero is no label.

        Raises:
            ValueError: the matrix is inconsistent, or a value is NaN.
        """
        matrix = canonical_csr(matrix, "the label matrix")
        if np.isnan(matrix.data).any():
            raise ValueError("the label matrix holds NaN")
        columns, ids = np.unique(matrix.indices, return_inverse=True)
        rows = cls(names=columns.tolist())
        rows.ids = array("q", ids.astype(np.int64).tobytes())
        rows.offsets = array("q", matrix.indptr.astype(np.int64).tobytes())
        rows._known = {name: i for i, name in enumerate(rows.names)}
        return rows

    def row(self, i: int) -> list[Label]:
        return [self.names[j] for j in self.ids[self.offsets[i] : self.offsets[i + 1]]]

    def counts(self) -> np.ndarray:
        """Number of labels of each row ``[N]``."""
        return np.diff(np.frombuffer(self.offsets, dtype=np.int64))


class LabelVocabulary:
    """The labels of a model in the model's order. Whatever order that is, users see their own labels only.

    ``1`` and ``"1"`` are different labels where both are known; where one is, the other means it, as files of one data
    set may differ in that.

    Args:
        names: the labels, distinct, each a string or an integer.

    Examples:
        >>> from sparse_xmc.data import LabelRows, LabelVocabulary
        >>> rows = LabelRows()
        >>> rows.append(["home"])
        >>> rows.append(["food", "home"])
        >>> vocabulary = LabelVocabulary.from_rows(rows)
        >>> vocabulary.names, vocabulary.index("food")
        (['home', 'food'], 1)
        >>> vocabulary.encode(rows).toarray()
        array([[1., 0.],
               [1., 1.]], dtype=float32)
        >>> vocabulary.warn_unless_known("test.csv", ["food"])  # one is known: no warning
        >>> import numpy as np
        >>> vocabulary.reordered(np.array([1, 0])).names
        ['food', 'home']
    """

    def __init__(self, names: Sequence[Label]) -> None:
        self.names = list(names)
        self._index = {name: i for i, name in enumerate(self.names)}
        if len(self._index) != len(self.names):
            raise ValueError(f"label names must be distinct: {len(self.names)} names, {len(self._index)} distinct")

    @classmethod
    def from_rows(cls, rows: LabelRows) -> LabelVocabulary:
        """The labels that occur in ``rows`` (the training split), most frequent first, ties by first appearance."""
        counts = np.bincount(np.frombuffer(rows.ids, dtype=np.int64), minlength=len(rows.names))
        order = np.argsort(-counts, kind="stable")
        return cls([rows.names[i] for i in order if counts[i] > 0])

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelVocabulary) and self.names == other.names

    def reordered(self, order: np.ndarray) -> LabelVocabulary:
        """The same labels, the one at ``order[i]`` now at ``i``."""
        if not np.array_equal(np.sort(order), np.arange(len(self))):
            raise ValueError(f"order must be a permutation of {len(self)} labels")
        return LabelVocabulary([self.names[i] for i in order])

    def index(self, name: Label) -> int | None:
        """Position of a label, None where the model does not know it."""
        found = self._index.get(name)
        if found is None:
            found = self._index.get(as_label(name) if isinstance(name, str) else str(name))
        return found

    def warn_unless_known(self, source: str, names: Sequence[Label]) -> None:
        """Warns where the model knows none of the labels ``names``."""
        if names and all(self.index(name) is None for name in names):
            theirs, own = (", ".join(repr(name)[:80] for name in some[:3]) for some in (names, self.names))
            warnings.warn(
                f"{source}: none of its {len(names)} labels ({theirs}, ...) is among the model's {len(self)} ({own}, ...)",
                stacklevel=3,
            )

    def encode(self, rows: LabelRows) -> sp.csr_matrix:
        """Targets ``[N, L]`` as a binary float32 CSR matrix; labels that the vocabulary lacks are left out.

        Warns where it lacks all of them.
        """
        found = [self.index(name) for name in rows.names]
        mapping = np.array([-1 if column is None else column for column in found], dtype=np.int64)
        self.warn_unless_known("the split", rows.names)
        ids = np.frombuffer(rows.ids, dtype=np.int64)
        columns = mapping[ids] if len(ids) else ids
        known = columns >= 0
        kept = np.concatenate([[0], np.cumsum(known)])
        offsets = kept[np.frombuffer(rows.offsets, dtype=np.int64)]
        columns = columns[known]
        matrix = sp.csr_matrix(
            (np.ones(len(columns), dtype=np.float32), columns, offsets), shape=(len(rows), len(self))
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix
