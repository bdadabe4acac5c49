"""Auxiliary objective over label clusters that carries gradient into the encoder while the sparse head is young."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_xmc.models.losses import logits_loss
from sparse_xmc.ops._arguments import Targets
from sparse_xmc.ops._csr import csr_matrix
from sparse_xmc.ops._targets import entry_keys, positives_of, sorted_positives


class AuxiliaryObjective(nn.Module):
    """A dense classifier of label clusters on the encoder's features, with a weight that falls to zero.

    The total loss is ``(1 - a) * main + a * auxiliary`` with ``a = weight * (1 + cos(pi * t)) / 2``, where ``t`` runs
    from 0 to 1 at ``cutoff``; from there on the objective is off and costs nothing.

    Args:
        in_features: size of the encoder's features.
        clusters: cluster of each label ``[L]``, integers from 0.
        weight: initial weight ``a`` in ``[0, 1)``.
        cutoff: share of the training after which it is off, in ``(0, 1]``.

    Source: Navigating Extremes, NeurIPS 2024, section 4 (auxiliary objective with decaying weight).

    Examples:
        >>> import torch
        >>> from sparse_xmc.models import AuxiliaryObjective
        >>> objective = AuxiliaryObjective(16, torch.arange(100) // 10, weight=0.4, cutoff=0.5)  # ten clusters
        >>> objective.weight_at(0.0), objective.weight_at(0.5)
        (0.4, 0.0)
        >>> targets = torch.eye(100)[[3, 17]].to_sparse_csr()
        >>> objective.cluster_targets(targets).shape
        torch.Size([2, 10])
        >>> objective.loss(torch.randn(2, 16), targets).backward()
    """

    clusters: Tensor

    def __init__(self, in_features: int, clusters: Tensor, *, weight: float = 0.4, cutoff: float = 0.3) -> None:
        super().__init__()
        if clusters.ndim != 1 or clusters.is_floating_point() or not len(clusters) or int(clusters.min()) < 0:
            raise ValueError(f"clusters must be [L] integers from 0, got {clusters.dtype} {list(clusters.shape)}")
        if not 0 <= weight < 1:
            raise ValueError(f"weight must lie in [0, 1), got {weight}")
        if not 0 < cutoff <= 1:
            raise ValueError(f"cutoff must lie in (0, 1], got {cutoff}")
        self.weight, self.cutoff = weight, cutoff
        self.register_buffer("clusters", clusters.long())
        self.linear = nn.Linear(in_features, int(clusters.max()) + 1)

    def weight_at(self, progress: float) -> float:
        """Weight ``a`` after a share ``progress`` of the training."""
        if progress >= self.cutoff:
            return 0.0
        return self.weight * 0.5 * (1 + math.cos(math.pi * progress / self.cutoff))

    def cluster_targets(self, targets: Tensor) -> Tensor:
        """Targets ``[B, L]`` (``torch.sparse_csr``) as targets over clusters ``[B, C]``, each cluster once."""
        crow = targets.crow_indices()
        rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
        num_clusters = self.linear.out_features
        keys = torch.unique(rows * num_clusters + self.clusters[targets.col_indices().long()])
        counts = torch.bincount(keys // num_clusters, minlength=len(crow) - 1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        values = torch.ones(len(keys), device=keys.device)
        return csr_matrix(offsets, keys % num_clusters, values, (len(crow) - 1, num_clusters))

    def loss(self, features: Tensor, targets: Targets) -> Tensor:
        """Binary cross-entropy of the clusters, summed over clusters, averaged over rows."""
        rows = features.numel() // features.shape[-1]
        positives = sorted_positives(targets, rows, len(self.clusters), features.device)
        keys = entry_keys(self.clusters[positives.labels], positives.rows)
        return logits_loss(self.linear(features), positives_of(keys, rows, self.linear.out_features))
