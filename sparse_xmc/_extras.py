"""Packages that only some uses need, and how to get them."""

from __future__ import annotations

import importlib.util

_EXTRA_OF = {
    "scipy": "train",
    "sklearn": "train",
    "safetensors": "train",
    "tqdm": "train",
    "tomli": "train",
    "transformers": "train",
    "matplotlib": "train",
    "pyarrow": "parquet",
    "pandas": "bench",
    "psutil": "bench",
}


def advice(package: str | None) -> str:
    """How to get a package that is missing, "" where nothing is known of it."""
    extra = _EXTRA_OF.get((package or "").split(".")[0])
    if extra is None:
        return ""
    return f"it belongs to the extra {extra!r}: pip install '.[{extra}]' in a checkout, else 'sparse_xmc[{extra}]'"


def require(*packages: str) -> None:
    """Raises:
    ModuleNotFoundError: a package is not installed; the message says how to get it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}: {advice(package)}", name=package)
