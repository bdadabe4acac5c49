"""One door for every file format: ``open_split`` tells from its content what a file is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.arrays import load_features, load_label_rows
from sparse_xmc.data.checked import check_features
from sparse_xmc.data.columns import Columns
from sparse_xmc.data.errors import DataError
from sparse_xmc.data.json_records import JsonLines, JsonList
from sparse_xmc.data.label_text import read_label_file
from sparse_xmc.data.labels import LabelRows
from sparse_xmc.data.raw_texts import RawTexts
from sparse_xmc.data.recognise import Recognised, Wish, recognise
from sparse_xmc.data.records import Records
from sparse_xmc.data.source import STANDARD_INPUT, Source
from sparse_xmc.data.tables import Table
from sparse_xmc.data.xmc_text import read_pairs, read_svmlight, read_xmc_text

_RECORDS: dict[str, type[Records]] = {
    "json lines": JsonLines,
    "json list": JsonList,
    "table": Table,
    "columns": Columns,
}
_ANY_WIDTH = 2**31  # one more than the widest features


class TextSource(Protocol):
    """Texts in file order; after a full pass ``labels`` has a row for each of them.

    Examples:
        >>> from sparse_xmc.data import TextSource, open_split
        >>> with open("train.jsonl", "w") as file:
        ...     print('{"text": "bread from the oven", "labels": ["food"]}', file=file)
        >>> source: TextSource = open_split("train.jsonl")
        >>> list(source), source.labels.row(0)
        (['bread from the oven'], ['food'])
        >>> source.summary()
        'train.jsonl: ...'
        >>> digest = source.digest()
    """

    @property
    def path(self) -> str: ...

    @property
    def labels(self) -> LabelRows: ...

    def __iter__(self) -> Iterator[str]: ...

    def summary(self) -> str:
        """What was read, in one line; after a full pass."""

    def digest(self) -> str:
        """Of the content of the file that holds the texts."""


@dataclass
class Features:
    """Precomputed features ``[N, D]``, sparse or dense, with their labels.

    Args:
        widths: numbers of features that the rows may have been made for, None: ``D`` only. Text formats tell no more than
            the largest number they use.

    Raises:
        TypeError, ValueError: as of ``check_features``: the matrix is inconsistent or holds NaN.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.data import Features
        >>> features = Features(np.eye(4, dtype=np.float32))
        >>> features.fit_width_(4)
        >>> features.summary()
        'the features: features; 4 rows, 4 features, 0 labels'
    """

    matrix: sp.csr_matrix | np.ndarray
    labels: LabelRows = field(default_factory=LabelRows)
    path: str = "the features"
    how: str = "features"
    widths: range | None = None
    left_out: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.matrix = check_features(self.matrix)

    def fit_width_(self, width: int) -> None:
        """Gives the matrix the ``width`` columns of a model, where the rows may have been made for that many.

        New columns are empty. Of a format that does not tell its width, columns that the model lacks are left out, as
        unknown words are.

        Raises:
            DataError: the rows were made for another number of features.
        """
        matrix: Any = self.matrix
        found = matrix.shape[1]
        if found == width:
            return
        untold = self.widths is not None and self.widths.stop == _ANY_WIDTH
        if self.widths is None or (width not in self.widths and not untold):
            raise DataError(self.path, None, f"holds {found} features, the model reads {width}")
        if width < found:
            kept = matrix[:, :width].tocsr()
            self.left_out = matrix.nnz - kept.nnz
            matrix = kept
        self.matrix = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], width))

    def summary(self) -> str:
        """What was read, in one line."""
        rows, width = self.matrix.shape
        labels = f"{len(self.labels.names):,} labels"
        unknown = f"; {self.left_out:,} values of features that the model lacks left out" if self.left_out else ""
        return f"{self.path}: {self.how}; {rows:,} rows, {width:,} features, {labels}{unknown}"


def takes_separator(split: TextSource | Features) -> bool:
    """Whether labels of this split were read from text in which a separator has an effect."""
    if isinstance(split, Records):
        return True
    return isinstance(split, (RawTexts, Features)) and ("separated by" in split.how or "one label a row" in split.how)


def _labels_beside(path: str) -> str | None:
    """``x_raw_texts.txt`` -> ``x_labels.txt``, where that file exists."""
    for ending in (".txt", ".txt.gz"):
        if path.endswith("_raw_texts" + ending):
            for other in (".txt", ".txt.gz"):
                candidate = path.removesuffix("_raw_texts" + ending) + "_labels" + other
                if os.path.exists(candidate):
                    return candidate
    return None


def check_format(
    path: str,
    labels: str | None = None,
    *,
    text_fields: Sequence[str] | None = None,
    label_field: str | None = None,
) -> None:
    """Whether a file that is needed only later is of a format that ``open_split`` reads, by its first lines.

    Raises:
        DataError: it is missing, or of no known format, or its labels are. Pipes are not looked into.
    """
    if path != STANDARD_INPUT and not os.path.exists(path):
        raise DataError(path, None, "no such file")
    if os.path.isfile(path):
        source = Source(path)
        apart = labels is not None or _labels_beside(source.name) is not None
        recognise(source, Wish(True, apart, False, text_fields, label_field))


def open_split(
    path: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    text_fields: Sequence[str] | None = None,
    label_field: str | None = None,
    label_separator: str | None = None,
    need_labels: bool = True,
    texts: bool = False,
    progress: bool = False,
) -> TextSource | Features:
    """Opens a data file, gzip-compressed or not; ``-`` is standard input, and pipes are read to their end.

    ======================= ==============================================================================
    JSON                    lines, or one list, of records with text and label fields
    CSV, TSV                with a line of column names
    Parquet, Arrow          the same columns; a folder saved by Hugging Face ``datasets``
    texts, one a line       ``labels`` (default: ``*_labels.txt`` beside) holds a row of labels a line
    sparse features in text the repository's one-file and two-file formats (the latter with ``labels``), svmlight
    ``.npz`` / ``.npy``     sparse / dense features; ``labels`` is a sparse ``.npz`` or a file of labels
    ======================= ==============================================================================

    Args:
        labels: file of labels; of any of the formats that hold labels by row.
        text_fields, label_field: as of ``Records``.
        label_separator: what separates the labels of a row in text ("tab", "space", "comma", "none" or any string); None:
            told from all rows (``recognised_style``).
        need_labels: whether labels are read (else every row has none).
        texts: whether the rows must be texts: a text file is none of features then unless all its lines look so.

    Raises:
        DataError: the file is missing, of no known format or malformed.

    Examples:
        >>> from sparse_xmc.data import open_split
        >>> with open("train.csv", "w") as file:
        ...     print("text,labels\\nbread from the oven,food;home\\njudge and court,law", file=file)
        >>> split = open_split("train.csv")
        >>> list(split), split.labels.row(0)
        (['bread from the oven', 'judge and court'], ['food', 'home'])
    """
    source = Source(path)
    beside = os.fspath(labels) if labels is not None else _labels_beside(source.name)
    found = recognise(source, Wish(need_labels, beside is not None, texts, text_fields, label_field))
    if found.kind in _RECORDS:
        if labels is not None and need_labels:
            raise DataError(
                source.name, None, f"holds {found.how} with labels of its own: leave out the file of labels"
            )
        options: dict[str, Any] = {"text_fields": text_fields, "label_field": label_field, "need_labels": need_labels}
        return _RECORDS[found.kind](source, found.how, separator=label_separator, progress=progress, **options)
    if found.kind == "texts":
        rows = _label_rows(beside, label_separator) if beside is not None and need_labels else None
        return RawTexts(source, found.how, rows, str(beside), progress=progress)
    features = _read_features(source, found, progress)
    num_rows = features.matrix.shape[0]
    if not need_labels:
        features.labels = LabelRows()
        for _ in range(num_rows):
            features.labels.append([])
    elif found.kind in ("arrays", "pairs"):
        if beside is None:
            reason = "a file of features needs a file of labels (--train-labels, --test-labels)"
            raise DataError(source.name, None, reason)
        features.labels, style = _label_rows(beside, label_separator)
        features.how += f", {style} in {beside}"
        if len(features.labels) != num_rows:
            raise DataError(
                beside, None, f"has {len(features.labels)} rows, the features {source.name} have {num_rows}"
            )
    return features


def _label_rows(path: str, separator: str | None) -> tuple[LabelRows, str]:
    source = Source(path)
    if source.is_folder:
        raise DataError(source.name, None, "is a folder, expected a file of labels")
    if source.head()[:4] == b"PK\x03\x04":
        return load_label_rows(source.local, source.name), "labels as a sparse matrix"
    return read_label_file(source, separator)


def _read_features(source: Source, found: Recognised, progress: bool) -> Features:
    labels, widths = LabelRows(), None
    if found.kind == "arrays":
        matrix: Any = load_features(source.local, source.name)
    elif found.kind == "one file":
        matrix, labels = read_xmc_text(source, progress=progress)
        widths = range(matrix.shape[1], matrix.shape[1] + 2)  # a split of the same data may count from 1
    elif found.kind == "svmlight":
        matrix, labels = read_svmlight(source, progress=progress)
        widths = range(matrix.shape[1], _ANY_WIDTH)
    else:
        matrix = read_pairs(source, progress=progress)
        widths = range(matrix.shape[1], matrix.shape[1] + 2 if "under" in found.how else _ANY_WIDTH)
    try:
        return Features(matrix, labels, source.name, found.how, widths)
    except ValueError as error:
        raise DataError(source.name, None, str(error)) from None
