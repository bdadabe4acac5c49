"""Real multi-label data for the training demo: what is at hand, from data folders or from installed packages."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from bench.environment import REPOSITORY
from sparse_xmc.data import Features, LabelRows, LabelVocabulary, TfidfFeatures, open_split

NAMES = ("EURLEX57K", "Bibtex", "docstrings")
_PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "matplotlib", "torch", "email", "http", "asyncio", "logging")


class DataSet(NamedTuple):
    """Dense features ``[N, F]`` and binary CSR targets ``[N, L]`` of both splits."""

    name: str
    train_x: np.ndarray
    train_y: sp.csr_matrix
    test_x: np.ndarray
    test_y: sp.csr_matrix


def data_folder() -> Path:
    """Where data sets lie: ``SPARSE_XMC_DATA``, else ``../shared/data`` beside the repository."""
    return Path(os.environ.get("SPARSE_XMC_DATA", REPOSITORY.parent / "shared" / "data"))


def choose(name: str | None) -> str:
    """The data set to train on: the one asked for, else Bibtex where it is present, else docstrings."""
    if name is None:
        return "Bibtex" if (data_folder() / "Bibtex").is_dir() else "docstrings"
    if name not in NAMES:
        raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def load(name: str, *, dimensions: int = 512) -> DataSet:
    """Loads a data set; long texts become tf-idf, projected to ``dimensions`` by truncated SVD."""
    if name == "Bibtex":
        return _bibtex(data_folder() / "Bibtex")
    train, test = _eurlex(data_folder() / "EURLEX57K") if name == "EURLEX57K" else docstrings()
    tfidf = TfidfFeatures()
    train_x, test_x = _project(tfidf.fit_transform(train[0]), tfidf.transform(test[0]), dimensions)
    return DataSet(name, train_x, *_targets(train[1], test[1], test_x))


def _targets(train: LabelRows, test: LabelRows, test_x: np.ndarray) -> tuple[Any, ...]:
    vocabulary = LabelVocabulary.from_rows(train)
    return vocabulary.encode(train), test_x, vocabulary.encode(test)


def _project(train: sp.csr_matrix, test: sp.csr_matrix, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncated SVD, scaled so that a coordinate is of order one."""
    from sklearn.decomposition import TruncatedSVD

    svd = TruncatedSVD(min(dimensions, train.shape[1] - 1), random_state=0, n_iter=3).fit(train)
    a, b = svd.transform(train).astype(np.float32), svd.transform(test).astype(np.float32)
    scale = np.float32(a.shape[1] ** 0.5 / np.linalg.norm(a, axis=1).mean())
    return a * scale, b * scale


def _bibtex(folder: Path) -> DataSet:
    parts = []
    for split in ("train", "test"):
        features = open_split(folder / f"{split}.txt.gz")
        assert isinstance(features, Features)
        matrix = sp.csr_matrix(features.matrix)
        dense = matrix.toarray().astype(np.float32)
        dense *= np.sqrt(dense.shape[1]) / np.maximum(1e-6, np.linalg.norm(dense, axis=1, keepdims=True))
        parts.append((dense, features.labels))
    (train_x, train), (test_x, test) = parts
    return DataSet("Bibtex", train_x, *_targets(train, test, test_x))


def _eurlex(folder: Path) -> list[tuple[list[str], LabelRows]]:
    out = []
    for split in ("train", "test"):
        source = open_split(
            folder / f"{split}.jsonl.gz",
            text_fields=("title", "header", "recitals", "main_body"),
            label_field="concepts",
        )
        texts = list(source)  # type: ignore[arg-type]
        out.append((texts, source.labels))
    return out


def docstrings() -> list[tuple[list[str], LabelRows]]:
    """Documentation of functions and classes in installed packages; its labels are the modules that define it."""
    texts, labels = [], []
    for package in _PACKAGES:
        for name, text in _documented(package):
            parts = name.split(".")[:-1]
            texts.append(text)
            labels.append([".".join(parts[: i + 1]) for i in range(len(parts))])
    if len(texts) < 200:
        raise RuntimeError(f"found only {len(texts)} docstrings in {', '.join(_PACKAGES)}")
    order = np.random.default_rng(0).permutation(len(texts))
    cut = len(order) * 4 // 5
    out = []
    for rows in (order[:cut], order[cut:]):
        encoded = LabelRows()
        for i in rows:
            encoded.append(labels[i])
        out.append(([texts[i] for i in rows], encoded))
    return out


def _documented(package: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring without its first line) of public things in the package's first two levels."""
    try:
        root = importlib.import_module(package)
    except ImportError:
        return
    modules = [root]
    for info in pkgutil.iter_modules(getattr(root, "__path__", [])):
        if info.name.startswith("_") or info.name in ("tests", "testing", "conftest", "__main__"):
            continue
        try:
            modules.append(importlib.import_module(f"{package}.{info.name}"))
        except Exception:  # optional parts of a package may fail in any way when imported
            continue
    seen: set[int] = set()
    for module in modules:
        for member in list(vars(module).values()):
            defined = getattr(member, "__module__", None)
            if not (inspect.isclass(member) or inspect.isroutine(member)) or not isinstance(defined, str):
                continue
            text = inspect.getdoc(member) or ""
            if id(member) in seen or not defined.startswith(package) or len(text) < 120:
                continue
            seen.add(id(member))
            yield f"{defined}.{member.__name__}", text.partition("\n")[2]
