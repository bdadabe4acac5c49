"""From prepared rows to a model and its trainer: what the command line and the studies share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from sparse_xmc.app.beginning import Beginning
from sparse_xmc.app.build import build, build_encoder, build_optimizers, build_rewiring, input_width, label_order
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.growth import grown_model
from sparse_xmc.app.prepare import Preparation
from sparse_xmc.app.trainer import Trainer
from sparse_xmc.data import Inputs, LabelRows, LabelVocabulary
from sparse_xmc.distributed.ranks import Ranks


@dataclass
class Prepared:
    """A training split ready to be trained on: its labels in the model's order, the options that it decides decided."""

    config: TrainingConfig
    preparation: Preparation
    encoder: Any
    inputs: Inputs
    vocabulary: LabelVocabulary
    targets: sp.csr_matrix
    beginning: Beginning | None = None

    @classmethod
    def from_rows(
        cls, config: TrainingConfig, preparation: Preparation, inputs: Inputs, rows: LabelRows, encoder: Any = None
    ) -> Prepared:
        """Of inputs and their labels; ``encoder``: a transformer, which stands before its inputs are made.

        Raises:
            ValueError: an option asks for more than the split has.
        """
        vocabulary = LabelVocabulary.from_rows(rows)
        targets = vocabulary.encode(rows)
        width = None if encoder is None else encoder.out_features
        config = config.completed(targets, input_width(inputs), width)
        order = label_order(config, inputs, targets)
        if encoder is None:
            encoder = build_encoder(config, input_width(inputs))
        vocabulary = vocabulary.reordered(order)
        return cls(config, preparation, encoder, inputs, vocabulary, vocabulary.encode(rows))

    @classmethod
    def from_model(
        cls, config: TrainingConfig, bundle: Bundle, preparation: Preparation, inputs: Inputs, rows: LabelRows
    ) -> Prepared:
        """Of inputs that are prepared as those of a model, which is trained on.

        Raises:
            ValueError: all labels of the model would go.
        """
        beginning = Beginning.of(bundle, config, inputs, rows)
        vocabulary = beginning.vocabulary
        targets = vocabulary.encode(rows)
        return cls(config, preparation, bundle.module.encoder, inputs, vocabulary, targets, beginning)

    @property
    def num_features(self) -> int:
        """Features of the inputs, 0 for tokens."""
        return input_width(self.inputs)

    @property
    def frequencies(self) -> np.ndarray:
        """Training rows of each label ``[L]``, at least those that a model which is trained on has seen."""
        counts = np.asarray(self.targets.sum(axis=0)).ravel().astype(np.int64)
        return counts if self.beginning is None else np.maximum(counts, self.beginning.frequencies)

    @property
    def num_train(self) -> int:
        """Training rows, likewise."""
        return len(self.inputs) if self.beginning is None else max(len(self.inputs), self.beginning.bundle.num_train)


@dataclass
class Assembly:
    """A model with all that surrounds it, and the trainer that has not begun yet."""

    bundle: Bundle
    trainer: Trainer


def assemble(
    prepared: Prepared,
    device: torch.device,
    *,
    initialise: bool = True,
    embed: bool = True,
    ranks: Ranks | None = None,
    **options: Any,
) -> Assembly:
    """The model of a prepared split, its optimizers and the trainer over them.

    Args:
        initialise: False leaves out what a checkpoint overwrites.
        embed: False leaves the encoder's embeddings as they are.
        options: further arguments of ``Trainer``: validation, checkpoints, log.
    """
    config, inputs, targets = prepared.config, prepared.inputs, prepared.targets
    if prepared.beginning is not None:
        model = grown_model(config, prepared.beginning, inputs, targets, device)
    else:
        model = build(
            config, prepared.encoder, inputs, targets, device, initialise=initialise, embed=embed, ranks=ranks
        )
    bundle = Bundle(
        config,
        model,
        prepared.preparation,
        prepared.vocabulary,
        prepared.frequencies,
        prepared.num_train,
        prepared.num_features,
    )
    optimizers = build_optimizers(config, model)
    total_steps = -(-len(inputs) // config.batch_size) * config.epochs
    trainer = Trainer(
        model,
        inputs,
        targets,
        optimizers,
        rewire=build_rewiring(config, model, optimizers, total_steps),
        epochs=config.epochs,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        amp=config.amp,
        seed=config.seed,
        progress=config.progress,
        **options,
    )
    return Assembly(bundle, trainer)
