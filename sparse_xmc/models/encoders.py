"""Encoders: what turns a batch of inputs into features ``[B, out_features]`` for a head."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc._renamed import renamed
from sparse_xmc.models.sparse_rows import embedding_bag_csr
from sparse_xmc.ops._arguments import check_positive_int

_NO_CODE: dict[str, Any] = {"trust_remote_code": False}


class PrecomputedEncoder(nn.Module):
    """Passes dense features ``[B, out_features]`` on, with dropout in training.

    Examples:
        >>> import torch
        >>> from sparse_xmc.models import PrecomputedEncoder
        >>> PrecomputedEncoder(16)(torch.randn(2, 16)).shape
        torch.Size([2, 16])
    """

    def __init__(self, out_features: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        check_positive_int("out_features", out_features)
        self.out_features = out_features
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.out_features:
            raise ValueError(f"x must be [B, {self.out_features}], got {list(x.shape)}")
        return self.dropout(x)


class BagOfWordsEncoder(nn.Module):
    """Weighted sum of word embeddings: ``x [B, V]`` (sparse CSR, tf-idf) times ``weight [V, out_features]``, plus a
    bias.

    The gradient of the table is sparse and holds only the words of the batch, so that a row-sparse optimizer
    (``sparse_xmc.optim.row_sparse.RowSparseAdagrad``) does not touch the rest.

    Args:
        in_features: ``V``, number of terms.
        out_features: size of the embeddings.
        dropout: share of embedding entries dropped after the sum.
        seed: of the initial embeddings, normal with standard deviation 1 (a tf-idf row has length 1).

    Examples:
        >>> import torch
        >>> from sparse_xmc.models import BagOfWordsEncoder
        >>> encoder = BagOfWordsEncoder(1000, 64)
        >>> encoder.initialise_(torch.randn(1000, 64))
        >>> rows = torch.zeros(2, 1000)
        >>> rows[0, 5] = rows[1, 7] = 1.0
        >>> encoder(rows.to_sparse_csr()).shape
        torch.Size([2, 64])
    """

    def __init__(self, in_features: int, out_features: int, *, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        check_positive_int("in_features", in_features)
        check_positive_int("out_features", out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight.normal_(generator=torch.Generator().manual_seed(seed))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def initialise_(self, embeddings: Tensor) -> None:
        """Starts from given embeddings ``[V, out_features]`` (of a truncated SVD, say)."""
        if embeddings.shape != self.weight.shape:
            raise ValueError(f"embeddings must be {list(self.weight.shape)}, got {list(embeddings.shape)}")
        self.weight.copy_(embeddings)

    initialise = renamed("initialise", initialise_)

    def forward(self, x: Tensor) -> Tensor:
        if x.layout != torch.sparse_csr or x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must be sparse CSR [B, {self.in_features}], got {x.layout} {list(x.shape)}")
        return self.dropout(embedding_bag_csr(x, self.weight) + self.bias)


class TransformerEncoder(nn.Module):
    """A Hugging Face transformer with mean or CLS pooling.

    Args:
        name: local folder or hub id.
        pooling: ``"mean"`` over the tokens of a text, or ``"cls"``: its first token.
        dropout: on the pooled vector.
        gradient_checkpointing: recompute activations in the backward pass.
        max_length: tokens kept of a text.
        config_only: build the architecture without loading weights (a checkpoint follows).

    Attributes:
        files: tokeniser and configuration as files, contents by name: a folder of them is a ``name`` for ``config_only``.

    Raises:
        ValueError: there is no such folder or model, it cannot be loaded, or it has no positions for ``max_length``.

    Examples:
        >>> from sparse_xmc import FixedFanInLinear, XMCClassifier
        >>> from sparse_xmc.models import TransformerEncoder
        >>> encoder = TransformerEncoder("bert-base-uncased", max_length=8)
        >>> ids = encoder.tokenize(["a text"])
        >>> model = XMCClassifier(encoder, FixedFanInLinear(encoder.out_features, 21_000, fan_in=16))
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        *,
        pooling: str = "mean",
        dropout: float = 0.1,
        gradient_checkpointing: bool = False,
        max_length: int = 128,
        config_only: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', got {pooling!r}")
        check_positive_int("max_length", max_length)
        transformers = _import_transformers()
        self.name, self.pooling, self.max_length = os.fspath(name), pooling, max_length
        _check_name(self.name)
        _refuse_code(self.name)
        try:
            config = transformers.AutoConfig.from_pretrained(self.name, **_NO_CODE)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, **_NO_CODE)
            if config_only:
                self.model = transformers.AutoModel.from_config(config, **_NO_CODE)
            else:
                weights = {"use_safetensors": True}  # the other format is a pickle
                self.model = transformers.AutoModel.from_pretrained(self.name, config=config, **weights, **_NO_CODE)
        except Exception as error:  # of whatever kind the files or the hub bring about
            kind = "folder" if os.path.isdir(self.name) else "no folder here, and as a hub id it"
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"transformer {self.name!r}: {kind} cannot be loaded: {reason}") from error
        positions = _positions(self.model)
        if positions is not None and max_length > positions:
            raise ValueError(f"max_length={max_length}, but transformer {self.name!r} reads at most {positions} tokens")
        self._check_vocabulary()
        self.files = self._as_files()
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.out_features = int(self.model.config.hidden_size)
        self.dropout = nn.Dropout(dropout)

    def _check_vocabulary(self) -> None:
        """Refuses a tokeniser whose ids go beyond the embedding table."""
        rows = int(self.model.get_input_embeddings().num_embeddings)
        token, largest = max(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        if largest >= rows:
            raise ValueError(
                f"transformer {self.name!r}: its tokeniser gives ids up to {largest} ({token!r}), its embedding has "
                f"{rows} rows: resize_token_embeddings(len(tokenizer)) and save the model"
            )

    def _as_files(self) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            self.model.config.save_pretrained(folder)
            return {entry.name: Path(entry).read_bytes() for entry in os.scandir(folder) if entry.is_file()}

    @property
    def vocabulary_size(self) -> int:
        return len(self.tokenizer)

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def tokenize(self, texts: list[str]) -> Sequence[Sequence[int]]:
        """Token ids of each text, at most ``max_length`` of them."""
        return self.tokenizer(
            texts, truncation=True, max_length=self.max_length, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"]
        states = self.model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        return self.dropout(pooled)


def _refuse_code(name: str) -> None:
    """Refuses a folder whose configurations name code of their own; of the hub's, ``_NO_CODE`` has Transformers do so."""
    for entry in os.scandir(name) if os.path.isdir(name) else []:
        if not entry.name.endswith("config.json") or not entry.is_file():
            continue
        named = _named_code(Path(entry).read_bytes())
        if named is not None:
            raise ValueError(
                f"transformer {name!r}: {entry.name} names code to be fetched ({named}), and code is never taken from a "
                "model: use an architecture that the package transformers has"
            )


def _named_code(content: bytes) -> str | None:
    """The entry of a configuration that has Transformers import code from the model or the hub, None where there is none."""
    try:
        level = [json.loads(content)]
    except (ValueError, RecursionError):
        return None  # Transformers says what is wrong with it
    while level:
        parts = [one for one in level if isinstance(one, dict)]
        for part in parts:
            for key, value in part.items():
                if key == "auto_map" or (key.endswith("_implementation") and isinstance(value, str) and "/" in value):
                    return str(key)
        level = [item for part in parts for item in part.values()]
        level += [item for one in level if isinstance(one, list) for item in one]
    return None


def _check_name(name: str) -> None:
    """Refuses what is neither a folder of a model nor the name of one on the hub."""
    if os.path.isdir(name):
        if not os.path.exists(os.path.join(name, "config.json")):
            raise ValueError(f"transformer {name!r}: the folder holds no config.json")
    elif not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ValueError(f"transformer {name!r}: no such folder")


def _positions(model: Any) -> int | None:
    """The longest input in tokens, None where the architecture sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # RoBERTa counts positions from the one after it
    return limit if limit is None or padding is None else limit - padding - 1


def _import_transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a transformer encoder needs the extra 'train': pip install 'sparse_xmc[train]'", name=error.name
        ) from error
    return transformers


def intermediate_layer(
    in_features: int, out_features: int, *, dropout: float = 0.0, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """The dense layer in front of a sparse head that restores its accuracy: linear, activation, dropout.

    Source: Schultheis and Babbar, ECML-PKDD 2023, section 3 ("intermediate layer").

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.models import intermediate_layer
        >>> features = intermediate_layer(64, 256, dropout=0.1)(torch.randn(2, 64))
        >>> FixedFanInLinear(256, 1000, fan_in=32)(features).shape
        torch.Size([2, 1000])
    """
    linear = nn.Linear(in_features, out_features)
    with torch.no_grad():
        nn.init.uniform_(linear.weight, -math.sqrt(6 / in_features), math.sqrt(6 / in_features))
        linear.bias.zero_()
    return nn.Sequential(linear, activation(), nn.Dropout(dropout))


class SparseTerms(nn.Module):
    """Passes sparse rows ``[B, out_features]`` on to a head that reads them as they are (``SparseInputLinear``)."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        return x
