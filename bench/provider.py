"""The interface of a provider: one way to compute the layer, set up at a point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.weights import Weights


@dataclass
class Case:
    """A provider set up at a point.

    run: performs the mode once on the same inputs and returns what it produced, by the names in ``WORK``.
    weights: the provider's own parameters, for the check and for counting bytes.
    """

    run: Callable[[], dict[str, Tensor | list[Tensor]]]
    weights: Weights


class Unsupported(Exception):
    """A provider cannot serve a point; the message is the reason that the row reports."""


class Provider(ABC):
    """One way to compute the layer.

    label, colour: how tables and figures show it.
    """

    name: str
    label: str
    colour: str = "#dbdb8d"
    modes: Sequence[str]

    def unsupported(self, point: Point) -> str | None:
        """Why the provider cannot serve a point, judged without building anything."""
        return None

    @abstractmethod
    def predicted_bytes(self, point: Point) -> int:
        """Peak memory that the mode takes, everything included, roughly: what does not fit is not tried."""

    @abstractmethod
    def build(self, point: Point, problem: Problem) -> Case:
        """Sets the provider up. Raises ``Unsupported`` where that turns out to be impossible."""
