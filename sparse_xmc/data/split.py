"""One door for every file format: ``open_split`` tells from the name what a file is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.arrays import load_features, load_label_rows
from sparse_xmc.data.checked import check_features
from sparse_xmc.data.errors import DataError, numbered_lines
from sparse_xmc.data.labels import LabelRows
from sparse_xmc.data.text import JsonLines, RawTexts, read_label_lines
from sparse_xmc.data.xmc_text import parse_header, read_xmc_text


class TextSource(Protocol):
    """Texts in file order; after a full pass ``labels`` has a row for each of them."""

    @property
    def labels(self) -> LabelRows: ...

    def __iter__(self) -> Iterator[str]: ...


@dataclass
class Features:
    """Precomputed features ``[N, D]``, sparse or dense, with their labels.

    Raises:
        TypeError, ValueError: as of ``check_features``: the matrix is inconsistent or holds NaN.
    """

    matrix: sp.csr_matrix | np.ndarray
    labels: LabelRows = field(default_factory=LabelRows)
    path: str = "the features"

    def __post_init__(self) -> None:
        self.matrix = check_features(self.matrix)


def _without_gz(path: str) -> str:
    return path.removesuffix(".gz")


def _labels_beside(path: str) -> str | None:
    """``x_raw_texts.txt`` -> ``x_labels.txt``, where that file exists."""
    for ending in (".txt", ".txt.gz"):
        if path.endswith("_raw_texts" + ending):
            for other in (".txt", ".txt.gz"):
                candidate = path.removesuffix("_raw_texts" + ending) + "_labels" + other
                if os.path.exists(candidate):
                    return candidate
    return None


def _features(matrix: sp.csr_matrix | np.ndarray, labels: LabelRows, path: str) -> Features:
    try:
        return Features(matrix, labels, path)
    except ValueError as error:
        raise DataError(path, None, str(error)) from None


def open_split(
    path: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    text_fields: Sequence[str] | None = None,
    label_field: str | None = None,
    need_labels: bool = True,
    texts: bool = False,
    progress: bool = False,
) -> TextSource | Features:
    """Opens a data file by its name (``.gz`` may follow).

    ========================== =========================================================================
    ``.jsonl``, ``.json``      JSON lines with text and label fields, ``trn.json`` of the repository too
    ``.txt``, header ``N D L`` repository text format: sparse features and labels in one file
    ``.txt``                   texts, one a line; ``labels`` (default: ``*_labels.txt`` beside) holds ids
    ``.npz`` / ``.npy``        sparse / dense features; ``labels`` is a CSR ``.npz`` or a file of ids
    ========================== =========================================================================

    With ``texts``, and where there is a file of labels, a ``.txt`` holds texts even if its first line looks like a
    header.

    Raises:
        DataError: the file is missing, of no known format or malformed.
    """
    name = os.fspath(path)
    ending = os.path.splitext(_without_gz(name))[1]
    if ending in (".jsonl", ".json"):
        return JsonLines(
            name, text_fields=text_fields, label_field=label_field, need_labels=need_labels, progress=progress
        )
    if ending == ".txt":
        beside = os.fspath(labels) if labels is not None else _labels_beside(name)
        first = next(numbered_lines(name), None)
        if beside is None and not texts and first is not None and parse_header(first[1]) is not None:
            return _features(*read_xmc_text(name, progress=progress), name)
        if beside is None and need_labels:
            raise DataError(name, None, "a file of raw texts needs a file of labels (--train-labels, --test-labels)")
        return RawTexts(name, beside if need_labels else None, progress=progress)
    if ending in (".npz", ".npy"):
        features = _features(load_features(name), LabelRows(), name)
        num_rows = features.matrix.shape[0]
        if not need_labels:
            for _ in range(num_rows):
                features.labels.append([])
            return features
        if labels is None:
            raise DataError(name, None, "a file of features needs a file of labels (--train-labels, --test-labels)")
        names = os.fspath(labels)
        features.labels = load_label_rows(names) if names.endswith(".npz") else read_label_lines(names)
        if len(features.labels) != num_rows:
            raise DataError(names, None, f"has {len(features.labels)} rows, the features {name} have {num_rows}")
        return features
    raise DataError(name, None, f"unknown format {ending!r}: expected .jsonl, .json, .txt, .npz or .npy, perhaps .gz")
