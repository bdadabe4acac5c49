"""Streams of texts with labels: JSON lines, and raw text files with a file of label ids beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from sparse_xmc.data.errors import DataError, numbered_lines
from sparse_xmc.data.labels import LabelRows, as_label

_TEXT_DEFAULTS = (("text",), ("title", "content"), ("title",))
_LABEL_DEFAULTS = ("labels", "target_ind")


def _joined(value: Any) -> str:
    """A text field as one string; lists (paragraphs) are joined, null is empty."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(_joined(part) for part in value)
    raise TypeError(f"must hold text or a list of texts, got {type(value).__name__}")


class JsonLines:
    """Texts of a JSON-lines file (gzip or not); ``labels`` fills up as the texts are read.

    Args:
        path: one JSON object a line; empty lines may stand at the end only, so that row numbers are line numbers.
        text_fields: fields whose contents are joined; None: ``text``, else ``title`` and ``content`` (what the first
            record has).
        label_field: a list of strings or integers; None: ``labels``, else ``target_ind``.
        need_labels: whether a record without the label field is an error (else it has no labels).
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        text_fields: Sequence[str] | None = None,
        label_field: str | None = None,
        need_labels: bool = True,
        progress: bool = False,
    ) -> None:
        self.path, self.progress, self.need_labels = path, progress, need_labels
        self.text_fields = None if text_fields is None else tuple(text_fields)
        self.label_field = label_field
        self.labels = LabelRows()

    def _choose_fields(self, record: dict[str, Any], line: int) -> None:
        if self.text_fields is None:
            self.text_fields = next((f for f in _TEXT_DEFAULTS if all(name in record for name in f)), None)
            if self.text_fields is None:
                raise DataError(self.path, line, f"no text field found, name one of {sorted(record)} (--text-field)")
        if self.label_field is None:
            self.label_field = next((name for name in _LABEL_DEFAULTS if name in record), None)
            if self.label_field is None and self.need_labels:
                raise DataError(self.path, line, f"no label field found, name one of {sorted(record)} (--label-field)")

    def __iter__(self) -> Iterator[str]:
        self.labels = LabelRows()
        empty = None
        for number, line in numbered_lines(self.path, progress=self.progress):
            if not line.strip():
                empty = empty or number
                continue
            if empty is not None:
                raise DataError(self.path, empty, "an empty line: every line must hold a record")
            try:
                text = self._text(self._record(line, number), number)
            except RecursionError:
                raise DataError(self.path, number, "JSON nested too deeply") from None
            yield text

    def _record(self, line: str, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(self.path, number, f"not valid JSON: {error.msg} at column {error.colno}") from None
        except ValueError as error:  # an integer of thousands of digits
            raise DataError(self.path, number, f"JSON that cannot be read: {error}") from None
        if not isinstance(record, dict):
            raise DataError(self.path, number, f"expected a JSON object, got {type(record).__name__}")
        return record

    def _text(self, record: dict[str, Any], number: int) -> str:
        if self.text_fields is None or self.label_field is None:
            self._choose_fields(record, number)
        parts = []
        for name in self.text_fields or ():
            if name not in record:
                raise DataError(self.path, number, f"no field {name!r}, the record has {sorted(record)}")
            try:
                parts.append(_joined(record[name]))
            except TypeError as error:
                raise DataError(self.path, number, f"field {name!r} {error}") from None
        if self.need_labels and self.label_field not in record:
            raise DataError(self.path, number, f"no field {self.label_field!r}, the record has {sorted(record)}")
        row = record.get(self.label_field) if self.label_field is not None else None
        if row is None and not self.need_labels:
            row = []
        if not isinstance(row, list):
            shown = json.dumps(row)[:80]
            raise DataError(self.path, number, f"field {self.label_field!r} must be a list of labels, got {shown}")
        try:
            self.labels.append(row)
        except TypeError as error:
            raise DataError(self.path, number, f"field {self.label_field!r}: {error}") from None
        return " ".join(parts)


def read_label_lines(path: str | os.PathLike[str]) -> LabelRows:
    """Label ids, separated by spaces or commas, one row a line; each becomes what ``as_label`` makes of it.

    Raises:
        DataError: the file cannot be read.
    """
    labels = LabelRows()
    for _, line in numbered_lines(path):
        labels.append(map(as_label, line.replace(",", " ").split()))
    return labels


class RawTexts:
    """Texts one a line, with the labels of the same line of another file (None: no labels)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        labels_path: str | os.PathLike[str] | None,
        *,
        progress: bool = False,
    ) -> None:
        self.path, self.labels_path, self.progress = path, labels_path, progress
        self.labels = LabelRows()

    def __iter__(self) -> Iterator[str]:
        self.labels = LabelRows() if self.labels_path is None else read_label_lines(self.labels_path)
        number = 0
        for number, line in numbered_lines(self.path, progress=self.progress):
            if self.labels_path is None:
                self.labels.append([])
            elif number > len(self.labels):
                break
            yield line
        if number != len(self.labels):
            count = f"{len(self.labels)} rows"
            raise DataError(self.path, number, f"{self.labels_path} has {count}, the texts do not match it")
