"""Which options make a run what it is: those that must be equal for it to go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_xmc.app.options import entries

_ABSENT = object()
_OPEN = ("fan_in", "lexical_fan_in")  # numbers of connections that the data decide where they are left open


class Identified:
    """Mixed into a dataclass of options that head on features of ``width`` numbers, None where that is not known yet."""

    @property
    def width(self) -> int | None:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result: what must be equal for a run to be resumed. What was left open to
        ``completed`` is missing, as the data decide it."""
        result = {}
        for entry in entries(self):
            value, kind = getattr(self, entry.name), entry.option.identity
            if kind == "never" or (kind == "if changed" and self._as_recorded(entry.name) == entry.default):
                continue
            if entry.name not in _OPEN or value is not None:
                result[entry.name] = value
        return result

    def _as_recorded(self, name: str) -> Any:
        """A value as identities have it: a run by gradients is what every run was, and says nothing of it."""
        value = getattr(self, name)
        return "auto" if name == "solver" and value == "gradient" else value

    def changed_since(self, earlier: Mapping[str, Any], num_features: int | None = None) -> list[str]:
        """Names of options that differ from the ``identity`` of an earlier run (as JSON gives it back) in what they do.

        Options without effect may differ, and a number of connections that was cut to ``num_features`` is that number.
        """
        result = []
        by_name = {entry.name: entry for entry in entries(self)}
        identity = self.identity()
        for name, entry in by_name.items():
            if entry.option.identity == "never" or (name in _OPEN and name not in identity):
                continue
            if entry.option.only_if is not None and entry.option.only_if.blamed(self):
                continue
            absent = entry.default if entry.option.identity == "if changed" else _ABSENT
            then, now = earlier.get(name, absent), self._as_recorded(name)
            cut = name == "lexical_fan_in" or (name == "fan_in" and self.width is None)
            if cut and num_features is not None and isinstance(then, int):
                then = min(then, num_features)
            if then != now:
                result.append(name)
        return sorted(result)
