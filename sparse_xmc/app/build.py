"""A model and its optimizers from a configuration and the training data."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_xmc import ops
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.prepare import batches
from sparse_xmc.app.trainer import ScheduledOptimizer, to_device
from sparse_xmc.data import DenseInputs, Inputs, SparseInputs, to_torch_csr
from sparse_xmc.distributed.model import own_part, shard_model_
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.models.auxiliary import AuxiliaryObjective
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.encoders import (
    BagOfWordsEncoder,
    PrecomputedEncoder,
    SparseTerms,
    TransformerEncoder,
    intermediate_layer,
)
from sparse_xmc.models.grouping import group_order
from sparse_xmc.models.head_tail import DenseLinear, HeadTailLinear
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.sparse_input import SparseInputLinear, informed_terms
from sparse_xmc.optim.fused import FusedAdagrad
from sparse_xmc.optim.row_sparse import RowSparseAdagrad
from sparse_xmc.topology.schedule import RewireSchedule

TERM_VALUE = 0.1  # size of a tf-idf entry: gradients below it (times the error of a row) count as small for Adagrad
TERM_BIAS_DIVISOR = 30  # of the learning rate of a head on terms, for its bias
_CONNECTIONS = 64  # up to which head_lr is taken as it is
CENTROID_ROWS = 100_000  # training rows that centroids of dense features are computed from


def num_head_labels(config: TrainingConfig, num_labels: int) -> int:
    """Labels with a dense row: ``head_share`` of them in whole groups, at least one, but never all labels.

    Raises:
        ValueError: there is only one label.
    """
    if num_labels < 2:
        raise ValueError(f"head='head_tail' needs at least 2 labels, got {num_labels}: use head='fixed_fan_in'")
    wanted = max(1, round(config.head_share * num_labels / config.group_size)) * config.group_size
    return min(wanted, num_labels - 1)


def label_order(config: TrainingConfig, inputs: Inputs, targets: sp.csr_matrix) -> np.ndarray:
    """The order in which the model holds the labels, from the training split only."""
    num_head = num_head_labels(config, targets.shape[1]) if config.head == "head_tail" else 0
    features = inputs.matrix if isinstance(inputs, SparseInputs) else getattr(inputs, "array", None)
    if config.grouping == "clustered" and features is None:
        features = targets  # tokens: labels that occur together are close
    return group_order(
        config.grouping, targets, config.group_size, features=features, num_head=num_head, seed=config.seed
    )


def build_encoder(config: TrainingConfig, num_features: int, *, load_weights: bool = True) -> nn.Module:
    """The encoder of a configuration for inputs with ``num_features`` features (unused by transformers)."""
    if config.encoder == "transformer":
        return TransformerEncoder(
            config.transformer,
            pooling=config.pooling,
            dropout=config.dropout,
            gradient_checkpointing=config.gradient_checkpointing,
            max_length=config.max_length,
            config_only=not load_weights,
        )
    if config.encoder == "features":
        return PrecomputedEncoder(num_features, dropout=config.dropout)
    if config.reads_terms or config.solver == "direct":
        return SparseTerms(num_features)
    return BagOfWordsEncoder(num_features, config.embedding_dim, dropout=config.dropout, seed=config.seed)


def build_model(
    config: TrainingConfig,
    encoder: Any,
    num_labels: int,
    clusters: Tensor | None,
    *,
    num_head: int | None = None,
    spread: bool = False,
) -> XMCClassifier:
    """Encoder, intermediate layer, head and auxiliary objective, with random connections.

    ``num_head``: labels with a dense row of a head in two parts; None: as ``num_head_labels`` says.
    With ``spread`` the fixed fan-in layers are on the meta device, for ``shard_model_`` to make.
    """
    width = encoder.out_features
    penultimate = None
    if config.intermediate and not config.reads_terms:
        penultimate = intermediate_layer(width, config.intermediate, dropout=config.dropout)
    D = width if config.reads_terms else config.intermediate or width
    fan_in = config.connections(D)
    shape: dict[str, Any] = {"group_size": config.group_size, "seed": config.seed}
    place = torch.device("meta") if spread else nullcontext()
    head: nn.Module
    if config.head == "dense":
        head = DenseLinear(D, num_labels, seed=config.seed)
    elif config.head == "head_tail":
        num_head = num_head_labels(config, num_labels) if num_head is None else num_head
        tail_device = "meta" if spread else None
        head = HeadTailLinear(D, num_labels, fan_in, num_head=num_head, tail_device=tail_device, **shape)
    elif config.reads_terms:
        with place:
            head = SparseInputLinear(D, num_labels, fan_in, dropout=config.input_dropout, **shape)
    else:
        with place:
            head = FixedFanInLinear(D, num_labels, fan_in, **shape)
    lexical = None
    if config.lexical_fan_in and isinstance(encoder, BagOfWordsEncoder):
        V, terms = encoder.in_features, config.lexical_fan_in
        with place:
            lexical = SparseInputLinear(V, num_labels, terms, dropout=config.input_dropout, **shape)
    auxiliary = None
    if clusters is not None:
        auxiliary = AuxiliaryObjective(width, clusters, weight=config.auxiliary_weight, cutoff=config.auxiliary_cutoff)
    return XMCClassifier(
        encoder,
        head,
        penultimate=penultimate,
        auxiliary=auxiliary,
        lexical=lexical,
        loss=config.loss,  # type: ignore[arg-type]
        lexical_loss=config.lexical_loss,  # type: ignore[arg-type]
    )


@torch.no_grad()
def head_features(model: XMCClassifier, inputs: Inputs, rows: np.ndarray) -> Tensor:
    """What the head reads for these rows, ``[N, D]`` on the CPU, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    parts = [
        model.features(to_device(inputs.batch(rows[chunk]), device)).float().cpu() for chunk in batches(len(rows), 1024)
    ]
    return torch.cat(parts)


