"""JSON: one record a line, or one list of records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sparse_xmc.data.errors import DataError
from sparse_xmc.data.records import Records
from sparse_xmc.data.source import numbered_lines

_HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair: JSON can write it, UTF-8 cannot


class _JsonRecords(Records):
    def row_labels(self, value: Any) -> list[Any]:
        if isinstance(value, list):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return [value]
        if isinstance(value, str):
            if self.style is None:
                self.recognise_style(self._label_texts())
            assert self.style is not None
            return self.style.labels(value)
        raise ValueError(f"must be a list of labels, got {json.dumps(value)[:80]}")

    def _label_texts(self) -> Iterator[str]:
        """Labels of all records that write them as text, read once more."""
        for _, record in self.records():
            value = record.get(self.label_field) if isinstance(record, dict) else None
            if isinstance(value, str):
                yield value

    def _text(self, record: Any, number: int) -> str:
        if not isinstance(record, dict):
            raise self.error(number, f"expected a JSON object, got {type(record).__name__}")
        try:
            text = super()._text(record, number)
        except RecursionError:
            raise self.error(number, "JSON nested too deeply") from None
        return text if text.isascii() else _HALF.sub("\ufffd", text)


class JsonLines(_JsonRecords):
    """One JSON object a line. Empty lines may stand at the end only, so that row numbers are line numbers."""

    def records(self) -> Iterator[tuple[int, Any]]:
        empty = None
        for number, line in numbered_lines(self.source, progress=self.progress):
            if not line.strip():
                empty = empty or number
                continue
            if empty is not None:
                raise DataError(self.path, empty, "an empty line: every line must hold a record")
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(self.path, number, f"not valid JSON: {error.msg} at column {error.colno}") from None
            except ValueError as error:  # an integer of thousands of digits
                raise DataError(self.path, number, f"JSON that cannot be read: {error}") from None
            except RecursionError:
                raise DataError(self.path, number, "JSON nested too deeply") from None
            yield number, record


class JsonList(_JsonRecords):
    """A JSON file that is one list of objects."""

    unit = "record"

    def records(self) -> Iterator[tuple[int, Any]]:
        text = "".join(line for _, line in self.source.lines())
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            reason = f"not valid JSON: {error.msg} at column {error.colno}"
            raise DataError(self.path, error.lineno, reason) from None
        except ValueError as error:
            raise DataError(self.path, None, f"JSON that cannot be read: {error}") from None
        except RecursionError:
            raise DataError(self.path, None, "JSON nested too deeply") from None
        yield from enumerate(records, start=1)
