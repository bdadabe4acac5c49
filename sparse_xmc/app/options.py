"""What an option is: its default, help, type, range, what it depends on and whether it belongs to a run's identity.

All of that stands where the option stands, as a field of a dataclass, and everything else is derived from it: flags, TOML
names, checks and the identity of a run. To add an option, add one field:

    depth: int = option(0, "layers of ...; 0: none", range="[0, inf)", only_if=when("head", "dense"), identity="if changed")
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_MOST = (1 << 32) - 1  # of an integer without a bound of its own: beyond it sizes overflow before memory runs out
Identity = Literal["always", "if changed", "never"]
Origin = Literal["run", "model", "model unless given"]
Setting = tuple[str, Any]
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "list[str]": list}


class Condition:
    """Something that holds or not with the options as they are; ``&`` and ``|`` combine conditions."""

    def blamed(self, options: Any) -> list[Setting]:
        """The options and values that it fails by, none where it holds."""
        raise NotImplementedError

    def __and__(self, other: Condition) -> Condition:
        return _All((self, other))

    def __or__(self, other: Condition) -> Condition:
        return _Any((self, other))


@dataclass(frozen=True)
class _Holds(Condition):
    name: str
    values: tuple[Any, ...]
    among: bool

    def blamed(self, options: Any) -> list[Setting]:
        value = getattr(options, self.name)
        return [] if (value in self.values) == self.among else [(self.name, value)]


@dataclass(frozen=True)
class _All(Condition):
    parts: tuple[Condition, ...]

    def blamed(self, options: Any) -> list[Setting]:
        return next((blamed for part in self.parts if (blamed := part.blamed(options))), [])


@dataclass(frozen=True)
class _Any(Condition):
    parts: tuple[Condition, ...]

    def blamed(self, options: Any) -> list[Setting]:
        blamed = [part.blamed(options) for part in self.parts]
        return list(dict.fromkeys(setting for settings in blamed for setting in settings)) if all(blamed) else []


def when(name: str, *values: Any) -> Condition:
    """Holds where the option is one of the values."""
    return _Holds(name, values, True)


def unless(name: str, *values: Any) -> Condition:
    """Holds where the option is none of the values."""
    return _Holds(name, values, False)


@dataclass(frozen=True)
class Option:
    """All that is known of an option beside its name, type and default.

    Args:
        help: what ``--help`` says.
        choices: the values that it may have.
        range: the interval that its number lies in, such as ``"[0, 1)"``.
        pattern: a regular expression that its text matches; ``help`` says in words which.
        only_if: without this it has no effect, and any other value than the default is refused.
        none: a value that asks for nothing and is never refused for having no effect.
        needs: conditions that any other value than the default needs, each with the sentence that says so.
        identity: whether a run that is resumed must have the same value: ``"always"`` (it changes the result),
            ``"never"``, or ``"if changed"``: only values other than the default are recorded, as runs that were begun
            before the option was there go on without it.
        origin: where a run that begins from a model has its value from: ``"run"`` (as any run), ``"model"`` (the model has
            it, and another one is refused) or ``"model unless given"``.
    """

    help: str
    choices: tuple[Any, ...] | None = None
    range: str | None = None
    pattern: str | None = None
    only_if: Condition | None = None
    none: Any = None
    needs: Sequence[tuple[Condition, str]] = ()
    identity: Identity = "always"
    origin: Origin = "run"


def option(default: Any, help: str, **properties: Any) -> Any:
    """A dataclass field that is an option; ``properties`` are those of ``Option``."""
    extra = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return dataclasses.field(metadata={"option": Option(help, **properties)}, **extra)


@dataclass(frozen=True)
class Entry:
    """An option with its name, type (``"int"``, ``"str"``, ...) and default."""

    name: str
    kind: str
    optional: bool
    default: Any
    option: Option

    @property
    def spelled(self) -> str:
        """As users write it: where it is a word of Python's own, its name ends in ``_``."""
        return spelled(self.name)


def spelled(name: str) -> str:
    """The name of an option as users write it."""
    return name.rstrip("_")


def entries(config: Any) -> list[Entry]:
    """The options of a dataclass or of an instance of it, in their order."""
    result = []
    for field in dataclasses.fields(config):
        declared = field.type if isinstance(field.type, str) else field.type.__name__
        kind, *optional = declared.split(" | ")
        default = [] if field.default is dataclasses.MISSING else field.default
        result.append(Entry(field.name, kind, bool(optional), default, field.metadata["option"]))
    return result


def converted(entry: Entry, value: Any) -> Any:
    """A value in the option's own type: paths as texts, NumPy's numbers as Python's.

    Raises:
        ValueError: it has another type, or is none of the choices, out of range or of another form.
    """
    if value is None and entry.optional:
        return None
    if entry.kind == "str" and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if entry.kind == "list[str]" and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, bool) and entry.kind in ("int", "float") and isinstance(value, numbers.Number):
        value = _python_number(value)
    if not has_type(entry.kind, value):
        raise ValueError(f"{entry.spelled} must be {entry.kind}, got {value!r}")
    about = entry.option
    if about.choices is not None and value not in about.choices:
        raise ValueError(f"{entry.spelled} must be one of {', '.join(map(str, about.choices))}, got {value!r}")
    if about.range is not None and not _inside(value, about.range):
        raise ValueError(f"{entry.spelled} must lie in {about.range}, got {value}")
    bounded = about.range is not None and "inf" not in about.range
    if entry.kind == "int" and value > _MOST and not bounded:
        raise ValueError(f"{entry.spelled} must be at most {_MOST}, got {value}")
    if about.pattern is not None and not re.fullmatch(about.pattern, value):
        raise ValueError(f"{entry.spelled} must be {about.help}, got {value!r}")
    return value


def _python_number(value: Any) -> Any:
    if isinstance(value, numbers.Integral):
        return operator.index(value)
    return float(value) if isinstance(value, numbers.Real) else value


def has_type(kind: str, value: Any) -> bool:
    """Whether a value is of a kind of option: ``"int"``, ``"str"``, ``"list[str]"``, ..."""
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, _TYPES[kind]) and (kind != "list[str]" or all(isinstance(part, str) for part in value))


def _inside(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    if math.isnan(value):
        return False
    return (value > low or (value == low and interval[0] == "[")) and (
        value < high or (value == high and interval[-1] == "]")
    )


def without_effect(config: Any, entry: Entry) -> list[Setting]:
    """The settings with which this option's value has no effect; none where it has one, or asks for nothing."""
    value, about = getattr(config, entry.name), entry.option
    if about.only_if is None or value == entry.default or (about.none is not None and value == about.none):
        return []
    return about.only_if.blamed(config)


def shown(settings: Sequence[Setting]) -> str:
    """Settings as messages name them."""
    return " and ".join(f"{spelled(name)}={value!r}" for name, value in settings)


def check(config: Any) -> None:
    """Converts every option in place and checks what they are together.

    Raises:
        ValueError: an option has the wrong type, is out of range, does not go with another one or has no effect.
    """
    every = entries(config)
    for entry in every:
        setattr(config, entry.name, converted(entry, getattr(config, entry.name)))
    for entry in every:
        if getattr(config, entry.name) == entry.default:
            continue
        for condition, sentence in entry.option.needs:
            if blamed := condition.blamed(config):
                raise ValueError(f"{sentence}, got {shown(blamed)}")
    for entry in every:
        if blamed := without_effect(config, entry):
            setting = shown([(entry.name, getattr(config, entry.name))])
            raise ValueError(f"{setting} has no effect with {shown(blamed)}: leave it out")