def prior_bias(loss: str, counts: Tensor, num_rows: int) -> Tensor:
    """Bias of labels with so many of the rows, before anything is learnt."""
    return torch.log((counts + 1) / (num_rows - counts + 1)) if loss == "bce" else torch.full_like(counts, -1)


@torch.no_grad()
def initialise_head_(config: TrainingConfig, model: XMCClassifier, inputs: Inputs, targets: sp.csr_matrix) -> None:
    """Biases at the log prior (or the hinge's margin), weights at zero where informed, informed connections."""
    counts = torch.from_numpy(np.asarray(targets.sum(axis=0)).ravel())
    head = model.head
    parts = [(head, 0)]
    if isinstance(head, HeadTailLinear):
        parts = [(head.head, 0), (head.tail, head.num_head)]
    if model.lexical is not None:
        parts.append((model.lexical, 0))
    for layer, start in parts:
        part, own = own_part(layer)
        assert isinstance(part, (FixedFanInLinear, DenseLinear)) and part.bias is not None
        first = start + own
        loss = config.lexical_loss if layer is model.lexical else config.loss
        part.bias.copy_(prior_bias(loss, counts, targets.shape[0])[first : first + part.out_features])
        if not isinstance(part, FixedFanInLinear):
            part.weight.mul_(0.1)
            continue
        part.weight.zero_()
        if config.topology == "random":
            continue
        part_targets = targets[:, first : first + part.out_features].tocsr()
        if isinstance(part, SparseInputLinear):
            assert isinstance(inputs, SparseInputs)
            indices = informed_terms(inputs.matrix, part_targets, part.fan_in, group_size=part.group_size)
        else:
            indices = _informed(model, part, inputs, part_targets, config, own // part.group_size)
        part.indices.copy_(indices)


def _informed(
    model: XMCClassifier,
    part: FixedFanInLinear,
    inputs: Inputs,
    targets: sp.csr_matrix,
    config: TrainingConfig,
    first_row: int,
) -> Tensor:
    rows = np.arange(len(inputs))
    if len(rows) > CENTROID_ROWS:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, CENTROID_ROWS, replace=False))
    x = head_features(model, inputs, rows)[:, -part.in_features :].contiguous()
    return ops.informed_indices(
        x,
        to_torch_csr(targets[rows]),
        part.fan_in,
        group_size=part.group_size,
        seed=config.seed,
        first_row=first_row,
    )


