"""Texts one a line, with the labels of the same line of another file."""

from __future__ import annotations

from collections.abc import Iterator

from sparse_xmc.data.errors import DataError
from sparse_xmc.data.labels import LabelRows
from sparse_xmc.data.source import Source, numbered_lines


class RawTexts:
    """Texts of a file; ``labels`` are those of another file (None: no labels)."""

    def __init__(
        self,
        source: Source,
        how: str,
        labels: tuple[LabelRows, str] | None,
        labels_name: str,
        *,
        progress: bool = False,
    ) -> None:
        self.source, self.path, self.how, self.progress = source, source.name, how, progress
        self._labels, self._labels_name = labels, labels_name
        if labels is not None:
            self.how += f", {labels[1]} in {labels_name}"
        self.labels = LabelRows() if labels is None else labels[0]

    def __iter__(self) -> Iterator[str]:
        if self._labels is None:
            self.labels = LabelRows()
        number = 0
        for number, line in numbered_lines(self.source, progress=self.progress):
            if self._labels is None:
                self.labels.append([])
            elif number > len(self.labels):
                break
            yield line
        if number != len(self.labels):
            reason = f"{self._labels_name} has {len(self.labels)} rows, the texts do not match it"
            raise DataError(self.path, number, reason)

    def summary(self) -> str:
        """What was read, in one line; after a full pass."""
        parts = [self.how, f"{len(self.labels):,} rows"]
        if self._labels is not None:
            parts.append(f"{len(self.labels.names):,} labels")
        return f"{self.path}: " + "; ".join(parts)

    def digest(self) -> str:
        """Of the file of texts."""
        return self.source.digest()
