"""Encoder, optional intermediate layer, head, optional auxiliary objective: the whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc import ops
from sparse_xmc.models.auxiliary import AuxiliaryObjective
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.sparse_input import SparseInputLinear
from sparse_xmc.models.sparse_rows import csr_rows
from sparse_xmc.models.topk import head_topk, topk_by_rows
from sparse_xmc.ops._contract import Positives


def probability(scores: Tensor, loss: ops.Loss) -> Tensor:
    """What scores say about P(label | x): the minimiser of BCE is its logit, that of the squared hinge ``2 P - 1``.

    Source: Zhang, "Statistical behavior and consistency of classification methods based on convex risk minimization",
    Annals of Statistics 2004. Hinge scores beyond the margin give values beyond [0, 1], which keep their order.
    """
    return torch.sigmoid(scores) if loss == "bce" else (scores + 1) / 2


class XMCClassifier(nn.Module):
    """A multi-label classifier with a very wide head.

    Args:
        encoder: maps a batch of inputs to features ``[B, D]``.
        head: ``FixedFanInLinear``, ``HeadTailLinear``, ``DenseLinear`` or anything with ``loss(x, targets, ...)`` and
            ``topk(x, k)``.
        penultimate: module between encoder and head (``models.intermediate_layer``).
        auxiliary: objective over label clusters on the encoder's features.
        lexical: second head that reads the sparse input rows themselves, beside an encoder of the same rows. Each head
            has a loss of its own; scores are then the mean of both heads' estimates of a label's probability.
        loss: ``"bce"`` or ``"squared_hinge"``, summed over labels and averaged over rows.
        lexical_loss: the same of the second head.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear, XMCClassifier
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU())
        >>> model = XMCClassifier(encoder, FixedFanInLinear(64, 1000, fan_in=16, seed=0))
        >>> inputs, targets = torch.randn(2, 8), torch.eye(1000)[[3, 17]].to_sparse_csr()
        >>> model.loss(inputs, targets).backward()
        >>> scores, labels = model.topk(inputs, k=5)
        >>> probabilities = model.as_probabilities(scores)
        >>> model.features(inputs).shape, model(inputs).shape
        (torch.Size([2, 64]), torch.Size([2, 1000]))
        >>> model.head_bytes()
        100000
    """

    encoder: Any
    penultimate: Any
    head: Any

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        penultimate: nn.Module | None = None,
        auxiliary: AuxiliaryObjective | None = None,
        lexical: SparseInputLinear | None = None,
        loss: ops.Loss = "bce",
        lexical_loss: ops.Loss = "squared_hinge",
    ) -> None:
        super().__init__()
        for name, value in (("loss", loss), ("lexical_loss", lexical_loss)):
            if value not in ("bce", "squared_hinge"):
                raise ValueError(f"{name} must be 'bce' or 'squared_hinge', got {value!r}")
        self.lexical, self.head_loss, self.lexical_loss = lexical, loss, lexical_loss
        self.encoder, self.penultimate, self.head, self.auxiliary = encoder, penultimate, head, auxiliary

    def features(self, inputs: Any) -> Tensor:
        """What the head reads, ``[B, D]``."""
        x = self.encoder(inputs)
        return x if self.penultimate is None else self.penultimate(x)

    def forward(self, inputs: Any) -> Tensor:
        """Scores ``[B, L]``: logits, with two heads estimates of probabilities. Wide heads have ``loss`` and ``topk``,
        which need no such matrix."""
        return self._scores(self.features(inputs), inputs)

    def _scores(self, x: Tensor, inputs: Any) -> Tensor:
        logits = self.head(x)
        if self.lexical is None:
            return logits
        return (probability(logits, self.head_loss) + probability(self.lexical(inputs), self.lexical_loss)) / 2

    @property
    def takes_sorted_targets(self) -> bool:
        """Whether ``loss`` takes targets that a loader has sorted (``data.sorted_targets``): a fused head alone does."""
        alone = self.auxiliary is None and self.lexical is None
        return alone and type(self.head) is FixedFanInLinear

    def loss(self, inputs: Any, targets: Tensor | Positives, *, progress: float = 1.0) -> Tensor:
        """Training loss: the head's, mixed with the auxiliary objective while that is on.

        Args:
            targets: ``torch.sparse_csr [B, L]``, or sorted ones where ``takes_sorted_targets``.
            progress: share of the training that is over, for the auxiliary weight.
        """
        x = self.encoder(inputs)
        share = 0.0 if self.auxiliary is None else self.auxiliary.weight_at(progress)
        auxiliary = self.auxiliary.loss(x, targets) if self.auxiliary is not None and share else None
        main = self.head.loss(x if self.penultimate is None else self.penultimate(x), targets, loss=self.head_loss)
        if auxiliary is not None:
            main = (1 - share) * main + share * auxiliary
        if self.lexical is None:
            return main
        return main + self.lexical.loss(inputs, targets, loss=self.lexical_loss)

    @torch.no_grad()
    def topk(self, inputs: Any, k: int) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [B, k]``, best first, labels in the model's order."""
        x = self.features(inputs)
        if self.lexical is None:
            return head_topk(self.head, x, k)
        return topk_by_rows(
            lambda start, stop: self._scores(x[start:stop], csr_rows(inputs, start, stop)), x.shape[:-1], k
        )

    def as_probabilities(self, scores: Tensor) -> Tensor:
        """Scores of ``forward`` or ``topk`` as estimates of probabilities."""
        return scores if self.lexical is not None else probability(scores, self.head_loss)

    def head_bytes(self) -> int:
        """Bytes of everything that grows with the number of labels."""
        return self.head.num_bytes() + (0 if self.lexical is None else self.lexical.num_bytes())
