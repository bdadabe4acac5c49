"""tf-idf features of texts: fitted on the training split in one streaming pass, stored as plain numbers and words."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.errors import DataError


class TfidfFeatures:
    """Texts to l2-normalised sublinear tf-idf rows (scikit-learn's ``TfidfVectorizer`` underneath).

    Args:
        max_features: most frequent terms kept.
        min_df: training texts that a term must occur in.
        max_ngram: longest run of words that makes a term.
    """

    def __init__(self, *, max_features: int = 200_000, min_df: int = 2, max_ngram: int = 1) -> None:
        self.options = {"max_features": max_features, "min_df": min_df, "max_ngram": max_ngram}
        self._vectorizer: Any = None

    def _make(self, **extra: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, ngram_range=(1, self.options["max_ngram"]), **extra)

    def fit_transform(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Learns terms and document frequencies; returns the features of the texts ``[N, D]``, float32 CSR.

        Raises:
            ValueError: no term occurs in ``min_df`` texts.
            DataError: of the texts themselves, as it is.
        """
        self._vectorizer = self._make(max_features=self.options["max_features"], min_df=self.options["min_df"])
        try:
            return _canonical(self._vectorizer.fit_transform(texts))
        except DataError:
            raise
        except ValueError as error:
            raise ValueError(f"the training texts give no tf-idf terms: {error}") from None

    def transform(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Features ``[N, D]`` of other texts. An empty text, or one of unknown words only, is an empty row."""
        if self._vectorizer is None:
            raise ValueError("transform needs fitted features: call fit_transform or from_state first")
        texts = iter(texts)
        first = next(texts, None)
        if first is None:
            return sp.csr_matrix((0, len(self._vectorizer.idf_)), dtype=np.float32)
        return _canonical(self._vectorizer.transform(chain([first], texts)))

    def state(self) -> tuple[list[str], np.ndarray]:
        """Terms by column and their inverse document frequencies ``[D]``."""
        return self._vectorizer.get_feature_names_out().tolist(), self._vectorizer.idf_

    @classmethod
    def from_state(cls, options: dict[str, int], terms: list[str], idf: np.ndarray) -> TfidfFeatures:
        features = cls(**options)
        features._vectorizer = features._make(vocabulary={term: i for i, term in enumerate(terms)})
        features._vectorizer.idf_ = np.asarray(idf, dtype=np.float32)
        return features


def _canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    matrix = matrix.tocsr()
    matrix.sort_indices()
    return matrix
