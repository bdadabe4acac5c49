"""The data files of a run, opened and prepared."""

from __future__ import annotations

from collections.abc import Callable

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.prepare import Preparation
from sparse_xmc.data import DataError, Features, Inputs, LabelRows, Records, TextSource, open_split
from sparse_xmc.data.source import exists
from sparse_xmc.data.split import takes_separator


def open_data(
    config: TrainingConfig, path: str, labels: str | None, *, texts: bool, need_labels: bool = True
) -> TextSource | Features:
    """A data file as the options say; ``texts``: a ``.txt`` holds texts whatever its first line looks like."""
    return open_split(
        path,
        labels=labels,
        text_fields=config.text_field or None,
        label_field=config.label_field,
        label_separator=config.label_separator,
        need_labels=need_labels,
        texts=texts,
        progress=config.progress,
    )


def check_effects(config: TrainingConfig, source: TextSource | Features) -> None:
    """Refuses options of texts or of JSON that a training split of another kind cannot follow.

    Raises:
        ValueError: an option has no effect on this split.
    """
    defaults = TrainingConfig()
    names = [] if isinstance(source, Records) else ["text_field", "label_field"]
    if config.label_separator is not None and not takes_separator(source):
        names.append("label_separator")
    if isinstance(source, Features) and config.encoder == "bow":
        names += ["max_features", "max_ngram", "char_ngrams", "hashed"] + ["min_df"] * (config.min_df > 1)
    for name in names:
        value = getattr(config, name)
        if value != getattr(defaults, name):
            kind = "features" if isinstance(source, Features) else "texts without fields"
            raise ValueError(f"{name}={value!r} has no effect: {config.train} holds {kind}")


def prepared_split(
    config: TrainingConfig,
    preparation: Preparation,
    path: str,
    labels: str | None,
    *,
    purpose: str,
    report: Callable[[str], None] | None = None,
) -> tuple[Inputs, LabelRows]:
    """Inputs and labels of a split other than the training split; ``report`` is told in a line what was read.

    Raises:
        DataError: it cannot be read, or has no rows for its purpose ("evaluate").
    """
    source = open_data(config, path, labels, texts=preparation.reads_texts)
    split = preparation.transform(source)
    if report is not None:
        report(source.summary())
    if not len(split[1]):
        raise DataError(path, None, f"no rows to {purpose}")
    return split


def check_paths(*paths: str | None) -> None:
    """Raises:
    DataError: a file that is needed only later is missing.
    """
    for path in paths:
        if path is not None and not exists(path):
            raise DataError(path, None, "no such file")
