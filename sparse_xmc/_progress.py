"""How far a long piece of work has come: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

EVERY = 10.0  # seconds between lines
Item = TypeVar("Item")


class Meter:
    """Counts work that is done and shows it on ``stream``.

    Args:
        what: the work, as in "training".
        unit: of what is counted, in the plural.
        total: how much there is; None: not known.
        done: how much was done before.
        shown: False shows nothing.
        stream: where to; None: standard error. A terminal gets a bar (of tqdm, where that is installed).
        clock: seconds.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        *,
        done: int = 0,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.unit, self.total, self.done, self.shown = what, unit, total, done, shown
        self.stream, self.clock = stream or sys.stderr, clock
        self._first, self._note = done, ""
        self._began = self._last = clock()
        self._bar = self._make_bar() if shown and self.stream.isatty() else None

    def _make_bar(self) -> Any:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            return None
        return tqdm(
            desc=self.what, total=self.total, initial=self.done, unit=f" {self.unit}", file=self.stream, leave=False
        )

    def update(self, count: int = 1) -> None:
        """Counts more work as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self.shown and self.clock() - self._last >= EVERY:
            self._last = self.clock()
            print(self.line(), file=self.stream, flush=True)

    def note(self, text: str) -> None:
        """Sets what is shown beside the count."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def line(self) -> str:
        """How far the work is, its rate and the time that is left."""
        rate = (self.done - self._first) / max(self.clock() - self._began, 1e-9)
        parts = [f"{self.what}: {self.done:,}"]
        if self.total:
            parts[0] += f" of {self.total:,} {self.unit} ({100 * self.done / self.total:.0f} %)"
        else:
            parts[0] += f" {self.unit}"
        parts.append(f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2f} a second")
        if self.total and rate:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return ", ".join(parts + [self._note] * bool(self._note))

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each counted when the next one is asked for."""
        try:
            for item in items:
                yield item
                self.update()
        finally:
            self.close()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
