"""Parquet and Arrow files, and folders that Hugging Face ``datasets`` saved, read by ``pyarrow``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import chain
from typing import Any

from sparse_xmc._extras import advice
from sparse_xmc.data.errors import DataError, reading
from sparse_xmc.data.records import Records, default_label, default_texts
from sparse_xmc.data.source import Source

_BATCH = 4096


class Columns(Records):
    """Records of columnar files, of which only the columns of texts and labels are read.

    A label column holds lists, single integers (with the names that ``datasets`` saved beside them), or strings as the cells
    of a table.
    """

    unit = "row"

    def __init__(self, source: Source, how: str, **options: Any) -> None:
        super().__init__(source, how, **options)
        self._files, self._class_names = _parts(source)
        if self._files and not self._class_names:
            self._class_names = _classes_within(self._files[0], self.path)

    def _batches(self, columns: list[str] | None) -> Iterator[Any]:
        for path in self._files:
            yield from _read(path, self.path, columns)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        names = _column_names(self._files[0], self.path) if self._files else []
        texts = self.text_fields if self.text_fields is not None else default_texts(names)
        if self.need_labels and self.label_field is None:
            self.label_field = default_label(names)
        wanted = [name for name in (*texts, self.label_field if self.need_labels else None) if name in names]
        if self._files and not any(name in names for name in texts):
            raise DataError(self.path, None, f"no text column found, name one of {names} (--text-field)")
        if self.need_labels and self._files and self.label_field not in names:
            raise DataError(self.path, None, f"no label column found, name one of {names} (--label-field)")
        if self.need_labels:
            self._prepare_labels()
        number = 0
        for batch in self._batches([str(name) for name in wanted]):
            values = {name: batch.column(name).to_pylist() for name in wanted}
            for i in range(batch.num_rows):
                number += 1
                yield number, {name: column[i] for name, column in values.items()}

    def _prepare_labels(self) -> None:
        cells = self._cells()
        first = next(cells, None)
        if first is not None:
            self.recognise_style(chain([first], cells))

    def _cells(self) -> Iterator[str]:
        """What a label column of strings holds."""
        column = str(self.label_field)
        for batch in self._batches([column]):
            yield from (cell for cell in batch.column(column).to_pylist() if isinstance(cell, str))

    def row_labels(self, value: Any) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, str):
            assert self.style is not None
            return self.style.labels(value)
        row = value if isinstance(value, list) else [value]
        names = self._class_names.get(str(self.label_field))
        if names is None:
            return row
        for label in row:
            if not isinstance(label, int) or not -1 <= label < len(names):
                raise ValueError(f"label {label!r:.80} is none of the {len(names)} classes")
        return [names[label] for label in row if label >= 0]  # -1 is how datasets write that there is none


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise DataError(path, None, f"needs the package pyarrow: {advice('pyarrow')}") from None
    return pyarrow


def _magic(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(6)


def _read(path: str, name: str, columns: list[str] | None) -> Iterator[Any]:
    """Batches of rows of a Parquet or Arrow file."""
    pyarrow = _pyarrow(name)
    with reading(name):
        try:
            if _magic(path)[:4] == b"PAR1":
                with pyarrow.parquet.ParquetFile(path) as file:
                    yield from file.iter_batches(_BATCH, columns=columns)
                return
            with pyarrow.OSFile(path, "rb") as handle:
                whole = _magic(path) == b"ARROW1"
                reader = (pyarrow.ipc.open_file if whole else pyarrow.ipc.open_stream)(handle)
                batches = map(reader.get_batch, range(reader.num_record_batches)) if whole else reader
                for batch in batches:
                    yield batch if columns is None else batch.select(columns)
        except (pyarrow.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                name, None, f"{os.path.basename(path)} is no sound Parquet or Arrow file: {reason}"
            ) from None


def _column_names(path: str, name: str) -> list[str]:
    """Names of the columns of a file, each once."""
    names: list[str] = _schema(path, name).names
    return [column for column in names if names.count(column) == 1]


def _classes_within(path: str, name: str) -> dict[str, list[str]]:
    """Names of the classes of columns that ``datasets`` writes into a file itself."""
    metadata = _schema(path, name).metadata or {}
    try:
        document = json.loads(metadata.get(b"huggingface", b"{}"))
        return _classes(document.get("info", {}).get("features"))
    except (ValueError, AttributeError, RecursionError):
        return {}


def _schema(path: str, name: str) -> Any:
    pyarrow = _pyarrow(name)
    with reading(name):
        try:
            if _magic(path)[:4] == b"PAR1":
                return pyarrow.parquet.read_schema(path)
            with pyarrow.OSFile(path, "rb") as handle:
                opener = pyarrow.ipc.open_file if _magic(path) == b"ARROW1" else pyarrow.ipc.open_stream
                return opener(handle).schema
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                name, None, f"{os.path.basename(path)} is no sound Parquet or Arrow file: {reason}"
            ) from None


def _document(source: Source, name: str) -> dict[str, Any]:
    path = os.path.join(source.local, name)
    try:
        with reading(path), open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, None, f"not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(path, None, f"expected a JSON object, got {type(content).__name__}")
    return content


def _parts(source: Source) -> tuple[list[str], dict[str, list[str]]]:
    """The files of a source in order, and the names of the classes of its columns."""
    if not source.is_folder:
        return [source.local], {}
    names = [os.path.basename(path) for path in source.files()]
    if "dataset_dict.json" in names:
        splits = sorted(entry.name for entry in os.scandir(source.local) if entry.is_dir())
        raise DataError(source.name, None, f"holds several splits, name one of them: {', '.join(splits)}")
    if "state.json" in names:
        return _saved_dataset(source)
    parquet = [name for name in names if name.endswith(".parquet")]
    kinds = {name.split("-")[0] for name in parquet}
    if len(kinds) > 1:
        raise DataError(source.name, None, f"holds Parquet files of several splits: {', '.join(sorted(kinds)):.80}")
    if not parquet:
        raise DataError(source.name, None, "is a folder without Parquet files or a data set saved by datasets")
    return [os.path.join(source.local, name) for name in parquet], {}


def _saved_dataset(source: Source) -> tuple[list[str], dict[str, list[str]]]:
    state = _document(source, "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            source.name, None, "was saved with a selection of rows: flatten_indices() before save_to_disk()"
        )
    entries = state.get("_data_files")
    files = []
    for entry in entries if isinstance(entries, list) else [None]:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise DataError(source.name, None, f"state.json names no file of this folder: {name!r:.80}")
        files.append(os.path.join(source.local, name))
    return files, _classes(_document(source, "dataset_info.json").get("features"))


def _classes(features: Any) -> dict[str, list[str]]:
    """Names of the classes of columns, as ``datasets`` describes them."""
    classes = {}
    for column, feature in (features if isinstance(features, dict) else {}).items():
        feature = feature.get("feature", feature) if isinstance(feature, dict) else {}
        found = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            classes[column] = found
    return classes
