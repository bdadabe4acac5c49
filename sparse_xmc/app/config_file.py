"""Options in TOML files."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.options import Entry, entries, has_type, spelled


def load_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Options from a TOML file; tables only group them (``[data]``, ``[training]``, any name).

    Raises:
        ValueError: the file is no TOML, or an option is unknown, stands twice or has the wrong type.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        raise ValueError(f"{os.fspath(path)}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)}: not valid TOML: {error}") from None
    options: dict[str, Any] = {}
    for key, value in content.items():
        for name, item in value.items() if isinstance(value, dict) else [(key, value)]:
            if name in options:
                raise ValueError(f"{os.fspath(path)}: option {name!r} stands twice")
            options[name] = item
    by_name = {entry.spelled: entry for entry in entries(TrainingConfig)}
    for name in options:
        if name not in by_name:
            raise ValueError(f"{os.fspath(path)}: unknown option {name!r}")
    return {by_name[name].name: _checked(path, by_name[name], value) for name, value in options.items()}


def _checked(path: str | os.PathLike[str], entry: Entry, value: Any) -> Any:
    if entry.kind == "list[str]" and isinstance(value, str):
        value = value.split(",")
    if not has_type(entry.kind, value):
        raise ValueError(f"{os.fspath(path)}: option {entry.spelled!r} must be {entry.kind}, got {value!r}")
    return float(value) if entry.kind == "float" else value


def to_toml(config: TrainingConfig) -> str:
    """The configuration as TOML; ``load_toml`` reads it back. Options that are None are left out."""
    lines = []
    for name, value in dataclasses.asdict(config).items():
        if value is None:
            continue
        if isinstance(value, float):
            text = repr(float(value))  # TOML writes inf and nan as Python does
        else:
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{spelled(name)} = {text}")
    return "\n".join(lines) + "\n"
