"""What a model's folder holds, checked before anything is made of it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import numpy as np

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.storage.regular import parse_json, read_json

IDENTITY = "identity.json"
_REPEATED = re.compile("layer|block|depth|expert|stage")  # in the names of what a transformer is built of many times


def run_of(out: str) -> str | None:
    """The identity of the run that a folder holds, None where it does not tell."""
    path = os.path.join(out, IDENTITY)
    if not os.path.lexists(path):
        return None
    document = read_json(path)
    run = document.get("run") if isinstance(document, dict) else None
    return run if isinstance(run, str) else None


def as_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(name: str, value: Any) -> Any:
    """An option as ``_as_json`` wrote it; JSON has no infinity."""
    kinds = {entry.name: str(entry.type) for entry in dataclasses.fields(TrainingConfig)}
    return float(value) if value in ("inf", "-inf", "nan") and kinds.get(name, "").startswith("float") else value


def checked_labels(names: Any) -> list[Any]:
    if not isinstance(names, list) or not names:
        raise ValueError(f"labels must be a list, got {names!r:.80}")
    wrong = next((name for name in names if type(name) not in (str, int)), None)
    if wrong is not None or None in names:
        raise ValueError(f"a label must be a string or an integer, got {wrong!r:.80}")
    return names


def checked_frequencies(frequencies: Any, num_labels: int) -> np.ndarray:
    frequencies = np.asarray(frequencies)
    if frequencies.dtype != np.int64 or frequencies.shape != (num_labels,) or bool((frequencies < 0).any()):
        raise ValueError(
            f"frequencies {frequencies.dtype} {list(frequencies.shape)} are not those of {num_labels} labels"
        )
    return frequencies


def checked_count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise ValueError(f"{name} must be a number of rows or columns, got {value!r:.80}")
    return value


def check_term_options(options: Any) -> None:
    """Refuses options of tf-idf terms of other types, or beyond what a text could need."""
    most = {"max_ngram": 1024, "char_ngrams": 32}
    for name, value in options.items():
        numbers = value if isinstance(value, list) and len(value) <= 2 else [value]
        if any(type(number) not in (int, bool) or not 0 <= number <= most.get(name, 1 << 40) for number in numbers):
            raise ValueError(f"{name} of the terms must be a number, got {value!r:.80}")


def check_depth(content: bytes, num_tensors: int) -> None:
    """Refuses a transformer's configuration that tells of more layers than there are weights, before any is made."""
    level = [parse_json(content, "config.json")]
    while level:
        parts = [one for one in level if isinstance(one, dict)]
        for key, value in (item for part in parts for item in part.items()):
            if _REPEATED.search(key) and isinstance(value, (int, float)) and value > num_tensors:
                raise ValueError(f"config.json tells of {key}={value}, the model has {num_tensors} tensors")
        level = [item for part in parts for item in part.values()]
