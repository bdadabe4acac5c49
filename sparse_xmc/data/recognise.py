"""What a file is, told from its first bytes and lines; the name decides only where the content cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparse_xmc.data.errors import DataError
from sparse_xmc.data.source import Source
from sparse_xmc.data.tables import header_delimiter
from sparse_xmc.data.xmc_text import is_labelled, parse_header, parse_pairs, two_numbers

Kind = Literal["json lines", "json list", "table", "columns", "arrays", "one file", "pairs", "svmlight", "texts"]
_SAMPLE = 100  # lines looked at
_NAMED_FEATURES = (".svm", ".svmlight", ".libsvm")
_NAMED_TEXTS = ("", ".txt", ".text", *_NAMED_FEATURES)
_OTHERS = {
    b"\xfd7zXZ": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf": "a 7z archive",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"\x80\x04\x95": "a pickle, which is never read",
    b"\x80\x05\x95": "a pickle, which is never read",
}
KNOWN = "JSON lines, CSV, TSV, Parquet, a folder saved by datasets, texts, sparse features in text, .npz or .npy"


@dataclass
class Recognised:
    """Args:
    kind: what to read it as.
    how: the same in words, with the reason.
    """

    kind: Kind
    how: str


@dataclass
class Wish:
    """What is to be read: whether labels are needed and are in a file of their own, whether texts are expected."""

    need_labels: bool = True
    labels_apart: bool = False
    texts: bool = False
    text_fields: Sequence[str] | None = None
    label_field: str | None = None


def recognise(source: Source, wish: Wish) -> Recognised:
    """Raises:
    DataError: the file is of no known format, or of one that cannot hold what is wished for.
    """
    if source.is_folder:
        return Recognised("columns", "a folder of columnar files")
    head = source.head()
    binary = _binary(source, head)
    if binary is not None:
        return binary
    _check_text(source, head)
    lines = _lines(head)
    first = next((line for line in lines if line.strip()), "")
    if source.ending in (".jsonl", ".ndjson", ".json") or (first.lstrip()[:1] == "{" and _objects(lines)):
        if source.ending == ".json" and first.lstrip()[:1] == "[":
            return Recognised("json list", "a JSON list of records")
        return Recognised("json lines", "JSON lines")
    if source.ending in (".csv", ".tsv"):
        return Recognised("table", "a table with a line of column names")
    if source.ending in (".npy", ".npz", ".parquet", ".arrow", ".feather"):
        raise DataError(source.name, None, f"does not begin as a {source.ending} file does: it is damaged or misnamed")
    return _text(source, lines, first, wish)


def _binary(source: Source, head: bytes) -> Recognised | None:
    if source.compressed and head[:4] in (b"\x93NUM", b"PK\x03\x04", b"PAR1", b"ARRO"):
        raise DataError(source.name, None, "holds compressed arrays or columns: unpack it")
    if source.compressed and head[:2] == b"\x1f\x8b":
        raise DataError(source.name, None, "is compressed twice: unpack it once")
    if head[:6] == b"\x93NUMPY":
        return Recognised("arrays", "a NumPy array")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return Recognised("arrays", "a sparse matrix")
    if head[:4] == b"PAR1":
        return Recognised("columns", "a Parquet file")
    if head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
        return Recognised("columns", "an Arrow file")
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(source.name, None, f"is {what}: expected {KNOWN}, perhaps .gz")
    return None


def _check_text(source: Source, head: bytes) -> None:
    """Raises:
    DataError: the file has an encoding or line ends by which its lines cannot be told.
    """
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(source.name, 1, "not UTF-8 text: this is UTF-16, save it as UTF-8")
    if 4 * head.count(0) > len(head):
        raise DataError(source.name, 1, "not UTF-8 text: every other byte is NUL, as in UTF-16: save it as UTF-8")
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(source.name, 1, "its lines end with CR alone: save it with LF, or CR and LF")


def _lines(head: bytes) -> list[str]:
    """The first lines of a text, whole ones as far as there are some."""
    parts = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if len(parts) > 1:
        parts.pop()  # cut off, or nothing
    return [part.decode("utf-8", "replace").rstrip("\r") for part in parts[:_SAMPLE]]


def _objects(lines: list[str]) -> bool:
    """Whether the first lines are JSON objects; the last one may be cut off."""
    try:
        whole = [json.loads(line) for line in lines[:3] if line.strip()]
    except (ValueError, RecursionError):
        return lines[0].lstrip()[:2] in ('{"', "{")
    return all(isinstance(record, dict) for record in whole)


def _text(source: Source, lines: list[str], first: str, wish: Wish) -> Recognised:
    body = lines[1:]
    filled = any(line.strip() for line in body)
    if parse_header(lines[0]) is not None:
        features = filled and all(map(is_labelled, body))
        if (not wish.labels_apart and not wish.texts) or features:
            found = Recognised("one file", "sparse features and labels under a header 'rows features labels'")
            return _features(source, wish, found, labelled=True)
    elif two_numbers(lines[0]) is not None and filled and all(map(parse_pairs, body)):
        found = Recognised("pairs", "sparse features under a header 'rows features'")
        return _features(source, wish, found, labelled=False)
    elif first and all(map(parse_pairs, lines)):
        found = Recognised("pairs", "sparse features 'feature:value ...' without a header")
        return _features(source, wish, found, labelled=False)
    elif first and all(map(is_labelled, lines)) and any(":" in line for line in lines):
        found = Recognised("svmlight", "sparse features and labels 'l1,l2 feature:value ...' without a header")
        return _features(source, wish, found, labelled=True)
    if source.ending in _NAMED_FEATURES and not wish.texts:
        how = f"sparse features and labels 'l1,l2 feature:value ...', as its name ends with {source.ending}"
        return _features(source, wish, Recognised("svmlight", how), labelled=True)
    named = source.ending in _NAMED_TEXTS
    if not wish.labels_apart and (wish.need_labels or not named):
        delimiter = header_delimiter(first, wish.text_fields, wish.label_field, wish.need_labels)
        if delimiter is not None and (wish.need_labels or delimiter in first):
            return Recognised("table", "a table, as its first line names its columns")
    if not named:
        raise DataError(source.name, None, f"unknown format {source.ending!r}: expected {KNOWN}, perhaps .gz")
    if wish.need_labels and not wish.labels_apart:
        _check_odd_line(source, lines)
        reason = "a file of raw texts needs a file of labels (--train-labels, --test-labels)"
        raise DataError(source.name, None, reason)
    return Recognised("texts", "texts, one a line")


def _check_odd_line(source: Source, lines: list[str]) -> None:
    """Raises:
    DataError: most lines hold sparse features, but one does not.
    """
    fits = [is_labelled(line) and ":" in line for line in lines]
    if 2 * sum(fits) > len(fits):
        number = fits.index(False)
        reason = f"most lines read 'l1,l2 feature:value ...', but this one is {lines[number]!r:.80}"
        raise DataError(source.name, number + 1, reason)


def _features(source: Source, wish: Wish, found: Recognised, *, labelled: bool) -> Recognised:
    if wish.texts:
        raise DataError(source.name, None, f"holds features ({found.how}), the model reads texts")
    if labelled and wish.labels_apart and wish.need_labels:
        raise DataError(source.name, None, f"holds {found.how}: leave out the file of labels")
    if not labelled and wish.need_labels and not wish.labels_apart:
        reason = "a file of features needs a file of labels (--train-labels, --test-labels)"
        raise DataError(source.name, None, reason)
    return found
