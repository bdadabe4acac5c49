"""The best labels of texts or features, written to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sparse_xmc.app.loading import load_bundle
from sparse_xmc.app.run_folder import complete_file
from sparse_xmc.app.splits import open_data

Report = Callable[[str], None]


def predict(
    run: str, source: str, out: str, *, k: int = 5, options: dict[str, Any] | None = None, report: Report = print
) -> int:
    """Writes the ``k`` best labels of each row with their scores, one JSON object a line; returns the number of rows.

    ``{"labels": [...], "scores": [...]}``: labels as the training data wrote them, scores as estimates of the labels'
    probabilities (of a squared hinge these may lie beyond [0, 1]). The file appears when it is complete.

    Raises:
        DataError, CheckpointError, ValueError: with one message that says what is wrong where.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    bundle = load_bundle(run, options)
    texts = bundle.preparation.reads_texts
    inputs, _ = bundle.preparation.transform(open_data(bundle.config, source, None, texts=texts, need_labels=False))
    count, names = 0, bundle.vocabulary.names
    with complete_file(out) as file:
        for scores, labels in bundle.predict(inputs, k, progress=bundle.config.progress):
            values = bundle.probabilities(scores)
            for row, value in zip(labels.tolist(), values.tolist(), strict=True):
                entry = {"labels": [names[i] for i in row], "scores": [round(v, 6) for v in value]}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                count += 1
    report(f"{count:,} rows written to {out}")
    return count
