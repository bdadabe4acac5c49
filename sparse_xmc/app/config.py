"""Every option of a training run, with its default; the command line and TOML files fill it."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparse_xmc.app.option_checks import check_options, has_type

if TYPE_CHECKING:
    import scipy.sparse as sp

_FREQUENT = 20  # training rows per label, on average, from which on labels count as frequent


def option(default: Any, help: str, choices: tuple[Any, ...] | None = None) -> Any:
    """A field with the text that ``--help`` shows."""
    extra = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(metadata={"help": help, "choices": choices}, **extra)


@dataclass
class TrainingConfig:
    """A training run. Paths are as given; ``None`` means "decide from the rest"."""

    train: str = option("", "training split: .jsonl, .json, .txt, .npz or .npy, perhaps .gz")
    test: str | None = option(None, "test split, evaluated once at the end")
    valid: str | None = option(None, "validation split, evaluated after each epoch; enables early stopping")
    train_labels: str | None = option(None, "labels of --train where they are in a file of their own")
    test_labels: str | None = option(None, "labels of --test where they are in a file of their own")
    valid_labels: str | None = option(None, "labels of --valid where they are in a file of their own")
    text_field: list[str] = option(
        [], "JSON fields that hold the text, separated by commas or one by one; lists are joined"
    )
    label_field: str | None = option(None, "JSON field that holds the list of labels")
    test_filter: str | None = option(None, "file of 'row label' pairs left out when --test is evaluated")
    out: str = option("", "folder of the run: model, checkpoints, log, metrics")

    encoder: str = option("bow", "kind of encoder", ("bow", "features", "transformer"))
    max_features: int = option(200_000, "bow: terms kept, the most frequent ones")
    min_df: int = option(2, "bow: training texts that a term must occur in")
    max_ngram: int = option(1, "bow: longest run of words that makes a term")
    embedding_dim: int = option(512, "bow: size of the word embeddings; 0: the head reads the terms themselves")
    svd_init: bool = option(True, "bow: start the embeddings from a truncated SVD")
    transformer: str = option("", "transformer: local folder or hub id")
    pooling: str = option("mean", "transformer: pooling", ("mean", "cls"))
    max_length: int = option(128, "transformer: tokens kept of a text")
    gradient_checkpointing: bool = option(False, "transformer: recompute activations to save memory")
    lexical_fan_in: int | None = option(
        None, "bow: connections per label of a second head on the terms themselves; 0: none; None: 64 to 256"
    )
    lexical_loss: str = option("squared_hinge", "loss of the head on terms", ("bce", "squared_hinge"))
    input_dropout: float = option(0.2, "share of input terms dropped in training (where the head reads terms)")
    dropout: float = option(0.2, "share of features dropped in front of the head or intermediate layer")

    head: str = option("fixed_fan_in", "kind of head", ("fixed_fan_in", "dense", "head_tail"))
    fan_in: int = option(64, "connections per label")
    group_size: int = option(1, "neighbouring labels that share their connections")
    grouping: str = option("frequency", "which labels are neighbours", ("frequency", "random", "clustered"))
    topology: str = option("informed", "initial connections", ("informed", "random"))
    head_share: float = option(0.1, "head_tail: share of the labels, the most frequent ones, with a dense row")
    intermediate: int = option(0, "width of a dense layer in front of the head; 0: none")
    auxiliary_weight: float = option(0.0, "initial weight of the auxiliary objective over label clusters; 0: off")
    auxiliary_cutoff: float = option(0.3, "share of the training after which the auxiliary objective is off")
    auxiliary_clusters: int = option(256, "clusters of the auxiliary objective (approximate)")

    loss: str = option("bce", "loss, summed over labels", ("bce", "squared_hinge"))
    epochs: int = option(6, "passes over the training split")
    batch_size: int = option(128, "rows per optimizer step")
    accumulate: int = option(1, "pieces that a batch is cut into to save memory")
    head_lr: float = option(0.3, "learning rate of the head (Adagrad)")
    lexical_lr: float = option(1.0, "learning rate of the head on terms (Adagrad)")
    encoder_lr: float | None = option(None, "learning rate of encoder and intermediate layer (None: by kind)")
    embedding_lr: float = option(0.1, "bow: learning rate of the embedding table (row-wise Adagrad)")
    encoder_weight_decay: float = option(0.01, "transformer: decoupled weight decay")
    head_schedule: str = option("linear", "decay of the head's learning rate", ("linear", "cosine", "constant"))
    encoder_schedule: str = option("cosine", "decay of the encoder's learning rate", ("linear", "cosine", "constant"))
    warmup: float = option(0.02, "share of the training over which learning rates rise from 0")
    rewire_fraction: float = option(0.0, "share of each row's connections rewired at a time; 0: never")
    rewire_interval: int = option(200, "optimizer steps between rewirings")
    rewire_until: float = option(0.66, "share of the training after which the topology stays")
    fused: bool = option(False, "update the head inside its loss kernel (row-wise adaptive), without weight gradients")
    amp: str = option("off", "autocast dtype", ("off", "bf16", "fp16"))
    patience: int = option(3, "early stopping: epochs without a better P@1 on --valid; 0: never stop")
    seed: int = option(0, "of everything random")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    threads: int = option(0, "CPU threads; 0: torch's default")
    log_every: int = option(50, "optimizer steps between lines of the log")
    checkpoint_seconds: float = option(60.0, "least time between checkpoints within an epoch; each epoch ends with one")
    keep_checkpoints: int = option(2, "checkpoints kept")
    propensity_a: float = option(0.55, "A of the propensity model (0.5 for Wikipedia, 0.6 for Amazon sets)")
    propensity_b: float = option(1.5, "B of the propensity model (0.4 for Wikipedia, 2.6 for Amazon sets)")
    progress: bool = option(True, "show progress bars")

    def __post_init__(self) -> None:
        check_options(self)
        if self.fused and (self.accumulate > 1 or self.amp == "fp16"):
            raise ValueError("fused=true updates in backward: it takes neither accumulate > 1 nor amp='fp16'")
        if self.encoder == "transformer" and not self.transformer:
            raise ValueError("encoder='transformer' needs transformer: a local folder or hub id")

    def completed(self, targets: sp.csr_matrix, num_features: int) -> TrainingConfig:
        """With what was left open decided by the training split: its targets ``[N, L]`` and its number of features.

        A label with a handful of rows cannot fill many connections to terms (reports/accuracy.md).
        """
        if self.lexical_fan_in is not None or self.encoder != "bow" or self.reads_terms:
            return self
        rare = targets.nnz < _FREQUENT * targets.shape[1]
        return dataclasses.replace(self, lexical_fan_in=64 if rare else max(64, min(256, num_features // 16)))

    @property
    def reads_terms(self) -> bool:
        """Whether the head sits straight on sparse terms."""
        return self.encoder == "bow" and self.embedding_dim == 0

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result: what must be equal for a run to be resumed. What was left open to
        ``completed`` is missing, as the data decide it."""
        irrelevant = {"out", "progress", "threads", "checkpoint_seconds", "keep_checkpoints", "test", "test_labels"}
        irrelevant |= {"test_filter", "log_every", "propensity_a", "propensity_b"}
        if self.lexical_fan_in is None:
            irrelevant.add("lexical_fan_in")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in irrelevant}


