"""Classifiers with very wide fixed fan-in heads by scikit-learn's conventions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from sparse_xmc.app.assemble import Prepared, assemble
from sparse_xmc.app.build import build_encoder, input_width, label_order
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.device import choose_device
from sparse_xmc.app.estimator_data import Matrices, Targets, are_texts, read_targets
from sparse_xmc.app.loading import check_ranking
from sparse_xmc.app.model import as_split
from sparse_xmc.app.prepare import Preparation, Terms
from sparse_xmc.app.trainer import Trainer
from sparse_xmc.data import Features, LabelRows, LabelVocabulary

__all__ = ["SparseXMCClassifier"]

_STEPS, _MOST_EPOCHS, _FEWEST_EPOCHS = 1500, 100, 6
_SCORES = 1 << 24  # that are held at a time where all labels are scored
_NEVER = -30.0  # decision of a class without training rows: a probability of 1e-13
_OWN = ("threshold", "random_state", "verbose")


class SparseXMCClassifier(ClassifierMixin, BaseEstimator):
    """Multi-class and multi-label classification with a fixed fan-in head: memory and time grow with ``L * fan_in``.

    ``X`` is a list of texts (tf-idf, embeddings and a second head on terms, as ``sparse-xmc train`` has them), a SciPy
    sparse matrix (the head reads its columns as they are) or a dense matrix. ``y`` is a class of each row, an indicator
    matrix ``[N, L]``, dense or sparse, or a list of each row's labels. Parameters beside those below are options of
    ``sparse-xmc train`` with their defaults; one without effect on this kind of ``X`` is refused.

    Args:
        embedding_dim: None: 512 for texts, 0 (none) for sparse matrices.
        dropout: None: 0.2, but 0 for dense matrices.
        epochs: None: 6, more for small data (up to 100, to come to 1,500 steps).
        threshold: probability from which on ``predict`` gives a label of a multi-label problem.
        sparse_output: False: ``predict`` of a multi-label problem is dense, ``[N, L]``.
        random_state: seed, generator or None.
        verbose: shows progress.

    Attributes:
        classes_: the labels ``[L]``, in the order of the columns of all results.
        n_features_in_: columns of ``X``, where it is a matrix.

    A class vector is learned one class against the rest; its probabilities are scaled to the sum 1.

    Examples:
        >>> from sparse_xmc.sklearn import SparseXMCClassifier
        >>> texts = ["bread from the oven", "salt and bread", "judge and court", "the court of appeal"] * 5
        >>> labels = [["food", "home"], ["food"], ["law"], ["law"]] * 5
        >>> classifier = SparseXMCClassifier(embedding_dim=16, epochs=20, random_state=0).fit(texts, labels)
        >>> best, probabilities = classifier.predict_topk(["bread and salt", "the judge"], k=1)
        >>> best.tolist()
        [['food'], ['law']]
        >>> classifier.predict(texts).shape, classifier.predict_proba(texts).shape  # columns as in classes_
        ((20, 3), (20, 3))
        >>> classifier.decision_function(texts).shape, classifier.score(texts, labels)
        ((20, 3), 1.0)
        >>> classifier = classifier.partial_fit(["oven"], [["home"]])
    """

    def __init__(
        self,
        *,
        fan_in: int | None = None,
        group_size: int = 1,
        head: str = "fixed_fan_in",
        head_share: float = 0.1,
        topology: str = "informed",
        embedding_dim: int | None = None,
        intermediate: int = 0,
        lexical_fan_in: int | None = None,
        max_features: int = 200_000,
        min_df: int = 2,
        max_ngram: int = 1,
        loss: str = "bce",
        epochs: int | None = None,
        batch_size: int = 128,
        head_lr: float = 0.3,
        lexical_lr: float = 1.0,
        encoder_lr: float | None = None,
        dropout: float | None = None,
        input_dropout: float = 0.2,
        rewire_fraction: float = 0.0,
        rewire_interval: int = 200,
        threshold: float = 0.5,
        sparse_output: bool = True,
        device: str = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.fan_in = fan_in
        self.group_size = group_size
        self.head = head
        self.head_share = head_share
        self.topology = topology
        self.embedding_dim = embedding_dim
        self.intermediate = intermediate
        self.lexical_fan_in = lexical_fan_in
        self.max_features = max_features
        self.min_df = min_df
        self.max_ngram = max_ngram
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.head_lr = head_lr
        self.lexical_lr = lexical_lr
        self.encoder_lr = encoder_lr
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.rewire_fraction = rewire_fraction
        self.rewire_interval = rewire_interval
        self.threshold = threshold
        self.sparse_output = sparse_output
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> SparseXMCClassifier:
        """Trains from the beginning.

        Raises:
            ValueError, TypeError: a parameter, X or y is not what it must be.
        """
        split = self._split(X, reset=True)
        targets = read_targets(y)
        self._begin(split, targets)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> SparseXMCClassifier:
        """One more pass over these rows, at constant learning rates; the first call, or ``fit``, decides connections and
        terms.

        Args:
            classes: all classes, in the first call; None: those of its ``y``.

        Raises:
            ValueError: a class is new, or X or y is of another kind than before.
        """
        if not hasattr(self, "_bundle"):
            split = self._split(X, reset=True)
            self._begin(split, read_targets(y, classes), passes=1)
            return self
        split = self._split(X, reset=False)
        if classes is not None and not np.array_equal(np.unique(classes), np.unique(self.classes_)):
            raise ValueError("classes differ from those of the first call to partial_fit")
        targets = read_targets(y, self.classes_)
        if targets.kind != self._kind:
            raise ValueError(f"y was of the kind {self._kind!r} in the first call, now of {targets.kind!r}")
        inputs, _ = self._bundle.preparation.transform(split)
        _check_lengths(len(inputs), targets.rows)
        unknown = sorted({*targets.rows.names} - {*self._bundle.vocabulary.names})
        if unknown:
            raise ValueError(f"y holds classes without a row in fit: {self.classes_[unknown[:5]].tolist()}")
        matrix = self._bundle.vocabulary.encode(targets.rows)
        for scheduled in self._optimizers:
            scheduled.schedule, scheduled.warmup = "constant", 0.0
        self._train(
            lambda: Trainer(
                self._bundle.module,
                inputs,
                matrix,
                self._optimizers,
                epochs=1,
                batch_size=self.batch_size,
                seed=self._bundle.config.seed + self._passes,
                progress=self.verbose,
            )
        )
        self._passes += 1
        return self

    def predict(self, X: Any) -> Any:
        """The most probable class of each row ``[N]``; of a multi-label problem a CSR indicator ``[N, L]``, int64."""
        if self._fitted_kind() == "classes":
            best = [labels[:, 0] for _, labels in self._ranked(X, 1)]
            return self.classes_[np.concatenate(best) if best else np.empty(0, dtype=np.int64)]
        parts = [sp.csr_matrix(part >= self.threshold) for part in self._probabilities(X)]
        found = sp.vstack(parts, format="csr") if parts else sp.csr_matrix((0, len(self.classes_)))
        found = found.astype(np.int64)
        return found if self.sparse_output else found.toarray()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of all classes, ``[N, L]``."""
        kind = self._fitted_kind()
        result = np.concatenate([np.empty((0, len(self.classes_))), *self._probabilities(X)])
        if kind == "classes":
            result /= np.maximum(result.sum(axis=1, keepdims=True), 1e-300)
        return result

    def decision_function(self, X: Any) -> np.ndarray:
        """The model's own scores of all classes ``[N, L]``; of two classes ``[N]``, positive for the second."""
        kind = self._fitted_kind()
        result = np.concatenate([np.empty((0, len(self.classes_))), *self._all_scores(X)])
        if kind == "classes" and len(self.classes_) <= 2:
            return result[:, -1] - result[:, 0] if len(self.classes_) == 2 else result[:, 0]
        return result

    def predict_topk(self, X: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """``(labels, probabilities) [N, k]``, best first; fewer columns where fewer classes were seen in training."""
        self._fitted_kind()
        check_ranking(k, None)
        parts = list(self._ranked(X, k))
        width = min(k, len(self._columns))
        scores = np.concatenate([np.empty((0, width), np.float32), *(scores for scores, _ in parts)])
        labels = np.concatenate([np.empty((0, width), np.int64), *(labels for _, labels in parts)])
        return self.classes_[labels], scores

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; of a multi-label problem the share of rows whose most probable label is true (P@1)."""
        if self._fitted_kind() == "classes":
            return float(super().score(X, y, sample_weight))
        targets = read_targets(y, self.classes_)
        best = [labels[:, 0] for _, labels in self._ranked(X, 1)]
        _check_lengths(sum(map(len, best)), targets.rows)
        hits = [int(label) in targets.rows.row(i) for i, label in enumerate(np.concatenate(best))]
        return float(np.average(hits, weights=sample_weight))

    def _begin(self, split: Any, targets: Targets, passes: int | None = None) -> None:
        """A new model, trained for that many passes over the rows at constant rates; None: as the parameters say."""
        check_ranking(1, self.threshold)
        preparation = self._preparation(split)
        inputs, _ = preparation.fit(split)
        _check_lengths(len(inputs), targets.rows)
        if not len(targets.rows.ids):
            raise ValueError("there is nothing to learn: y has no label at all")
        config = self._config(split, len(inputs), passes)
        every = LabelVocabulary(list(range(len(targets.classes))))
        vocabulary = LabelVocabulary.from_rows(targets.rows) if passes is None else every

        def make() -> Trainer:
            matrix = vocabulary.encode(targets.rows)
            complete = config.completed(matrix, input_width(inputs))
            order = label_order(complete, inputs, matrix)
            encoder = build_encoder(complete, input_width(inputs))
            ordered = vocabulary.reordered(order)
            prepared = Prepared(complete, preparation, encoder, inputs, ordered, ordered.encode(targets.rows))
            assembly = assemble(prepared, choose_device(self.device))
            self._bundle: Bundle = assembly.bundle
            return assembly.trainer

        trainer = self._train(make)
        self.classes_, self._kind = targets.classes, targets.kind
        self._columns = np.array(self._bundle.vocabulary.names, dtype=np.int64)
        self._optimizers = trainer.optimizers
        self._passes = 1

    def _train(self, make: Any) -> Trainer:
        """Runs a trainer; the random numbers of the caller are what they were."""
        with torch.random.fork_rng(devices=[]):
            trainer = make()
            torch.manual_seed(trainer.seed)
            trainer.fit()
        self._bundle.module.eval()
        return trainer

    def _split(self, X: Any, *, reset: bool) -> Any:
        """X as texts or features; sets or checks ``n_features_in_``."""
        if are_texts(X):
            if not reset and not self._bundle.preparation.reads_texts:
                raise ValueError(f"X must be a matrix of {self.n_features_in_} features, as in fit, got texts")
            return as_split(X, True)
        if not reset and self._bundle.preparation.reads_texts:
            raise ValueError("X must be a list of texts, as in fit, got a matrix")
        matrix = validate_data(self, X, accept_sparse="csr", dtype=np.float32, reset=reset)
        return Features(matrix)

    def _preparation(self, split: Any) -> Preparation:
        if isinstance(split, Features):
            return Matrices()
        return Terms({"max_features": self.max_features, "min_df": self.min_df, "max_ngram": self.max_ngram})

    def _config(self, split: Any, num_rows: int, passes: int | None) -> TrainingConfig:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        options = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in (*_OWN, "sparse_output") and value != defaults[name]
        }
        if not isinstance(split, Features) or sp.issparse(split.matrix):
            options["solver"] = "gradient"
        if not isinstance(split, Features):
            options.setdefault("embedding_dim", 512)
        elif sp.issparse(split.matrix):
            options.setdefault("embedding_dim", 0)
        else:
            options |= {"encoder": "features", "dropout": 0.0 if self.dropout is None else self.dropout}
        if passes is not None:
            options |= {"epochs": passes, "warmup": 0.0, "head_schedule": "constant"}
            if options.get("embedding_dim") or self.intermediate:
                options["encoder_schedule"] = "constant"
        elif self.epochs is None:
            steps = -(-num_rows // self.batch_size)
            options["epochs"] = int(np.clip(-(-_STEPS // max(steps, 1)), _FEWEST_EPOCHS, _MOST_EPOCHS))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return TrainingConfig(**options, seed=seed, progress=bool(self.verbose))

    def _fitted_kind(self) -> str:
        check_is_fitted(self, "_bundle")
        return self._kind

    def _inputs(self, X: Any) -> Any:
        return self._bundle.preparation.transform(self._split(X, reset=False))[0]

    def _ranked(self, X: Any, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for scores, labels in self._bundle.predict(self._inputs(X), k):
            yield self._bundle.probabilities(scores), self._columns[labels]

    def _all_scores(self, X: Any) -> Iterator[np.ndarray]:
        for scores in self._bundle.all_scores(self._inputs(X)):
            yield self._widened(scores, _NEVER)

    def _probabilities(self, X: Any) -> Iterator[np.ndarray]:
        for scores in self._bundle.all_scores(self._inputs(X)):
            yield self._widened(self._bundle.probabilities(scores), 0.0)

    def _widened(self, values: np.ndarray, other: float) -> np.ndarray:
        """Values of the model's labels as those of all classes."""
        result = np.full((len(values), len(self.classes_)), other)
        result[:, self._columns] = values
        return result

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags


def _check_lengths(num_rows: int, rows: LabelRows) -> None:
    if num_rows != len(rows):
        raise ValueError(f"Found input variables with inconsistent numbers of samples: X has {num_rows}, y {len(rows)}")
