"""A trained model in a program of one's own: ``sparse_xmc.load``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.jobs.evaluation import score
from sparse_xmc.app.loading import check_ranking, load_bundle
from sparse_xmc.app.splits import prepared_split
from sparse_xmc.data import Features, Inputs, LabelRows


def load(run: str | os.PathLike[str], device: str = "auto", threads: int = 0) -> Model:
    """The trained model of a run folder.

    Args:
        run: the folder that ``train`` wrote.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of the process; 0: torch's default.

    Raises:
        ArtefactError: there is no intact model.
        ValueError: the device is not there, or threads are out of range.

    Examples:
        >>> import sparse_xmc
        >>> with open("train.csv", "w") as file:
        ...     print("text,labels\\n" + "bread and salt,food\\njudge and court,law\\n" * 20, file=file)
        >>> metrics = sparse_xmc.train(train="train.csv", out="runs/a", report=lambda line: None, progress=False)
        >>> model = sparse_xmc.load("runs/a")
        >>> model.labels, model.reads_texts
        (['food', 'law'], True)
        >>> [[(label, score)]] = model.predict(["salt"], k=1)
        >>> label, 0 <= score <= 1
        ('food', True)
        >>> scores, positions = model.topk(["salt", "court"], k=1)
        >>> model.predict_proba(["salt"]).shape
        (1, 2)
        >>> model.evaluate(["salt", "court"], [["food"], ["law"]])["P@1"]
        100.0
    """
    return Model(load_bundle(os.fspath(run), {"device": device, "threads": threads, "progress": False}))


@dataclasses.dataclass
class _Texts:
    """Texts in memory as the reader of a file gives them."""

    texts: Sequence[str]
    labels: LabelRows
    path: str = "the texts"

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


class Model:
    """A trained model that predicts. Any number of threads may call it; nothing is read from or written to a disk.

    ``inputs`` are a sequence of texts, or features ``[N, D]`` (NumPy, SciPy sparse or torch) for a model that was trained
    on features.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @property
    def labels(self) -> list[Any]:
        """Labels as the training data wrote them; numbers in arrays are positions in this list."""
        return list(self._bundle.vocabulary.names)

    @property
    def reads_texts(self) -> bool:
        """Whether inputs are texts; features otherwise."""
        return self._bundle.preparation.reads_texts

    def __repr__(self) -> str:
        kind = "texts" if self.reads_texts else f"{self._bundle.num_features:,} features"
        return f"Model({kind} -> {len(self._bundle.vocabulary):,} labels, on {self._bundle.device})"

    def predict(self, inputs: Any, k: int = 5, threshold: float | None = None) -> list[list[tuple[Any, float]]]:
        """The ``k`` best labels of each input, best first, with their probabilities in ``[0, 1]``.

        Args:
            threshold: leaves out labels less probable than this.

        Raises:
            TypeError, ValueError: inputs are not what the model reads, or k or threshold is out of range.
        """
        check_ranking(k, threshold)
        names = self._bundle.vocabulary.names
        least = 0.0 if threshold is None else threshold
        result = []
        for scores, labels in self._ranked(inputs, k):
            for row, values in zip(labels.tolist(), scores.tolist(), strict=True):
                pairs = zip(row, values, strict=True)
                result.append([(names[label], value) for label, value in pairs if value >= least])
        return result

    def topk(self, inputs: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """``(scores, labels) [N, k]``, best first: float32 probabilities and int64 positions in ``self.labels``."""
        check_ranking(k, None)
        width = min(k, len(self._bundle.vocabulary))
        parts = list(self._ranked(inputs, k))
        if not parts:
            return np.empty((0, width), np.float32), np.empty((0, width), np.int64)
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([labels for _, labels in parts])

    def predict_proba(self, inputs: Any) -> np.ndarray:
        """Probabilities of all labels, float32 ``[N, L]`` in the order of ``self.labels``: ``4 N L`` bytes."""
        parts = [self._bundle.probabilities(scores) for scores in self._bundle.all_scores(self._prepared(inputs))]
        return np.concatenate(parts) if parts else np.empty((0, len(self._bundle.vocabulary)), np.float32)

    def evaluate(self, data: Any, labels: Iterable[Iterable[Any]] | None = None) -> dict[str, Any]:
        """Metrics in percent on labelled data, those of ``sparse-xmc evaluate``.

        Args:
            data: a data file, or inputs.
            labels: the labels of each input; for a file, the file of its labels where that is another one.

        Raises:
            DataError: the file cannot be read, or holds no rows.
            ValueError: inputs and labels differ in number.
        """
        bundle = self._bundle
        if isinstance(data, (str, os.PathLike)):
            beside = None if labels is None else os.fspath(labels)  # type: ignore[call-overload]
            return score(
                bundle,
                *prepared_split(bundle.config, bundle.preparation, os.fspath(data), beside, purpose="evaluate"),
            )
        inputs, rows = self._prepared(data), LabelRows()
        for row in labels or ():
            rows.append(row)
        if len(rows) != len(inputs) or not len(rows):
            raise ValueError(f"evaluate needs the labels of each input, got {len(rows)} for {len(inputs)} inputs")
        return score(bundle, inputs, rows)

    def _ranked(self, inputs: Any, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for scores, labels in self._bundle.predict(self._prepared(inputs), k):
            yield self._bundle.probabilities(scores), labels

    def _prepared(self, inputs: Any) -> Inputs:
        return self._bundle.preparation.transform(as_split(inputs, self.reads_texts))[0]


def as_split(inputs: Any, reads_texts: bool) -> Any:
    """Inputs in memory as a split without labels.

    Raises:
        TypeError: they are neither a sequence of texts nor a matrix, or not what the model reads.
    """
    if isinstance(inputs, (str, bytes)):
        raise TypeError(f"inputs must be a list of texts, got a single {type(inputs).__name__}: put it into a list")
    if hasattr(inputs, "detach"):  # a tensor of torch
        inputs = inputs.detach().cpu().numpy()
    is_matrix = sp.issparse(inputs) or (isinstance(inputs, np.ndarray) and inputs.dtype.kind in "fiub")
    if is_matrix:
        if reads_texts:
            raise TypeError(f"the model reads texts, got a matrix {list(inputs.shape)}")
        return Features(inputs if sp.issparse(inputs) else np.asarray(inputs, dtype=np.float32))
    try:
        texts = list(inputs)
    except TypeError:
        raise TypeError(f"inputs must be a sequence of texts or a matrix, got {type(inputs).__name__}") from None
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise TypeError(f"inputs must be texts or a matrix, got a {type(wrong).__name__} among them: {wrong!r:.80}")
    if not reads_texts:
        raise TypeError(f"the model reads features [N, D], got {len(texts)} texts")
    return _Texts(texts, LabelRows())
