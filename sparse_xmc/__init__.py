"""Fixed fan-in sparse output layers for extreme multi-label classification.

``sparse_xmc.ops`` holds the kernels behind plain functions, ``sparse_xmc.models`` thin modules over them; ``optim``,
``topology``, ``metrics``, ``data``, ``storage`` and ``distributed`` what is needed to train and scale them, ``app`` the command
line. The layers and ``sparsify_`` can be imported from here as well; ``train`` and ``load`` make a model from files and use
it. Nothing is loaded, torch included, before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparse_xmc._version import __version__

if TYPE_CHECKING:
    from sparse_xmc import data, distributed, metrics, models, ops, optim, storage, topology
    from sparse_xmc.app.api import load, train
    from sparse_xmc.models import (
        DenseLinear,
        FixedFanInLinear,
        HeadTailLinear,
        QuantizedFixedFanInLinear,
        SparseInputLinear,
        XMCClassifier,
        sparsify_,
    )

__all__ = [
    "DenseLinear",
    "FixedFanInLinear",
    "HeadTailLinear",
    "QuantizedFixedFanInLinear",
    "SparseInputLinear",
    "XMCClassifier",
    "__version__",
    "data",
    "distributed",
    "load",
    "metrics",
    "models",
    "ops",
    "optim",
    "sparsify_",
    "storage",
    "topology",
    "train",
]

_MODULES = frozenset({"data", "distributed", "metrics", "models", "ops", "optim", "storage", "topology"})
_APPLICATION = frozenset({"load", "train"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        value: Any = import_module(f"{__name__}.{name}")
    else:
        value = getattr(import_module(f"{__name__}.app.api" if name in _APPLICATION else f"{__name__}.models"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
