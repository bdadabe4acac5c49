"""A fixed fan-in head straight on sparse features: every label reads the ``fan_in`` terms that tell most about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_xmc import ops
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.sparse_rows import check_rows, csr_rows
from sparse_xmc.models.topk import exclusions, topk_by_rows
from sparse_xmc.ops._arguments import check_input, index_dtype
from sparse_xmc.ops._csr import csr_matrix
from sparse_xmc.ops.sparse_input import fixed_fan_in_sparse_linear, fixed_fan_in_sparse_loss

if TYPE_CHECKING:
    import scipy.sparse as sp


class SparseInputLinear(FixedFanInLinear):
    """``FixedFanInLinear`` on ``torch.sparse_csr`` rows ``[B, D]``, with ``loss`` and ``topk``.

    On a CPU a connection costs work only for the rows of the batch that hold its feature; on other devices the rows
    are made dense, ``[B, D]``.

    Args:
        dropout: share of the nonzeros of each row dropped in training (the others are scaled up).
        in_features, out_features, fan_in, bias, group_size, device, dtype, seed, prior: as in ``FixedFanInLinear``.

    Examples:
        >>> import torch
        >>> from sparse_xmc import SparseInputLinear
        >>> head = SparseInputLinear(1000, 100, fan_in=32, seed=0)
        >>> rows = torch.zeros(2, 1000)
        >>> rows[0, 5] = rows[1, 7] = 1.0
        >>> x = rows.to_sparse_csr()
        >>> head(x).shape
        torch.Size([2, 100])
        >>> head.loss(x, [[4, 7], [99]]).backward()
        >>> head.topk(x, k=5)[1].shape
        torch.Size([2, 5])
        >>> head.fuse_optimizer(None)  # anything else is refused
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int,
        bias: bool = True,
        *,
        group_size: int = 1,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        prior: Any = None,
    ) -> None:
        # device by name, which torch.nn.utils.skip_init looks for
        own = {"group_size": group_size, "device": device, "dtype": dtype, "seed": seed, "prior": prior}
        super().__init__(in_features, out_features, fan_in, bias, **own)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.dropout = dropout

    def _on_cpu(self) -> bool:
        return self.weight.device.type == "cpu"

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, L]``."""
        check_input(x, self.in_features)
        if not self._on_cpu() or torch.is_grad_enabled():
            check_rows(x)
            return super().forward(x.to_dense())
        return fixed_fan_in_sparse_linear(x, self.weight, self.checked_indices(), self.bias, group_size=self.group_size)

    def loss(
        self,
        x: Tensor,
        targets: ops.Targets,
        *,
        loss: ops.Loss = "bce",
        reduction: ops.Reduction = "mean",
        **options: Any,
    ) -> Tensor:
        """Loss of a batch, with the options of ``ops.fixed_fan_in_loss``; on a CPU there are no softmaxes."""
        check_input(x, self.in_features)
        if self.training and self.dropout:
            values = F.dropout(x.values(), self.dropout)
            x = csr_matrix(x.crow_indices(), x.col_indices(), values, x.shape)
        if not self._on_cpu():
            return super().loss(x.to_dense(), targets, loss=loss, reduction=reduction, **options)
        return fixed_fan_in_sparse_loss(
            x,
            self.weight,
            self.checked_indices(),
            self.bias,
            targets,
            loss=loss,
            reduction=reduction,
            group_size=self.group_size,
            **options,
        )

    def _informed(self, x: Tensor, targets: Tensor) -> Tensor:
        x = x if x.layout == torch.sparse_csr else x.to_sparse_csr()
        check_rows(x)
        return informed_terms(_scipy(x), _scipy(targets), self.fan_in, group_size=self.group_size)

    def fuse_optimizer(self, optimizer: ops.UpdateRule | None) -> None:
        """Refuses: gradients of sparse rows go through memory.

        Raises:
            RuntimeError: always, but for None.
        """
        if optimizer is not None:
            raise RuntimeError("no fused optimizer updates a layer on sparse input: use one of torch.optim")

    @torch.no_grad()
    def topk(self, x: Tensor, k: int, *, exclude: ops.Targets | None = None) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [B, k]``, best first; ``exclude`` as in ``FixedFanInLinear.topk``."""
        check_input(x, self.in_features)
        if not self._on_cpu():
            return super().topk(x.to_dense(), k, exclude=exclude)
        check_rows(x)
        left_out = exclusions(exclude, x, self.out_features)
        return topk_by_rows(lambda start, stop: self(csr_rows(x, start, stop)), x.shape[:-1], k, left_out)


def _scipy(matrix: Tensor) -> sp.csr_matrix:
    import scipy.sparse as sp

    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    return sp.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=tuple(matrix.shape))


def informed_terms(features: sp.csr_matrix, targets: sp.csr_matrix, fan_in: int, *, group_size: int = 1) -> Tensor:
    """For each row of indices the ``fan_in`` features with the largest |mean over its positives - mean over all|.

    ``ops.informed_indices`` for sparse features, where a label's candidates are the features of its own rows: time and
    memory ``O(sum of nnz of the positives)``, a block of labels at a time. Rows with fewer candidates are filled up
    with the features that are most frequent over all rows.

    Args:
        features: ``[N, D]``, training rows.
        targets: ``[N, L]``, binary.

    Returns:
        ``[ceil(L / group_size), fan_in]``, distinct within a row.
    """
    import scipy.sparse as sp

    num_features, num_labels = features.shape[1], targets.shape[1]
    if fan_in > num_features:
        raise ValueError(f"fan_in must not exceed the {num_features} features, got {fan_in}")
    overall = np.asarray(features.mean(axis=0)).ravel()
    filler = np.argsort(-overall, kind="stable")[: 2 * fan_in]
    columns = np.arange(num_labels)
    groups = sp.csr_matrix((np.ones(num_labels, np.float32), (columns, columns // group_size)))
    grouped = (targets @ groups).T.tocsr()
    out = np.empty((grouped.shape[0], fan_in), dtype=np.int64)
    block = 4096
    for start in range(0, grouped.shape[0], block):
        rows = grouped[start : start + block]
        counts = np.maximum(np.asarray(rows.sum(axis=1)).ravel(), 1)
        means = (rows @ features).tocsr()
        for i in range(means.shape[0]):
            low, high = means.indptr[i], means.indptr[i + 1]
            terms = means.indices[low:high]
            score = np.abs(means.data[low:high] / counts[i] - overall[terms])
            if len(terms) > fan_in:
                terms = terms[np.argpartition(-score, fan_in)[:fan_in]]
            elif len(terms) < fan_in:
                spare = filler[~np.isin(filler, terms)]
                terms = np.concatenate([terms, spare[: fan_in - len(terms)]])
            out[start + i] = np.sort(terms)
    return torch.from_numpy(out).to(index_dtype(num_features))
