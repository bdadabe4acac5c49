"""Every option of a training run; the command line, TOML files and ``sparse_xmc.train`` fill it.

An option and all that is known of it stand in one line; ``options`` tells how to add one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sparse_xmc.app.direct.options import looks_direct, refuse_gradient_options
from sparse_xmc.app.identity import Identified
from sparse_xmc.app.options import (
    check,
    converted,
    entries,
    option,
    unless,
    when,
    without_effect,
)
from sparse_xmc.solver.efforts import EFFORTS

if TYPE_CHECKING:
    import scipy.sparse as sp

_CONNECTIONS = 64  # of a label where fan_in is left open
_LONGEST_RUN = 32  # characters of a term
_FREQUENT = 20  # training rows per label, on average, from which on labels count as frequent
_FEWEST_TERMS, _MOST_TERMS = 64, 256  # connections of a label to terms that ``completed`` chooses

_BOW, _TRANSFORMER = when("encoder", "bow"), when("encoder", "transformer")
_TEXTS = unless("encoder", "features")
_EMBEDS = unless("encoder", "bow") | unless("embedding_dim", 0)  # the head reads dense features
_LEXICAL = _BOW & unless("embedding_dim", 0) & unless("lexical_fan_in", 0)  # there is a second head, on terms
_READS_TERMS = _BOW & (when("embedding_dim", 0) | unless("lexical_fan_in", 0))  # some head reads terms
_SPARSE = unless("head", "dense") | _LEXICAL  # some head has fixed fan-in
_LEARNS = _EMBEDS & (_TEXTS | unless("intermediate", 0))  # something in front of the head learns
_DIRECT = _BOW & unless("solver", "gradient")
_EMBED = "set embedding_dim (512, say)"


@dataclass
class TrainingConfig(Identified):
    """A training run. Paths are as given; ``None`` means "decide from the rest"."""

    train: str = option("", "training split: .jsonl, .json, .txt, .npz or .npy, perhaps .gz")
    test: str | None = option(None, "test split, evaluated once at the end", identity="never")
    valid: str | None = option(None, "validation split, evaluated after each epoch; enables early stopping")
    train_labels: str | None = option(None, "labels of --train where they are in a file of their own")
    test_labels: str | None = option(
        None,
        "labels of --test where they are in a file of their own",
        only_if=unless("test", None),
        identity="never",
    )
    valid_labels: str | None = option(
        None, "labels of --valid where they are in a file of their own", only_if=unless("valid", None)
    )
    text_field: list[str] = option(
        [],
        "fields or columns that hold the text, separated by commas or one by one; lists are joined",
        only_if=_TEXTS,
        origin="model unless given",
    )
    label_field: str | None = option(
        None, "field or column that holds the labels", only_if=_TEXTS, origin="model unless given"
    )
    label_separator: str | None = option(
        None,
        "what separates the labels of a row in text: tab, space, comma, none or any string (default: told from all rows)",
        identity="if changed",
        origin="model unless given",
    )
    test_filter: str | None = option(
        None,
        "file of 'row label' pairs left out when --test is evaluated",
        only_if=unless("test", None),
        identity="never",
    )
    out: str = option("", "folder of the run: model, checkpoints, log, metrics", identity="never")
    from_: str | None = option(
        None,
        "folder of a run: begin from its model, with labels that are new behind its own; what makes the model is the model's",
        needs=[(when("auxiliary_weight", 0), "the auxiliary objective is for a model that begins from nothing")],
        identity="if changed",
    )
    drop_labels: bool = option(
        False,
        "from: labels of the model that --train lacks leave it; else they stay",
        only_if=unless("from_", None),
        needs=[
            (when("group_size", 1), "labels that share connections cannot leave one by one: drop_labels needs none")
        ],
        identity="if changed",
    )

    encoder: str = option(
        "bow",
        "kind of encoder",
        choices=("bow", "features", "transformer"),
        needs=[
            (
                unless("encoder", "transformer") | unless("transformer", ""),
                "encoder='transformer' needs transformer: a local folder or hub id",
            )
        ],
        origin="model",
    )
    solver: str = option(
        "auto",
        "bow: how the head is found: direct (one SVM a label on tf-idf terms, in closed steps), gradient (epochs, with "
        "word embeddings) or auto: direct unless an option of the gradient is set",
        choices=("auto", "direct", "gradient"),
        only_if=_BOW,
        identity="if changed",
        origin="model",
    )
    effort: str = option(
        "normal",
        "direct: fast (nothing is held out), normal, or best (terms, more connections, costs, rounds and clusterings are "
        "tried: several times the work)",
        choices=EFFORTS,
        only_if=_DIRECT,
        identity="if changed",
        origin="model",
    )
    held_out: float | None = option(
        None,
        "direct: share of the training rows that decide over the settings (default: 5 %, but 2,000 rows at least, or a fifth "
        "of few rows); the model is then solved on all rows",
        range="[0, 0.5]",
        only_if=_DIRECT & unless("effort", "fast"),
        identity="if changed",
        origin="model",
    )
    tail: float = option(
        0.0,
        "direct: weight of PSP@k against P@k in that decision; 1: rare labels first",
        range="[0, 1]",
        only_if=_DIRECT & unless("effort", "fast"),
        identity="if changed",
        origin="model",
    )
    head_memory: int | None = option(
        None,
        "direct: bytes that the head may take",
        range="[1, 1e18]",
        only_if=_DIRECT,
        identity="if changed",
        origin="model",
    )
    memory_limit: int | None = option(
        None,
        "direct: bytes of memory that the run may take: one that is predicted to take more ends before its work",
        range="[1, 1e18]",
        only_if=_DIRECT,
        identity="never",
    )
    keep_stages: bool = option(
        False, "direct: keep the results of the stages when the run is finished", only_if=_DIRECT, identity="never"
    )
    max_features: int = option(
        200_000, "bow: terms kept, the most frequent ones", range="[1, inf)", only_if=_BOW, origin="model"
    )
    min_df: int = option(
        2, "bow: training texts that a term must occur in", range="[1, inf)", only_if=_BOW, origin="model"
    )
    max_ngram: int = option(
        1, "bow: longest run of words that makes a term; 0: none does", range="[0, inf)", only_if=_BOW, origin="model"
    )
    char_ngrams: str = option(
        "",
        "LOW-HIGH, such as 3-5: runs of so many characters within words are terms as well (bow)",
        pattern=r"|[1-9]\d?-[1-9]\d?",
        only_if=_BOW,
        identity="if changed",
        origin="model",
    )
    hashed: bool = option(
        False,
        "bow: max_features columns that are hashes of the terms: no vocabulary is held, and terms may share a column",
        only_if=_BOW,
        identity="if changed",
        origin="model",
    )
    embedding_dim: int = option(
        512,
        "bow: size of the word embeddings; 0: the head reads the terms themselves",
        range="[0, inf)",
        only_if=_BOW,
        origin="model",
    )
    svd_init: bool = option(
        True,
        "bow: start the embeddings from a truncated SVD",
        only_if=_BOW & unless("embedding_dim", 0),
        origin="model",
    )
    transformer: str = option("", "transformer: local folder or hub id", only_if=_TRANSFORMER, origin="model")
    pooling: str = option("mean", "transformer: pooling", choices=("mean", "cls"), only_if=_TRANSFORMER, origin="model")
    max_length: int = option(
        128, "transformer: tokens kept of a text", range="[1, inf)", only_if=_TRANSFORMER, origin="model"
    )
    gradient_checkpointing: bool = option(
        False, "transformer: recompute activations to save memory", only_if=_TRANSFORMER
    )
    lexical_fan_in: int | None = option(
        None,
        "bow: connections per label of a second head on the terms themselves; 0: none; None: 64 to 256, as many as "
        "there are terms at most",
        range="[0, inf)",
        only_if=_BOW & unless("embedding_dim", 0),
        none=0,
        origin="model",
    )
    lexical_loss: str = option(
        "squared_hinge",
        "loss of the second head, on terms",
        choices=("bce", "squared_hinge"),
        only_if=_LEXICAL,
        origin="model",
    )
    input_dropout: float = option(
        0.2,
        "share of input terms dropped in training (where a head reads terms)",
        range="[0, 1)",
        only_if=_READS_TERMS,
    )
    dropout: float = option(
        0.2, "share of features dropped in front of the head or intermediate layer", range="[0, 1)", only_if=_EMBEDS
    )

    head: str = option(
        "fixed_fan_in",
        "kind of head",
        choices=("fixed_fan_in", "dense", "head_tail"),
        needs=[(_EMBEDS, f"a head with dense rows on sparse terms is not supported: {_EMBED}")],
        origin="model",
    )
    fan_in: int | None = option(
        None,
        "connections per label; None: 64, or all features that the head reads where there are fewer",
        range="[1, inf)",
        only_if=unless("head", "dense"),
        none=_CONNECTIONS,
        origin="model",
    )
    group_size: int = option(
        1, "neighbouring labels that share their connections", range="[1, inf)", only_if=_SPARSE, origin="model"
    )
    grouping: str = option(
        "frequency",
        "which labels are neighbours",
        choices=("frequency", "random", "clustered"),
        only_if=_SPARSE & unless("group_size", 1),
        origin="model unless given",
    )
    topology: str = option(
        "informed", "initial connections", choices=("informed", "random"), only_if=_SPARSE, origin="model unless given"
    )
    head_share: float = option(
        0.1,
        "head_tail: share of the labels, the most frequent ones, with a dense row",
        range="(0, 1)",
        only_if=when("head", "head_tail"),
        origin="model",
    )
    intermediate: int = option(
        0,
        "width of a dense layer in front of the head; 0: none",
        range="[0, inf)",
        only_if=_EMBEDS,
        origin="model",
    )
    auxiliary_weight: float = option(
        0.0,
        "initial weight of the auxiliary objective over label clusters; 0: off",
        range="[0, 1)",
        needs=[
            (_TEXTS, "auxiliary_weight > 0 needs an encoder that learns"),
            (_EMBEDS, f"auxiliary_weight > 0 needs an encoder that learns: {_EMBED}"),
        ],
    )
    auxiliary_cutoff: float = option(
        0.3,
        "share of the training after which the auxiliary objective is off",
        range="(0, 1]",
        only_if=unless("auxiliary_weight", 0),
    )
    auxiliary_clusters: int = option(
        256,
        "clusters of the auxiliary objective (approximate)",
        range="[1, inf)",
        only_if=unless("auxiliary_weight", 0),
    )

    loss: str = option("bce", "loss, summed over labels", choices=("bce", "squared_hinge"), origin="model")
    epochs: int = option(6, "passes over the training split", range="[1, inf)")
    batch_size: int = option(128, "rows per optimizer step", range="[1, inf)")
    accumulate: int = option(1, "pieces that a batch is cut into to save memory", range="[1, inf)")
    head_lr: float = option(0.3, "learning rate of the head (Adagrad)", range="[0, inf)", only_if=_EMBEDS)
    lexical_lr: float = option(
        1.0, "learning rate of the head on terms (Adagrad)", range="[0, inf)", only_if=_READS_TERMS
    )
    encoder_lr: float | None = option(
        None,
        "learning rate of encoder and intermediate layer (None: by kind)",
        range="[0, inf)",
        only_if=_LEARNS,
    )
    embedding_lr: float = option(
        0.1,
        "bow: learning rate of the embedding table (row-wise Adagrad)",
        range="[0, inf)",
        only_if=_BOW & unless("embedding_dim", 0),
    )
    encoder_weight_decay: float = option(
        0.01, "transformer: decoupled weight decay", range="[0, inf)", only_if=_TRANSFORMER
    )
    head_schedule: str = option("linear", "decay of the head's learning rate", choices=("linear", "cosine", "constant"))
    encoder_schedule: str = option(
        "cosine",
        "decay of the encoder's learning rate",
        choices=("linear", "cosine", "constant"),
        only_if=_LEARNS,
    )
    warmup: float = option(0.02, "share of the training over which learning rates rise from 0", range="[0, 1)")
    rewire_fraction: float = option(
        0.0,
        "share of each row's connections rewired at a time; 0: never",
        range="[0, 1)",
        only_if=unless("head", "dense"),
    )
    rewire_interval: int = option(
        200, "optimizer steps between rewirings", range="[1, inf)", only_if=unless("rewire_fraction", 0)
    )
    rewire_until: float = option(
        0.66,
        "share of the training after which the topology stays",
        range="[0, 1]",
        only_if=unless("rewire_fraction", 0),
    )
    fused: bool = option(
        False,
        "update the head inside its loss kernel (row-wise adaptive), without weight gradients",
        only_if=_EMBEDS,
        needs=[
            (when("head", "fixed_fan_in"), "fused=true needs head='fixed_fan_in'"),
            (
                when("accumulate", 1) & unless("amp", "fp16"),
                "fused=true updates in backward: it takes neither accumulate > 1 nor amp='fp16'",
            ),
        ],
    )
    amp: str = option("off", "autocast dtype", choices=("off", "bf16", "fp16"), only_if=_EMBEDS)
    patience: int = option(
        3,
        "early stopping: epochs without a better P@1 on --valid; 0: never stop",
        range="[0, inf)",
        only_if=unless("valid", None),
        none=0,
    )
    calibration_share: float = option(
        0.0,
        "share of the training rows held out to learn from them what scores mean, where there is no --valid for that",
        range="[0, 0.5]",
        only_if=when("valid", None),
        identity="if changed",
    )
    seed: int = option(0, "of everything random", range="[0, 4294967295]")  # what scikit-learn takes
    device: str = option("auto", "auto, cpu, cuda or cuda:N", pattern=r"auto|cpu|cuda(:\d+)?")
    threads: int = option(0, "CPU threads; 0: torch's default", range="[0, 1024]", identity="never")
    log_every: int = option(50, "optimizer steps between lines of the log", range="[1, inf)", identity="never")
    checkpoint_seconds: float = option(
        60.0,
        "least time between checkpoints within an epoch; each epoch ends with one",
        range="[0, inf]",
        identity="never",
    )
    keep_checkpoints: int = option(2, "checkpoints kept", range="[1, inf)", identity="never")
    propensity_a: float = option(
        0.55,
        "A of the propensity model (0.5 for Wikipedia, 0.6 for Amazon sets)",
        range="(0, 10]",
        identity="never",
        origin="model unless given",
    )
    propensity_b: float = option(
        1.5,
        "B of the propensity model (0.4 for Wikipedia, 2.6 for Amazon sets)",
        range="(0, 1e6]",
        identity="never",
        origin="model unless given",
    )
    timeout: float = option(
        120.0,
        "several ranks: seconds without a sign of life of one after which the others end; steps may take any time",
        range="[1, 86400]",
        identity="never",
    )
    progress: bool = option(True, "show progress bars", identity="never")

    def __post_init__(self) -> None:
        check(self)
        refuse_gradient_options(self)
        self._check_terms()
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate={self.accumulate} cuts a batch into more pieces than its rows: at most "
                f"batch_size={self.batch_size}"
            )
        if not looks_direct(self) and (self.head == "dense" or self.width is not None):
            self.fan_in = self.connections(self.width or _CONNECTIONS)

    def _check_terms(self) -> None:
        low, high = self.character_runs
        if not low <= high <= _LONGEST_RUN:
            raise ValueError(f"char_ngrams must be 1 <= LOW <= HIGH <= {_LONGEST_RUN}, got {self.char_ngrams!r}")
        if self.max_ngram == 0 and not high:
            raise ValueError("max_ngram=0 leaves no terms: set char_ngrams (3-5, say)")

    @property
    def character_runs(self) -> tuple[int, int]:
        """Shortest and longest run of characters that makes a term, (0, 0) for none."""
        low, _, high = (self.char_ngrams or "0-0").partition("-")
        return int(low), int(high)

    @property
    def term_options(self) -> dict[str, Any]:
        """What ``TfidfFeatures`` is made with."""
        return {
            "max_features": self.max_features,
            "min_df": self.min_df,
            "max_ngram": self.max_ngram,
            "char_ngrams": self.character_runs,
            "hashed": self.hashed,
        }

    @property
    def reads_terms(self) -> bool:
        """Whether the head sits straight on sparse terms."""
        return self.encoder == "bow" and self.embedding_dim == 0

    @property
    def width(self) -> int | None:
        """Number of features that the head reads, None where the data or a transformer decide."""
        return self.intermediate or (self.embedding_dim if self.encoder == "bow" else 0) or None

    def connections(self, width: int) -> int:
        """Connections of a label of a head that reads ``width`` features.

        Raises:
            ValueError: ``fan_in`` is more than that.
        """
        if self.fan_in is None:
            return _CONNECTIONS if self.head == "dense" else min(_CONNECTIONS, width)
        if self.head != "dense" and self.fan_in > width:
            raise ValueError(
                f"fan_in={self.fan_in} is more than the {width} features that the head reads: at most {width}"
            )
        return self.fan_in

    def completed(self, targets: sp.csr_matrix, num_features: int, encoder_width: int | None = None) -> TrainingConfig:
        """With what was left open decided by the training split: its targets ``[N, L]`` and its number of features.

        A label with a handful of rows cannot fill many connections to terms (reports/accuracy.md).

        Args:
            encoder_width: features that a transformer makes.

        Raises:
            ValueError: an option asks for more than there is.
        """
        if self.solver == "direct" or self.from_ is not None:
            return self  # numbers of connections are chosen while it solves, or the model has them
        fan_in = self.connections(self.width or encoder_width or num_features)
        terms = self.lexical_fan_in
        if self.encoder == "bow" and not self.reads_terms:
            if terms is None:
                rare = targets.nnz < _FREQUENT * targets.shape[1]
                terms = _FEWEST_TERMS if rare else max(_FEWEST_TERMS, min(_MOST_TERMS, num_features // 16))
                terms = min(terms, num_features)
            elif terms > num_features:
                raise ValueError(
                    f"lexical_fan_in={terms} is more than the {num_features} terms of the training split: at most "
                    f"{num_features}"
                )
        return dataclasses.replace(self, fan_in=fan_in, lexical_fan_in=terms)

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The configuration that a trained model holds, in which options without effect were accepted once: they get
        their defaults.

        Raises:
            ValueError: an option is unknown, of another type or out of range.
        """
        options = {entry.name: entry for entry in entries(cls)}
        for name in values:
            if name not in options:
                raise ValueError(f"unknown option {name!r}")
        whole = {name: converted(entry, values.get(name, entry.default)) for name, entry in options.items()}
        for entry in options.values():
            if without_effect(SimpleNamespace(**whole), entry):
                whole[entry.name] = entry.default
        return cls(**whole)
