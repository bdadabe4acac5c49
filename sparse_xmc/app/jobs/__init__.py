"""The jobs behind the command line, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_xmc.app.jobs.compilation import warmup
    from sparse_xmc.app.jobs.conversion import convert
    from sparse_xmc.app.jobs.evaluation import evaluate
    from sparse_xmc.app.jobs.inspection import inspect
    from sparse_xmc.app.jobs.prediction import predict
    from sparse_xmc.app.jobs.training import train

_PLACES = {
    "convert": "conversion",
    "evaluate": "evaluation",
    "inspect": "inspection",
    "predict": "prediction",
    "train": "training",
    "warmup": "compilation",
}
__all__ = ["convert", "evaluate", "inspect", "predict", "train", "warmup"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
