"""Encoder, optional intermediate layer, head, optional auxiliary objective: the whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc.models.auxiliary import AuxiliaryObjective


class XMCClassifier(nn.Module):
    """A multi-label classifier with a very wide head.

    Args:
        encoder: maps a batch of inputs to features ``[B, D]``.
        head: ``FixedFanInLinear``, ``HeadTailLinear``, ``DenseLinear`` or anything with ``loss(x, targets, ...)`` and
            ``topk(x, k)``.
        penultimate: module between encoder and head (``models.intermediate_layer``).
        auxiliary: objective over label clusters on the encoder's features.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        penultimate: nn.Module | None = None,
        auxiliary: AuxiliaryObjective | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.penultimate, self.head, self.auxiliary = encoder, penultimate, head, auxiliary

    def features(self, inputs: Any) -> Tensor:
        """What the head reads, ``[B, D]``."""
        x = self.encoder(inputs)
        return x if self.penultimate is None else self.penultimate(x)

    def forward(self, inputs: Any) -> Tensor:
        """Logits ``[B, L]``; for wide heads prefer ``loss`` and ``topk``, which need no such matrix."""
        return self.head(self.features(inputs))

    def loss(self, inputs: Any, targets: Tensor, *, loss: str = "bce", progress: float = 1.0) -> Tensor:
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
        return main if auxiliary is None else (1 - share) * main + share * auxiliary

    @torch.no_grad()
    def topk(self, inputs: Any, k: int) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [B, k]``, best first, labels in the model's order."""
        return self.head.topk(self.features(inputs), k=k)
