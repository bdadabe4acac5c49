"""CSV and TSV files with a line of column names."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from sparse_xmc.data.errors import DataError
from sparse_xmc.data.records import Records, default_label, default_texts

DELIMITERS = ",;\t|"


def _reader(lines: Iterator[str], delimiter: str) -> Any:
    # 131,072 characters by default, which a text may well exceed; the module has this one setting for all
    csv.field_size_limit(max(csv.field_size_limit(), min(sys.maxsize, 2**31 - 1)))
    return csv.reader(lines, delimiter=delimiter, strict=True)


def header_delimiter(
    line: str, text_fields: Sequence[str] | None, label_field: str | None, need_labels: bool
) -> str | None:
    """What separates the columns that a first line names, None where it does not name a text (and a label) column."""
    for delimiter in DELIMITERS:
        try:
            names: list[str] = next(_reader(iter([line]), delimiter), [])
        except csv.Error:
            continue
        names = [name.strip() for name in names]
        texts = text_fields if text_fields is not None else default_texts(names)
        label = label_field if label_field is not None else default_label(names)
        if texts and all(name in names for name in texts) and (not need_labels or label in names):
            return delimiter
    return None


class Table(Records):
    """A table in text; a quoted cell may hold line ends. ``number`` is the line that a record ends on."""

    _delimiter: str | None = None

    def _rows(self, *, progress: bool = False) -> Iterator[tuple[int, list[str]]]:
        lines = (line for _, line in self.source.lines(progress=progress))
        assert self._delimiter is not None
        reader = _reader(lines, self._delimiter)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(self.path, reader.line_num, f"not a table: {error}") from None

    def _names(self) -> list[str]:
        """The names of the columns; finds out what separates them."""
        first = next(self.source.lines(), None)
        if first is None:
            raise DataError(self.path, None, "is empty: a table begins with a line of column names")
        line = first[1]
        self._delimiter = header_delimiter(line, self.text_fields, self.label_field, self.need_labels)
        if self._delimiter is None:
            wanted = "a text column (--text-field)" + " and a label column (--label-field)" * self.need_labels
            raise DataError(self.path, 1, f"its first line must name {wanted}, got {line.strip()!r:.80}")
        names = [name.strip() for name in next(self._rows())[1]]
        for name in names:
            if names.count(name) > 1 and name in (*(self.text_fields or default_texts(names)), self.label_field):
                raise DataError(self.path, 1, f"two columns are named {name!r}")
        return names

    def records(self) -> Iterator[tuple[int, dict[str, str]]]:
        names = self._names()
        if self.need_labels and self.label_field is None:
            self.label_field = default_label(names)
        if self.need_labels:
            column = names.index(str(self.label_field))
            self.recognise_style(row[column] for _, row in self._checked(len(names)))
        for number, row in self._checked(len(names), progress=self.progress):
            yield number, dict(zip(names, row, strict=True))

    def _checked(self, width: int, *, progress: bool = False) -> Iterator[tuple[int, list[str]]]:
        """The rows below the names, each as wide as these; empty lines may stand at the end only."""
        empty = None
        rows = self._rows(progress=progress)
        next(rows)
        for number, row in rows:
            if not row:
                empty = empty or number
                continue
            if empty is not None:
                raise DataError(self.path, empty, "an empty line: every line must hold a record")
            if len(row) != width:
                raise DataError(self.path, number, f"holds {len(row)} cells, its first line names {width} columns")
            yield number, row

    def row_labels(self, value: str) -> list[Any]:
        assert self.style is not None
        return self.style.labels(value)
