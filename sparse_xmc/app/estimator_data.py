"""What an estimator takes: texts or matrices, and targets in the forms that are usual, as rows and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data import DenseInputs, Features, Inputs, LabelRows, SparseInputs, TextSource

Kind = Literal["classes", "indicator", "lists"]


class Matrices:
    """A preparation that takes a matrix as it is: rows of a sparse one are read as they are, those of a dense one too."""

    reads_texts = False

    def fit(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        return self.transform(split)

    def transform(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        assert isinstance(split, Features)
        inputs = SparseInputs(split.matrix) if sp.issparse(split.matrix) else DenseInputs(split.matrix)
        return inputs, split.labels

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"kind": "matrices"}, {}


@dataclass
class Targets:
    """Targets of an estimator: the classes, and each row's labels as positions among them."""

    kind: Kind
    classes: np.ndarray
    rows: LabelRows


def are_texts(X: Any) -> bool:
    """Whether X is a sequence of strings rather than a matrix."""
    if sp.issparse(X) or (hasattr(X, "ndim") and X.ndim != 1) or isinstance(X, (str, bytes)):
        return False
    try:
        first = next(iter(X), None)
    except TypeError:
        return False
    return isinstance(first, str)


def read_targets(y: Any, classes: Any = None) -> Targets:
    """A class of each row, an indicator matrix ``[N, L]`` (dense or sparse), or a list of each row's labels.

    Args:
        classes: all classes, where ``y`` may lack some; None: those of ``y``.

    Raises:
        ValueError: ``y`` has another form, or a label that ``classes`` lack.
    """
    if y is None:
        raise ValueError("SparseXMCClassifier requires y to be passed, but the target y is None")
    if sp.issparse(y):
        return _from_indicator(y.tocsr(), classes)
    if _are_lists(y):
        return _from_lists(y, classes)
    array = np.asarray(y)
    if array.ndim == 2 and array.shape[1] > 1:
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"Unknown label type: an indicator matrix holds 0 and 1, got {np.unique(array)[:8]}")
        return _from_indicator(sp.csr_matrix(array.astype(np.float32)), classes)
    return _from_classes(array, classes)


def _are_lists(y: Any) -> bool:
    """Whether y has a list of labels for each row. Equally long lists of 0 and 1 are an indicator matrix, as everywhere."""
    if isinstance(y, (str, bytes)) or not hasattr(y, "__iter__") or (hasattr(y, "ndim") and y.ndim != 1):
        return False
    rows = list(y)
    if not rows or not all(isinstance(row, (list, tuple, set, frozenset, np.ndarray)) for row in rows):
        return False
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 or lengths <= {0, 1} or any(isinstance(row, (set, frozenset)) for row in rows):
        return True
    return not all(isinstance(value, (int, float, np.number)) and value in (0, 1) for row in rows for value in row)


def _from_indicator(y: sp.csr_matrix, classes: Any) -> Targets:
    names = np.arange(y.shape[1]) if classes is None else np.asarray(classes)
    if len(names) != y.shape[1]:
        raise ValueError(f"y has {y.shape[1]} columns, classes are {len(names)}")
    if y.nnz and not (y.data[y.data != 0] == 1).all():
        raise ValueError("Unknown label type: an indicator matrix holds 0 and 1 only")
    return Targets("indicator", names, LabelRows.from_csr(y))


def _from_lists(y: Any, classes: Any) -> Targets:
    lists = [list(dict.fromkeys(_plain(label) for label in row)) for row in y]
    found = {label for row in lists for label in row}
    names = _sorted(found) if classes is None else [_plain(label) for label in classes]
    place = {name: i for i, name in enumerate(names)}
    missing = _sorted(found - place.keys())
    if missing:
        raise ValueError(f"y holds labels that classes lack: {missing[:5]}")
    rows = LabelRows()
    for row in lists:
        rows.append(place[label] for label in row)
    array = np.empty(len(names), dtype=object)
    array[:] = names
    kinds = {type(name) for name in names}
    return Targets("lists", np.array(names) if len(kinds) == 1 else array, rows)


def _sorted(labels: set[Any]) -> list[Any]:
    return sorted(labels, key=lambda label: (type(label).__name__, label))


def _plain(label: Any) -> Any:
    value = label.item() if isinstance(label, np.generic) else label
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"Unknown label type: a label must be a string or an integer, got {value!r:.80}")
    return value


def _from_classes(y: np.ndarray, classes: Any) -> Targets:
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import column_or_1d

    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    names, places = np.unique(y, return_inverse=True)
    if classes is not None:
        given = np.unique(np.asarray(classes))
        missing = np.setdiff1d(names, given)
        if len(missing):
            raise ValueError(f"y holds classes that classes lack: {missing[:5]}")
        names, places = given, np.searchsorted(given, y)
    ones = np.ones(len(places), dtype=np.float32)
    matrix = sp.csr_matrix((ones, places, np.arange(len(places) + 1)), shape=(len(places), len(names)))
    return Targets("classes", names, LabelRows.from_csr(matrix))
