"""A run that begins from a model (``--from``): which of its labels stay, and which are new.

Labels of the model keep their numbers, as far as they stay; new ones come behind them. Features are the model's: its terms
keep their columns and weights (a head that was solved directly gets terms of the new texts behind them), embeddings and
transformers are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.inherited import check_inherited
from sparse_xmc.data import Inputs, LabelRows, LabelVocabulary


def model_of(config: TrainingConfig) -> Bundle:
    """The model that a run begins from.

    Raises:
        ValueError: it has other options.
        ArtefactError: there is no intact one.
    """
    assert config.from_ is not None
    bundle = Bundle.load(config.from_, device="cpu")
    check_inherited(config, bundle.config)
    return bundle


@dataclass(frozen=True)
class Beginning:
    """A model that a run begins from.

    Args:
        bundle: the model, which the run makes its own.
        kept: numbers of its labels that stay, ascending.
        names: of the labels that are new, in the order of the columns behind those.
    """

    bundle: Bundle
    kept: np.ndarray
    names: list[object]

    @classmethod
    def of(cls, bundle: Bundle, config: TrainingConfig, inputs: Inputs, rows: LabelRows) -> Beginning:
        """With the labels of a training split.

        Raises:
            ValueError: all labels of the model would go.
        """
        split = LabelVocabulary.from_rows(rows)
        found = [bundle.vocabulary.index(name) for name in split.names]
        kept = np.arange(len(bundle.vocabulary))
        if config.drop_labels:
            kept = np.array(sorted({number for number in found if number is not None}), dtype=np.int64)
            if not len(kept):
                raise ValueError(f"drop_labels=True leaves no label of {config.from_}: {config.train} has none of them")
        fresh = LabelVocabulary([name for name, number in zip(split.names, found, strict=True) if number is None])
        if len(fresh) > 1 and config.group_size > 1 and config.grouping != "frequency":
            from sparse_xmc.app.build import label_order

            counted = LabelRows()
            for i in range(len(rows)):
                counted.append(name for name in rows.row(i) if fresh.index(name) is not None)
            fresh = fresh.reordered(label_order(config, inputs, fresh.encode(counted)))
        return cls(bundle, kept, fresh.names)

    @property
    def vocabulary(self) -> LabelVocabulary:
        """All labels of the run."""
        return LabelVocabulary([*(self.bundle.vocabulary.names[i] for i in self.kept), *self.names])

    @property
    def frequencies(self) -> np.ndarray:
        """Rows of each label that the model was trained on ``[L]``, 0 of new ones."""
        return np.concatenate([self.bundle.frequencies[self.kept], np.zeros(len(self.names), np.int64)])

    @property
    def gone(self) -> np.ndarray:
        """Numbers of the model's labels that leave it."""
        return np.setdiff1d(np.arange(len(self.bundle.vocabulary)), self.kept)

    def summary(self) -> str:
        """What comes and goes, in one line."""
        gone = f"{len(self.gone):,} of them leave, " if len(self.gone) else ""
        return f"begins from a model of {len(self.bundle.vocabulary):,} labels: {gone}{len(self.names):,} new ones"
