"""From data files to what a model is fed with, fitted on the training split and saved with the model."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data import (
    DataError,
    DenseInputs,
    Features,
    Inputs,
    LabelRows,
    SparseInputs,
    TextSource,
    TfidfFeatures,
    TokenCache,
    TokenInputs,
    TokenRows,
)
from sparse_xmc.data.tokens import cache_key
from sparse_xmc.solver.head import column_counts

FILES = "files/"  # names of the tensors that hold a transformer's files begin so


class Preparation(Protocol):
    """Turns a split into inputs and labels."""

    @property
    def reads_texts(self) -> bool:
        """Whether the model takes texts: what ``open_split`` is told as ``texts``. Known after ``fit``."""

    def fit(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]: ...

    def transform(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]: ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A JSON document and arrays from which ``restore_preparation`` makes an equal one."""


def _source(split: TextSource | Features) -> str:
    return str(getattr(split, "path", "the features"))


class Terms:
    """Texts to tf-idf rows; sparse features (repository format) to tf-idf rows likewise.

    Features that are counts in the training split grow with their logarithm, as those of texts do.

    Args:
        early: as version 0.1 did it, for runs that it has begun: counts are taken as they are, and text in scripts without
            spaces is not cut.
    """

    def __init__(self, options: dict[str, Any], *, early: bool = False) -> None:
        self.early = early
        self.tfidf = TfidfFeatures(**{**options, "scripts": not early})
        self.idf: np.ndarray | None = None  # of precomputed features
        self.counts = False

    @property
    def reads_texts(self) -> bool:
        return self.idf is None

    def fit(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        if isinstance(split, Features):
            matrix = _sparse(split)
            rows = column_counts(matrix)
            self.idf = (np.log((1 + matrix.shape[0]) / (1 + rows)) + 1).astype(np.float32)
            self.counts = not self.early and bool(matrix.nnz) and _are_counts(matrix.data) and matrix.data.max() > 1
            return self.transform(split)
        try:
            matrix = self.tfidf.fit_transform(iter(split))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(_source(split), None, str(error)) from None
        return SparseInputs(matrix), split.labels  # which the pass over the texts has read

    def transform(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        if isinstance(split, Features):
            if self.idf is None:
                raise DataError(_source(split), None, "holds features, the model was trained on texts")
            split.fit_width_(len(self.idf))
            matrix = _sparse(split)
            if self.counts:
                if not _are_counts(matrix.data):
                    raise DataError(_source(split), None, "holds other values than counts, which the model reads")
                matrix = matrix.copy()
                matrix.data = 1 + np.log(matrix.data)
            matrix = matrix @ sp.diags(self.idf)
            norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
            matrix = (sp.diags(1 / np.maximum(norms, 1e-12)) @ matrix).tocsr().astype(np.float32)
            return SparseInputs(matrix), split.labels
        if self.idf is not None:
            raise DataError(_source(split), None, "holds texts, the model was trained on features")
        matrix = self.tfidf.transform(iter(split))
        return SparseInputs(matrix), split.labels

    def extend(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        """As ``transform``, with terms of these texts behind those there are."""
        if isinstance(split, Features) or self.idf is not None:
            return self.transform(split)
        return SparseInputs(self.tfidf.extend_transform(iter(split))), split.labels

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        if self.idf is not None:
            of_counts = {"counts": True} if self.counts else {}
            features = {"kind": "terms", "options": self.tfidf.options, "terms": None, **of_counts}
            return features, {"idf": self.idf}
        terms, idf = self.tfidf.state()
        return {"kind": "terms", "options": self.tfidf.options, "terms": terms}, {
            "idf": np.asarray(idf, dtype=np.float32)
        }


def _are_counts(values: np.ndarray) -> bool:
    return bool((values >= 1).all() and (values == np.floor(values)).all())


def _sparse(split: Features) -> sp.csr_matrix:
    if not sp.issparse(split.matrix):
        raise DataError(_source(split), None, "encoder 'bow' needs texts or sparse features, use encoder 'features'")
    return split.matrix


class Precomputed:
    """Dense features ``[N, D]`` as they are (sparse ones are made dense batch by batch)."""

    reads_texts = False

    def __init__(self, num_features: int | None = None) -> None:
        self.num_features = num_features

    def fit(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        if not isinstance(split, Features):
            raise DataError(_source(split), None, "holds texts: encoder 'features' needs .npy, .npz or repository text")
        self.num_features = split.matrix.shape[1]
        return self.transform(split)

    def transform(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        if not isinstance(split, Features):
            raise DataError(_source(split), None, f"does not hold the {self.num_features} features of the model")
        assert self.num_features is not None
        split.fit_width_(self.num_features)
        return DenseInputs(split.matrix), split.labels

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"kind": "precomputed", "num_features": self.num_features}, {}


class Tokens:
    """Texts to token ids, for training cached beside the run as memory-mapped files keyed by content and tokeniser.

    Args:
        folder: of the caches; None: in memory.
    """

    reads_texts = True

    def __init__(self, encoder: Any, folder: str | None = None) -> None:
        self.encoder, self.folder = encoder, folder

    def fit(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        return self.transform(split)

    def transform(self, split: TextSource | Features) -> tuple[Inputs, LabelRows]:
        if isinstance(split, Features):
            raise DataError(_source(split), None, "holds features: encoder 'transformer' needs texts")
        how = (self.encoder.tokenize, self.encoder.vocabulary_size)
        if self.folder is None:
            return self._inputs(TokenRows.from_texts(iter(split), *how), split)
        tokenizer = {
            name: hashlib.sha256(content).hexdigest()
            for name, content in self.encoder.files.items()
            if name != "config.json"
        }
        key = cache_key(
            content=split.digest(),
            read_as=type(split).__name__,
            fields=getattr(split, "text_fields", None),
            tokenizer=tokenizer,
            length=self.encoder.max_length,
        )
        folder = os.path.join(self.folder, key)
        try:
            cache: TokenRows = TokenCache(folder)
        except ValueError:  # none yet, or a damaged one
            try:
                cache = TokenCache.build(folder, iter(split), *how)
            except OSError as error:
                reason = error.strerror or str(error)
                warnings.warn(f"no tokens are kept in {self.folder} for the next start: {reason}", stacklevel=2)
                cache = TokenRows.from_texts(iter(split), *how)
        else:
            for _ in split:  # only the labels are needed
                pass
        return self._inputs(cache, split)

    def _inputs(self, rows: TokenRows, split: TextSource) -> tuple[Inputs, LabelRows]:
        if len(rows) != len(split.labels):
            raise DataError(_source(split), None, "has changed while it was read")
        return TokenInputs(rows, self.encoder.pad_id), split.labels

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The encoder's files as bytes, as a run must not need the folder that its transformer came from."""
        files = self.encoder.files.items()
        return {"kind": "tokens"}, {FILES + name: np.frombuffer(content, np.uint8) for name, content in files}


def restore_preparation(document: dict[str, Any], tensors: dict[str, Any], *, encoder: Any = None) -> Preparation:
    """The preparation that ``state`` described; ``tensors`` of torch or NumPy."""
    if document["kind"] == "terms":
        terms = Terms(document["options"])
        if document["terms"] is None:
            terms.idf, terms.counts = np.asarray(tensors["idf"]), document.get("counts", False)
        else:
            terms.tfidf = TfidfFeatures.from_state(document["options"], document["terms"], np.asarray(tensors["idf"]))
        return terms
    if document["kind"] == "precomputed":
        return Precomputed(document["num_features"])
    return Tokens(encoder)


def batches(num_rows: int, size: int) -> Iterator[np.ndarray]:
    """Consecutive row numbers, ``size`` at a time."""
    for start in range(0, num_rows, size):
        yield np.arange(start, min(start + size, num_rows))
