"""The providers, one module per family, in the order of tables and legends."""

from __future__ import annotations

from bench.provider import Provider
from bench.providers import (
    block_sparse,
    dense,
    eager_rewire,
    embedding_bag,
    gather,
    haste,
    python_sparse,
    sparse_xmc,
    torch_sparse,
)

ALL: tuple[Provider, ...] = (
    *sparse_xmc.PROVIDERS,
    *block_sparse.PROVIDERS,
    *dense.PROVIDERS,
    *eager_rewire.PROVIDERS,
    *embedding_bag.PROVIDERS,
    *gather.PROVIDERS,
    *haste.PROVIDERS,
    *python_sparse.PROVIDERS,
    *torch_sparse.PROVIDERS,
)


def providers() -> dict[str, Provider]:
    """All providers by name."""
    return {provider.name: provider for provider in ALL}


def get_provider(name: str) -> Provider:
    """Raises:
    ValueError: there is no provider of that name.
    """
    known = providers()
    if name not in known:
        raise ValueError(f"unknown provider {name!r}; known: {', '.join(known)}")
    return known[name]
