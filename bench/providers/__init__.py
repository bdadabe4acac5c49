"""The providers, one module per family, in the order of tables and legends."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path

from bench.provider import Provider
from bench.providers import (
    block_sparse,
    dense,
    dense_softmax,
    eager_rewire,
    embedding_bag,
    fbgemm,
    gather,
    haste,
    python_sparse,
    sparse_xmc,
    torch_sparse,
    torchrec,
)

ALL: tuple[Provider, ...] = (
    *sparse_xmc.PROVIDERS,
    *block_sparse.PROVIDERS,
    *dense.PROVIDERS,
    *dense_softmax.PROVIDERS,
    *eager_rewire.PROVIDERS,
    *embedding_bag.PROVIDERS,
    *fbgemm.PROVIDERS,
    *gather.PROVIDERS,
    *haste.PROVIDERS,
    *python_sparse.PROVIDERS,
    *torch_sparse.PROVIDERS,
    *torchrec.PROVIDERS,
)


FILES = "SPARSE_XMC_BENCH_PROVIDERS"  # environment variable: files of a user's own providers, for worker processes too


def add_files(paths: list[Path]) -> None:
    """Makes the providers of a user's own files known, here and in the processes that measure.

    Such a file holds a tuple ``PROVIDERS``, as the modules beside this one.

    Raises:
        ValueError: a file is not there, has no ``PROVIDERS``, or one of a name that is taken.
    """
    os.environ[FILES] = os.pathsep.join(str(path.resolve()) for path in paths)
    providers()


@cache
def _of_file(path: str) -> tuple[Provider, ...]:
    spec = importlib.util.spec_from_file_location(f"bench_providers_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"provider file {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = getattr(module, "PROVIDERS", None)
    if not isinstance(own, tuple) or not own or not all(isinstance(provider, Provider) for provider in own):
        raise ValueError(f"provider file {path} must hold PROVIDERS, a tuple of bench.provider.Provider; found {own!r}")
    return own


def providers() -> dict[str, Provider]:
    """All providers by name.

    Raises:
        ValueError: two have the same name.
    """
    known: dict[str, Provider] = {}
    files = filter(None, os.environ.get(FILES, "").split(os.pathsep))
    for provider in (*ALL, *(provider for path in files for provider in _of_file(path))):
        if provider.name in known:
            raise ValueError(f"provider {provider.name!r} is there twice")
        known[provider.name] = provider
    return known


def get_provider(name: str) -> Provider:
    """Raises:
    ValueError: there is no provider of that name.
    """
    known = providers()
    if name not in known:
        raise ValueError(f"unknown provider {name!r}; known: {', '.join(known)}")
    return known[name]
