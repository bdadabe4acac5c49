"""Labels written as text: a file with a row a line, or the cells of a column."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sparse_xmc.data.errors import DataError
from sparse_xmc.data.labels import Label, LabelRows, as_label
from sparse_xmc.data.source import Source, numbered_lines
from sparse_xmc.data.xmc_text import parse_pairs, read_pairs, two_numbers

_NAMED = {"tab": "\t", "space": None, "comma": ","}  # what an option can hardly hold
_ITEM = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|-?[0-9]+)"""
_PYTHON_LIST = re.compile(rf"\[\s*(?:{_ITEM}(?:\s*,\s*{_ITEM})*)?\s*\]")
_BETWEEN_IDS = re.compile(r"[\s,;|]+")


@dataclass
class LabelStyle:
    """How labels are written in a file or column as a whole.

    Args:
        separator: between the labels of a row; "" where a row holds one, None for white space.
        ids: whether labels are ids separated by any of space, comma, ``;`` and ``|``.
        lists: whether each row is a list, in JSON or as Python writes it.
    """

    separator: str | None = ""
    ids: bool = False
    lists: bool = False

    def __str__(self) -> str:
        if self.lists:
            return "lists"
        if self.ids:
            return "ids separated by spaces or punctuation"
        return "one label a row" if self.separator == "" else f"separated by {self.separator or ' '!r}"

    def labels(self, text: str) -> list[Label]:
        """The labels of a row, each what ``as_label`` makes of it.

        Raises:
            ValueError: the row is no list of labels where all rows should be.
        """
        text = text.strip()
        if not text:
            return []
        if self.lists:
            return _listed(text)
        if self.ids:
            parts = _BETWEEN_IDS.split(text)
        else:
            parts = [text] if self.separator == "" else text.split(self.separator)
        return [as_label(part.strip()) for part in parts if part.strip()]


def _listed(text: str) -> list[Label]:
    """The labels of a list in JSON, or in Python's notation, as tables that pandas wrote have it.

    Raises:
        ValueError: the text is neither.
    """
    try:
        row = json.loads(text)
    except ValueError:
        row = _python_list(text)
    if not isinstance(row, list):
        raise ValueError(f"expected a list of labels in JSON, got {text!r:.80}")
    return row


def _python_list(text: str) -> Any:
    """A list of strings and integers as Python writes it, None where the text is none."""
    if not _PYTHON_LIST.fullmatch(text):  # which also refuses what NumPy writes, without commas
        return None
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):  # strings that break at ends of lines, integers of thousands of digits
        return None


def given_style(separator: str) -> LabelStyle:
    """The style that a user asks for: any separator, or one of the words tab, space, comma and none."""
    return LabelStyle("" if separator == "none" else _NAMED.get(separator, separator))


def recognised_style(rows: Iterable[str]) -> LabelStyle:
    """The style of labels from all rows of a file or column.

    Ids (every part has a digit) are separated by any of space, comma, ``;`` and ``|``. Names may hold spaces; a tab, ``;`` or
    ``|`` anywhere separates them, in this order.

    Raises:
        ValueError: names with commas, which may separate labels or belong to them.
    """
    seen, ids, lists = False, True, True
    found, comma = set(), None
    for row in rows:
        row = row.strip()
        if not row:
            continue
        seen, lists = True, lists and row[0] == "[" and row[-1] == "]"
        ids = ids and all(any(map(str.isdigit, part)) for part in _BETWEEN_IDS.split(row) if part)
        found |= {separator for separator in "\t;|" if separator in row}
        comma = comma or (row if "," in row else None)
    if not seen:
        return LabelStyle()
    if lists:
        return LabelStyle(lists=True)
    if ids:
        return LabelStyle(ids=True)
    for separator in "\t;|":
        if separator in found:
            return LabelStyle(separator)
    if comma is not None:
        raise ValueError(f"do commas separate labels in {comma!r:.60}? say so (--label-separator comma, or none)")
    return LabelStyle()


def read_label_file(source: Source, separator: str | None = None) -> tuple[LabelRows, str]:
    """Labels of a text file, one row a line, and how they are written there.

    The repository's sparse format (``rows labels``, then ``label:1 label:1 ...`` a line) is recognised by its header.

    Raises:
        DataError: the file cannot be read or a line breaks its format.
    """
    lines = [line for _, line in numbered_lines(source)]
    if lines and two_numbers(lines[0]) is not None and all(map(parse_pairs, lines[1:])) and any(lines[1:]):
        matrix = read_pairs(source, "label")
        labels = LabelRows()
        for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
            labels.append(matrix.indices[start:end].tolist())
        return labels, "labels as a sparse matrix in text"
    try:
        style = given_style(separator) if separator is not None else recognised_style(lines)
    except ValueError as error:
        raise DataError(source.name, None, str(error)) from None
    labels = LabelRows()
    for number, line in enumerate(lines, start=1):
        try:
            labels.append(style.labels(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(source.name, number, f"not a row of labels: {error}") from None
    return labels, f"labels {style}"
