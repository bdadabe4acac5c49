"""What the options of a training run may be: types, ranges, and which ones have no effect together."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

_RANGES = {
    "[1, inf)": "epochs batch_size accumulate fan_in group_size max_features min_df max_ngram max_length log_every "
    "auxiliary_clusters rewire_interval keep_checkpoints",
    "[0, inf)": "embedding_dim intermediate lexical_fan_in patience head_lr lexical_lr encoder_lr embedding_lr "
    "encoder_weight_decay",
    "[0, inf]": "checkpoint_seconds",
    "(0, inf)": "propensity_a propensity_b",
    "[0, 1)": "input_dropout dropout warmup rewire_fraction auxiliary_weight",
    "(0, 1)": "head_share",
    "[0, 1]": "rewire_until",
    "(0, 1]": "auxiliary_cutoff",
    "[0, 1024]": "threads",
    "[0, 4294967295]": "seed",  # what scikit-learn takes
}
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "list[str]": list}
# with these values, that is what must stay as it is by default
_WITHOUT_EFFECT: list[tuple[dict[str, Any], str]] = [
    ({"head": "dense"}, "fan_in rewire_fraction"),
    ({"head": "dense", "lexical_fan_in": 0}, "group_size"),
    ({"head": "dense", "encoder": "features"}, "group_size"),
    ({"head": "dense", "encoder": "transformer"}, "group_size"),
    ({"encoder": "features"}, "lexical_fan_in"),
    ({"encoder": "transformer"}, "lexical_fan_in"),
    ({"encoder": "bow", "embedding_dim": 0}, "fused intermediate lexical_fan_in"),
]


def has_type(kind: str, value: Any) -> bool:
    """Whether a value is of an option's type as its field declares it: ``"int"``, ``"str | None"``, ..."""
    name, *optional = kind.split(" | ")
    if value is None:
        return bool(optional)
    if isinstance(value, bool):
        return name == "bool"
    return isinstance(value, _TYPES[name]) and (name != "list[str]" or all(isinstance(part, str) for part in value))


def check_options(options: Any) -> None:
    """Raises:
    ValueError: an option of the dataclass ``options`` has the wrong type, is out of range or has no effect.
    """
    for entry in dataclasses.fields(options):
        value, choices = getattr(options, entry.name), entry.metadata["choices"]
        if not has_type(str(entry.type), value):
            raise ValueError(f"{entry.name} must be {str(entry.type).split(' | ')[0]}, got {value!r}")
        if choices is not None and value not in choices:
            raise ValueError(f"{entry.name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    for interval, names in _RANGES.items():
        for name in names.split():
            value = getattr(options, name)
            if value is not None and not _inside(value, interval):
                raise ValueError(f"{name} must lie in {interval}, got {value}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", options.device):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {options.device!r}")
    _check_effects(options)


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    return (value > low or (value == low and interval[0] == "[")) and (
        value < high or (value == high and interval[-1] == "]")
    )


def _check_effects(options: Any) -> None:
    defaults = {entry.name: entry.default for entry in dataclasses.fields(options)}
    for given, names in _WITHOUT_EFFECT:
        if any(getattr(options, name) != value for name, value in given.items()):
            continue
        for name in names.split():
            value = getattr(options, name)
            if value and value != defaults[name]:
                reason = " and ".join(f"{key}={wanted!r}" for key, wanted in given.items())
                raise ValueError(f"{name}={value!r} has no effect with {reason}: leave it out")