def load_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Options from a TOML file; tables only group them (``[data]``, ``[training]``, any name).

    Raises:
        ValueError: the file is no TOML, or an option is unknown, stands twice or has the wrong type.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        raise ValueError(f"{os.fspath(path)}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)}: not valid TOML: {error}") from None
    options: dict[str, Any] = {}
    for key, value in content.items():
        for name, item in value.items() if isinstance(value, dict) else [(key, value)]:
            if name in options:
                raise ValueError(f"{os.fspath(path)}: option {name!r} stands twice")
            options[name] = item
    return {name: _checked(path, name, value) for name, value in options.items()}


def _checked(path: str | os.PathLike[str], name: str, value: Any) -> Any:
    entry = {e.name: e for e in dataclasses.fields(TrainingConfig)}.get(name)
    if entry is None:
        raise ValueError(f"{os.fspath(path)}: unknown option {name!r}")
    kind = str(entry.type).split(" | ")[0]
    if kind == "list[str]" and isinstance(value, str):
        value = value.split(",")
    if not has_type(kind, value):
        raise ValueError(f"{os.fspath(path)}: option {name!r} must be {kind}, got {value!r}")
    return float(value) if kind == "float" else value


def to_toml(config: TrainingConfig) -> str:
    """The configuration as TOML; ``load_toml`` reads it back. Options that are None are left out."""
    import json

    lines = []
    for name, value in dataclasses.asdict(config).items():
        if value is None:
            continue
        if isinstance(value, float):
            text = repr(float(value))  # TOML writes inf and nan as Python does
        else:
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{name} = {text}")
    return "\n".join(lines) + "\n"
