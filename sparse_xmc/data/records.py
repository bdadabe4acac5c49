"""Texts and labels from records with named fields, whatever file they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparse_xmc.data.errors import DataError
from sparse_xmc.data.label_text import LabelStyle, given_style, recognised_style
from sparse_xmc.data.labels import LabelRows
from sparse_xmc.data.source import Source

_TEXTS = (("text",), ("title", "content"))  # the first of these of which a record has a field
_LABELS = ("labels", "target_ind", "label")


def joined(value: Any) -> str:
    """A text field as one string; lists (paragraphs) are joined, null is empty."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(map(joined, value))
    raise TypeError(f"must hold text or a list of texts, got {type(value).__name__}")


def default_texts(names: Any) -> tuple[str, ...]:
    """The fields that hold the text, of all fields of a record; none where none is known."""
    return next((fields for fields in _TEXTS if any(name in names for name in fields)), ())


def default_label(names: Any) -> str | None:
    return next((name for name in _LABELS if name in names), None)


class Records:
    """Texts of a file of records; ``labels`` fills up as they are read.

    A record's text are those of ``text_fields`` that it has. Where these are not given it is ``text``, else ``title`` and
    ``content``, whichever of the two the record has: each record says for itself, so no record decides for others.

    Args:
        how: what the file is and how that was told, for ``summary``.
        text_fields: fields whose contents are joined.
        label_field: a list of strings or integers; None: ``labels``, else ``target_ind`` or ``label``.
        separator: of labels in a field of text, as ``given_style`` reads it; None: told from the file, or none.
        need_labels: whether a record without the label field is an error (else labels are not looked at).
        progress: whether to show a progress bar.

    Examples:
        >>> from sparse_xmc.data import Records, open_split
        >>> with open("train.jsonl", "w") as file:
        ...     print('{"title": "Bread", "content": "from the oven", "labels": ["food"]}', file=file)
        >>> split = open_split("train.jsonl")
        >>> isinstance(split, Records), list(split), split.labels.row(0)
        (True, ['Bread from the oven'], ['food'])
        >>> next(split.records())
        (1, {'title': 'Bread', 'content': 'from the oven', 'labels': ['food']})
        >>> split.row_labels(["food"])
        ['food']
        >>> split.recognise_style(["food;home"])  # what iterating does where labels are text
        >>> split.row_labels("bread;salt")
        ['bread', 'salt']
        >>> print(split.summary())
        train.jsonl: ...
        >>> digest = split.digest()
    """

    unit = "line"

    def __init__(
        self,
        source: Source,
        how: str,
        *,
        text_fields: Sequence[str] | None = None,
        label_field: str | None = None,
        separator: str | None = None,
        need_labels: bool = True,
        progress: bool = False,
    ) -> None:
        self.source, self.path, self.how = source, source.name, how
        self.text_fields = None if text_fields is None else tuple(text_fields)
        self.label_field, self.need_labels, self.progress = label_field, need_labels, progress
        self.labels = LabelRows()
        self.taken: Counter[str] = Counter()  # records by the text field that they have
        self.style: LabelStyle | None = None if separator is None else given_style(separator)

    def records(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yields ``(number from 1, record)``."""
        raise NotImplementedError

    def row_labels(self, value: Any) -> list[Any]:
        """The labels that a label field holds.

        Raises:
            ValueError: it holds something else.
        """
        raise NotImplementedError

    def recognise_style(self, cells: Iterable[str]) -> None:
        """Tells from all label fields of the file, which hold text, how labels are separated there."""
        if self.style is None:
            try:
                self.style = recognised_style(cells)
            except DataError:
                raise
            except ValueError as error:
                raise DataError(self.path, None, str(error)) from None

    def error(self, number: int, reason: str) -> DataError:
        if self.unit == "line":
            return DataError(self.path, number, reason)
        return DataError(self.path, None, f"{self.unit} {number}: {reason}")

    def __iter__(self) -> Iterator[str]:
        self.labels, self.taken = LabelRows(), Counter()
        number = 0
        for number, record in self.records():
            text = self._text(record, number)
            self._add_labels(record, number)
            yield text
        missing = [name for name in self.text_fields or () if number and not self.taken[name]]
        if missing:
            raise DataError(self.path, None, f"no record has the field {missing[0]!r} (--text-field)")

    def _text(self, record: Mapping[str, Any], number: int) -> str:
        fields = self.text_fields if self.text_fields is not None else default_texts(record)
        present = [name for name in fields if name in record]
        if not present:
            names = sorted(map(str, record))
            if self.text_fields is None:
                raise self.error(number, f"no text field found, name one of {names} (--text-field)")
            raise self.error(number, f"no field {' or '.join(map(repr, fields))}, the record has {names}")
        parts = []
        for name in present:
            try:
                parts.append(joined(record[name]))
            except TypeError as error:
                raise self.error(number, f"field {name!r} {error}") from None
            self.taken[name] += 1
        return " ".join(parts)

    def _add_labels(self, record: Mapping[str, Any], number: int) -> None:
        if not self.need_labels:
            self.labels.append([])
            return
        if self.label_field is None:
            self.label_field = default_label(record)
        names = sorted(map(str, record))
        if self.label_field is None:
            raise self.error(number, f"no label field found, name one of {names} (--label-field)")
        if self.label_field not in record:
            raise self.error(number, f"no field {self.label_field!r}, the record has {names}")
        try:
            self.labels.append(self.row_labels(record[self.label_field]))
        except (TypeError, ValueError) as error:
            between = " " if str(error).startswith("must") else ": "
            raise self.error(number, f"field {self.label_field!r}{between}{error}") from None

    def summary(self) -> str:
        """What was read, in one line; after a full pass."""
        rows, fields = len(self.labels), []
        for name, count in self.taken.items():
            fields.append(name if count == rows else f"{name} ({rows - count:,} rows lack it)")
        parts = [self.how, f"text from {', '.join(fields) or 'nothing'}", f"{rows:,} rows"]
        if self.need_labels:
            without = int((self.labels.counts() == 0).sum())
            labels = f"{len(self.labels.names):,} labels from {self.label_field}"
            labels += "" if self.style is None else f" ({self.style})"
            parts += [labels, f"{without:,} rows without labels"] if without else [labels]
        return f"{self.path}: " + "; ".join(parts)

    def digest(self) -> str:
        """Of the file's content."""
        return self.source.digest()
