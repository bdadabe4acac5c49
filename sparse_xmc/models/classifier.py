"""Encoder, optional intermediate layer, head, optional auxiliary objective: the whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc import ops
from sparse_xmc.models.auxiliary import AuxiliaryObjective
from sparse_xmc.models.head_tail import head_topk, topk_of_logits
from sparse_xmc.models.sparse_input import SparseInputLinear
from sparse_xmc.models.sparse_rows import csr_rows

_TOPK_ROWS = 64  # rows whose logits exist at a time where two heads are added


class XMCClassifier(nn.Module):
    """A multi-label classifier with a very wide head.

    Args:
        encoder: maps a batch of inputs to features ``[B, D]``.
        head: ``FixedFanInLinear``, ``HeadTailLinear``, ``DenseLinear`` or anything with ``loss(x, targets, ...)`` and
            ``topk(x, k)``.
        penultimate: module between encoder and head (``models.intermediate_layer``).
        auxiliary: objective over label clusters on the encoder's features.
        lexical: second head that reads the sparse input rows themselves, beside an encoder of the same rows. Each head
            has a loss of its own; scores are the mean of both heads', ``lexical_share`` of it the second head's.
        lexical_loss: loss of the second head; None: that of the first.
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
        lexical_share: float = 0.5,
        lexical_loss: ops.Loss | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= lexical_share <= 1:
            raise ValueError(f"lexical_share must lie in [0, 1], got {lexical_share}")
        self.lexical, self.lexical_share, self.lexical_loss = lexical, lexical_share, lexical_loss
        self.encoder, self.penultimate, self.head, self.auxiliary = encoder, penultimate, head, auxiliary

    def features(self, inputs: Any) -> Tensor:
        """What the head reads, ``[B, D]``."""
        x = self.encoder(inputs)
        return x if self.penultimate is None else self.penultimate(x)

    def forward(self, inputs: Any) -> Tensor:
        """Logits ``[B, L]``; for wide heads prefer ``loss`` and ``topk``, which need no such matrix."""
        return self._mixed(self.features(inputs), inputs)

    def _mixed(self, x: Tensor, inputs: Any) -> Tensor:
        logits = self.head(x)
        if self.lexical is None:
            return logits
        return torch.lerp(logits, self.lexical(inputs), self.lexical_share)

    def loss(self, inputs: Any, targets: Tensor, *, loss: ops.Loss = "bce", progress: float = 1.0) -> Tensor:
        """Training loss: the head's, mixed with the auxiliary objective while that is on.

        Args:
            targets: ``torch.sparse_csr [B, L]``.
            loss: ``"bce"`` or ``"squared_hinge"``, summed over labels and averaged over rows.
            progress: share of the training that is over, for the auxiliary weight.
        """
        x = self.encoder(inputs)
        share = 0.0 if self.auxiliary is None else self.auxiliary.weight_at(progress)
        auxiliary = self.auxiliary.loss(x, targets) if self.auxiliary is not None and share else None
        main = self.head.loss(x if self.penultimate is None else self.penultimate(x), targets, loss=loss)
        if auxiliary is not None:
            main = (1 - share) * main + share * auxiliary
        if self.lexical is None:
            return main
        return main + self.lexical.loss(inputs, targets, loss=self.lexical_loss or loss)

    @torch.no_grad()
    def topk(self, inputs: Any, k: int) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [B, k]``, best first, labels in the model's order."""
        x = self.features(inputs)
        if self.lexical is None:
            return head_topk(self.head, x, k)
        parts = [
            topk_of_logits(self._mixed(x[i : i + _TOPK_ROWS], csr_rows(inputs, i, i + _TOPK_ROWS)), k)
            for i in range(0, len(x), _TOPK_ROWS)
        ]
        return torch.cat([scores for scores, _ in parts]), torch.cat([labels for _, labels in parts])

    def head_bytes(self) -> int:
        """Bytes of everything that grows with the number of labels."""
        return self.head.num_bytes() + (0 if self.lexical is None else self.lexical.num_bytes())