def initialise_embeddings_(config: TrainingConfig, encoder: BagOfWordsEncoder, inputs: SparseInputs) -> None:
    """Embeddings from a truncated SVD of the training rows, scaled so that entries of the sum are of order 1.

    One row or one term has no such SVD: its embeddings stay random.
    """
    from sklearn.decomposition import TruncatedSVD

    rank = min(encoder.out_features, min(inputs.matrix.shape) - 1)
    if rank < 1:
        return
    with np.errstate(invalid="ignore"):  # shares of a variance of zero, which nobody reads
        svd = TruncatedSVD(rank, random_state=config.seed, n_iter=2).fit(inputs.matrix)
    vectors = svd.components_.T.astype(np.float32)
    projected = inputs.matrix[:4096] @ vectors
    scale = np.sqrt(rank) / max(float(np.linalg.norm(projected, axis=1).mean()), 1e-6)
    table = np.zeros((encoder.in_features, encoder.out_features), dtype=np.float32)
    table[:, :rank] = vectors * scale
    encoder.initialise_(torch.from_numpy(table))


def label_clusters(config: TrainingConfig, inputs: Inputs, targets: sp.csr_matrix) -> Tensor | None:
    """Cluster of each label for the auxiliary objective, None where that is off."""
    if not config.auxiliary_weight:
        return None
    size = max(1, -(-targets.shape[1] // config.auxiliary_clusters))
    features = inputs.matrix if isinstance(inputs, SparseInputs) else getattr(inputs, "array", targets)
    order = group_order("clustered", targets, size, features=features, seed=config.seed)
    clusters = torch.empty(len(order), dtype=torch.int64)
    clusters[torch.from_numpy(order)] = torch.arange(len(order)) // size
    return clusters


def _adagrad(config: TrainingConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """Adagrad whose first steps are those of a gradient of a typical term: smaller gradients count as small."""
    initial = (TERM_VALUE / config.batch_size) ** 2
    return torch.optim.Adagrad(groups, initial_accumulator_value=initial, fused=True)


def _head_groups(config: TrainingConfig, head: nn.Module) -> list[dict[str, Any]]:
    """Parameters by learning rate: a step of all connections of a label moves its logit by about the same amount."""
    groups = []
    for layer in (head.head, head.tail) if isinstance(head, HeadTailLinear) else (head,):
        part, _ = own_part(layer)
        assert isinstance(part, (FixedFanInLinear, DenseLinear)) and part.bias is not None
        connections = part.weight.shape[1]
        groups.append({"params": [part.weight], "lr": config.head_lr * min(1, _CONNECTIONS / connections)})
        groups.append({"params": [part.bias], "lr": config.head_lr})
    return groups


def build_optimizers(config: TrainingConfig, model: XMCClassifier) -> list[ScheduledOptimizer]:
    """Separate optimizers for embedding table, encoder with intermediate layer, and head."""
    result = []
    table = model.encoder.weight if isinstance(model.encoder, BagOfWordsEncoder) else None
    if table is not None:
        result.append(
            ScheduledOptimizer(RowSparseAdagrad([table], config.embedding_lr), config.encoder_schedule, config.warmup)
        )
    modules = [model.encoder, model.penultimate, model.auxiliary]
    dense = [p for m in modules if m is not None for p in m.parameters() if p is not table and p.requires_grad]
    if dense:
        transformer = config.encoder == "transformer"
        rate = config.encoder_lr if config.encoder_lr is not None else (5e-5 if transformer else 1e-3)
        decay = config.encoder_weight_decay if transformer else 0.0
        optimizer = torch.optim.AdamW(dense, lr=rate, weight_decay=decay, fused=True)
        result.append(ScheduledOptimizer(optimizer, config.encoder_schedule, config.warmup))
    heads: list[Optimizer] = []
    head = own_part(model.head)[0]
    sparse = head if isinstance(head, SparseInputLinear) else model.lexical and own_part(model.lexical)[0]
    if sparse is not None:
        rate = config.lexical_lr
        heads.append(
            _adagrad(
                config,
                [{"params": [sparse.weight], "lr": rate}, {"params": [sparse.bias], "lr": rate / TERM_BIAS_DIVISOR}],
            )
        )
    if sparse is not head and config.fused:
        assert isinstance(head, FixedFanInLinear)
        fused = FusedAdagrad(config.head_lr, eps=TERM_VALUE / config.batch_size)
        head.fuse_optimizer(fused)
        heads.append(fused)
    elif sparse is not head:
        heads.append(_adagrad(config, _head_groups(config, model.head)))
    result += [ScheduledOptimizer(optimizer, config.head_schedule, config.warmup) for optimizer in heads]
    return result


def build_rewiring(
    config: TrainingConfig, model: XMCClassifier, optimizers: list[ScheduledOptimizer], total_steps: int
) -> RewireSchedule | None:
    """The schedule that rewires the fixed fan-in part of the head, None where nothing is rewired."""
    layer = model.head.tail if isinstance(model.head, HeadTailLinear) else model.head
    own, _ = own_part(layer)
    if not config.rewire_fraction or not isinstance(own, FixedFanInLinear):
        return None
    last = int(config.rewire_until * total_steps)
    if last < config.rewire_interval:
        raise ValueError(
            f"rewire_fraction={config.rewire_fraction} has no effect: rewiring ends with step {last} of {total_steps}, "
            f"before the first of every rewire_interval={config.rewire_interval}"
        )
    holders = [
        scheduled.optimizer
        for scheduled in optimizers
        if any(p is own.weight for group in scheduled.optimizer.param_groups for p in group["params"])
    ]
    return RewireSchedule(
        layer,
        total_steps,
        fraction=config.rewire_fraction,
        interval=config.rewire_interval,
        end=config.rewire_until,
        optimizer=holders,
        seed=config.seed,
    )


def build(
    config: TrainingConfig,
    encoder: Any,
    inputs: Inputs,
    targets: sp.csr_matrix,
    device: torch.device,
    *,
    initialise: bool = True,
    embed: bool = True,
    ranks: Ranks | None = None,
) -> XMCClassifier:
    """The model for training, its labels in the order of the columns of ``targets``.

    ``initialise=False`` leaves out what a checkpoint overwrites: embeddings from the SVD and informed connections;
    ``embed=False`` the embeddings only, which have been set then.
    Each of several ``ranks`` makes its own labels of the fixed fan-in layers only.
    """
    torch.manual_seed(config.seed)
    spread = ranks is not None and ranks.size > 1
    first = ranks is None or ranks.rank == 0
    if initialise and embed and first and isinstance(encoder, BagOfWordsEncoder) and config.svd_init:
        assert isinstance(inputs, SparseInputs)
        initialise_embeddings_(config, encoder, inputs)
    clusters = label_clusters(config, inputs, targets)
    model = build_model(config, encoder, targets.shape[1], clusters, spread=spread)
    if ranks is not None and spread:
        shard_model_(model, ranks, config.seed)
    else:
        model.to(device)
    if initialise:
        initialise_head_(config, model, inputs, targets)
    return model


def input_width(inputs: Inputs) -> int:
    """Number of input features, 0 for tokens."""
    if isinstance(inputs, SparseInputs):
        return int(inputs.matrix.shape[1])
    return int(inputs.array.shape[1]) if isinstance(inputs, DenseInputs) else 0
