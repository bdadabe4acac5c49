"""tf-idf features of texts: fitted on the training split in one streaming pass, stored as plain numbers and words.

scikit-learn's ``TfidfVectorizer`` is the definition of terms, their order and their weights; the work is done by kernels of
our own on all threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.term_counts import Counter, Counts, count_stream
from sparse_xmc.data.term_table import TermTable
from sparse_xmc.kernels.threads import run

_EARLIER = {"char_ngrams": (0, 0), "hashed": False, "scripts": False}  # what models of earlier versions did


class TfidfFeatures:
    """Texts to l2-normalised sublinear tf-idf rows.

    Args:
        max_features: most frequent terms kept; with ``hashed`` the number of columns.
        min_df: training texts that a term (a column) must occur in.
        max_ngram: longest run of words that makes a term; 0: no words.
        char_ngrams: shortest and longest run of characters within a word (its edges marked by spaces, as scikit-learn's
            ``char_wb``) that makes a further term, written ``~run``; (0, 0): none.
        hashed: columns are hashes of the terms (``HashingVectorizer``): no vocabulary is held, and terms may collide.
            Columns that too few training texts have stay empty.
        scripts: whether text in scripts without spaces (Chinese, Japanese, Thai, ...) gives terms of one to three
            characters in place of whole sentences.

    Raises:
        ValueError: an option is out of range, or they leave no kind of term.

    Examples:
        >>> from sparse_xmc.data import TfidfFeatures
        >>> features = TfidfFeatures(min_df=1)
        >>> features.fit_transform(["bread and salt", "bread and court"]).shape
        (2, 4)
        >>> features.transform(["unknown words"]).nnz
        0
        >>> terms, idf = features.state()
        >>> again = TfidfFeatures.from_state({"min_df": 1}, terms, idf)
        >>> again.transform(["bread"]).nnz
        1
        >>> again.extend_transform(["bread and oven"]).shape  # a term more
        (1, 5)
    """

    def __init__(
        self,
        *,
        max_features: int = 200_000,
        min_df: int = 2,
        max_ngram: int = 1,
        char_ngrams: Sequence[int] = (0, 0),
        hashed: bool = False,
        scripts: bool = True,
    ) -> None:
        low, high = char_ngrams
        if max_features < 1 or min_df < 1 or max_ngram < 0:
            raise ValueError(
                f"max_features and min_df must be at least 1, max_ngram at least 0, got {max_features}, {min_df}, {max_ngram}"
            )
        if not 1 <= low <= high <= 32 and (low, high) != (0, 0):
            raise ValueError(f"char_ngrams must be 1 <= shortest <= longest <= 32, or (0, 0), got {tuple(char_ngrams)}")
        if not max_ngram and not high:
            raise ValueError("max_ngram=0 and char_ngrams=(0, 0) leave no terms")
        self.options: dict[str, Any] = {
            "max_features": max_features,
            "min_df": min_df,
            "max_ngram": max_ngram,
            "char_ngrams": [low, high],
            "hashed": hashed,
            "scripts": scripts,
        }
        self._terms: list[str] = []
        self._idf: np.ndarray | None = None
        self._table: TermTable | None = None
        self._idle: list[Counter] = []
        self._lock = threading.Lock()

    def _counter(self, table: TermTable | None, grow: bool) -> Counter:
        o = self.options
        return Counter(table, grow, (o["max_ngram"], *o["char_ngrams"], o["max_features"]), o["scripts"])

    def fit_transform(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Learns terms and document frequencies; returns the features of the texts ``[N, D]``, float32 CSR.

        Raises:
            ValueError: no term occurs in ``min_df`` texts.
            TypeError: a text is no string.
            DataError: of the texts themselves, as it is.
        """
        return self._learn(texts, None)

    def extend_transform(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Learns the terms of further texts behind those there are, which keep their columns and frequencies; returns the
        features of the texts ``[N, D']``.

        New are the most frequent terms that ``min_df`` of these texts have, as far as ``max_features`` leaves room; hashed
        columns stay as they are.

        Raises:
            ValueError: nothing was fitted.
            TypeError, DataError: as of ``fit_transform``.
        """
        if self.options["hashed"]:
            return self.transform(texts)
        terms, idf = self.state()
        return self._learn(texts, (terms, idf))

    def _learn(self, texts: Iterable[str], known: tuple[list[str], np.ndarray] | None) -> sp.csr_matrix:
        hashed = self.options["hashed"]
        chunks = list(count_stream(texts, lambda: self._counter(None if hashed else TermTable(), True)))
        num_rows = sum(len(chunk.rows) - 1 for chunk in chunks)
        if hashed:
            num_terms = self.options["max_features"]
            maps = dict.fromkeys((id(chunk.counter) for chunk in chunks), np.arange(num_terms))
        else:
            table, maps = _merged(chunks)
            old = table.add(*TermTable(known[0]).packed()) if known is not None else np.empty(0, dtype=np.int64)
            num_terms = len(table)
        documents, occurrences = _frequencies(chunks, maps, num_terms)
        frequent = np.flatnonzero(documents >= self.options["min_df"])
        if not len(frequent) and known is None:
            reason = (
                f"none of {num_terms} terms occurs in {self.options['min_df']} texts" if documents.any() else "no words"
            )
            raise ValueError(f"the training texts give no tf-idf terms: {reason}")
        columns = np.full(num_terms, -1, dtype=np.int64)
        if hashed:
            columns[frequent] = frequent
            kept = np.arange(num_terms)
        else:
            frequent = frequent[~np.isin(frequent, old)]
            room = self.options["max_features"] - len(old)
            terms = [table.term(i) for i in frequent]
            order = sorted(range(len(terms)), key=terms.__getitem__)
            if len(order) > room:
                total = occurrences[frequent[order]].astype(np.float32)
                order = [order[i] for i in np.sort((-total).argsort()[: max(room, 0)])]
            kept = frequent[order]
            columns[old] = np.arange(len(old))
            columns[kept] = len(old) + np.arange(len(kept))
            self._terms = [*(known[0] if known is not None else ()), *(terms[i] for i in order)]
        self._idf = _inverse_document_frequency(documents[kept], num_rows)
        if hashed:
            self._idf[documents < self.options["min_df"]] = 0
        elif known is not None:
            self._idf = np.concatenate([known[1], self._idf])
        self._table, self._idle = None, []
        return _weighed(chunks, {key: columns[ids] for key, ids in maps.items()}, self._idf)

    def transform(self, texts: Iterable[str]) -> sp.csr_matrix:
        """Features ``[N, D]`` of other texts. An empty text, or one of unknown words only, is an empty row.

        Raises:
            ValueError: nothing was fitted.
            TypeError: a text is no string.
        """
        if self._idf is None:
            raise ValueError("transform needs fitted features: call fit_transform or from_state first")
        with self._lock:
            if self._table is None and not self.options["hashed"]:
                self._table = TermTable(self._terms)
        used: list[Counter] = []

        def take() -> Counter:
            try:
                counter = self._idle.pop()
            except IndexError:
                counter = self._counter(self._table, False)
            used.append(counter)
            return counter

        chunks = list(count_stream(texts, take))
        columns = np.where(self._idf > 0, np.arange(len(self._idf)), -1)
        result = _weighed(chunks, {id(counter): columns for counter in used}, self._idf)
        self._idle.extend(used)
        return result

    def state(self) -> tuple[list[str], np.ndarray]:
        """Terms by column (none where they are hashed) and the inverse document frequencies ``[D]``."""
        if self._idf is None:
            raise ValueError("state needs fitted features: call fit_transform or from_state first")
        return self._terms, self._idf

    @classmethod
    def from_state(cls, options: dict[str, Any], terms: list[str], idf: np.ndarray) -> TfidfFeatures:
        """Fitted features from ``options`` and what ``state`` returned.

        Raises:
            ValueError: terms and frequencies do not belong together.
        """
        features = cls(**{**_EARLIER, **options})
        idf = np.array(idf, dtype=np.float32)
        expected = features.options["max_features"] if features.options["hashed"] else len(terms)
        if idf.shape != (expected,) or not np.isfinite(idf).all():
            raise ValueError(f"idf must be {expected} finite numbers, got {list(idf.shape)}")
        if not all(isinstance(term, str) for term in terms) or len(set(terms)) != len(terms):
            raise ValueError("terms must be distinct strings")
        features._terms, features._idf = list(terms), idf
        return features


def _merged(chunks: list[Counts]) -> tuple[TermTable, dict[int, np.ndarray]]:
    """One table of all terms, and for each counter its terms' ids in there."""
    maps: dict[int, np.ndarray] = {}
    table = chunks[0].counter.table if chunks else TermTable()
    for chunk in chunks:
        key, own = id(chunk.counter), chunk.counter.table
        if key not in maps:
            maps[key] = np.arange(len(own)) if own is table else table.add(*own.packed())
    return table, maps


def _frequencies(chunks: list[Counts], maps: dict[int, np.ndarray], num_terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of documents and of occurrences of each term."""
    from sparse_xmc.kernels.terms import add_frequencies

    documents, occurrences = np.zeros(num_terms, dtype=np.int64), np.zeros(num_terms, dtype=np.int64)
    for chunk in chunks:
        add_frequencies(chunk.ids, chunk.counts, maps[id(chunk.counter)], documents, occurrences)
    return documents, occurrences


def _inverse_document_frequency(documents: np.ndarray, num_rows: int) -> np.ndarray:
    """``ln((1 + N) / (1 + n)) + 1`` in float32, rounded where scikit-learn rounds."""
    idf = np.full(len(documents), num_rows + 1, dtype=np.float32) / (documents.astype(np.float32) + np.float32(1))
    return np.log(idf) + np.float32(1)


def _weighed(chunks: list[Counts], columns: dict[int, np.ndarray], idf: np.ndarray) -> sp.csr_matrix:
    from sparse_xmc.kernels.terms import weigh

    sizes = [int((columns[id(c.counter)][c.ids] >= 0).sum()) for c in chunks]
    rows = np.cumsum([0, *(len(c.rows) - 1 for c in chunks)])
    starts = np.cumsum([0, *sizes])
    index = np.int32 if max(starts[-1], len(idf)) <= np.iinfo(np.int32).max else np.int64
    indptr = np.zeros(rows[-1] + 1, dtype=np.int64)
    indices, values = np.empty(starts[-1], dtype=index), np.empty(starts[-1], dtype=np.float32)
    logs = np.log(np.maximum(np.arange(4096, dtype=np.float32), 1))

    def weigh_chunk(i: int) -> None:
        chunk = chunks[i]
        out = indptr[rows[i] : rows[i + 1] + 1].copy()
        out[0] = starts[i]
        weigh(chunk.rows, chunk.ids, chunk.counts, columns[id(chunk.counter)], logs, idf, out, indices, values)
        indptr[rows[i] + 1 : rows[i + 1] + 1] = out[1:]

    run(weigh_chunk, [(i,) for i in range(len(chunks))])
    matrix = sp.csr_matrix((values, indices, indptr.astype(index)), shape=(int(rows[-1]), len(idf)))
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix
