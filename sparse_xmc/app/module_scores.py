"""A torch model as what a bundle predicts with."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from sparse_xmc.app.trainer import to_device
from sparse_xmc.data import Inputs
from sparse_xmc.models.classifier import XMCClassifier


def device_of(model: XMCClassifier) -> torch.device:
    return next(itertools.chain(model.parameters(), model.buffers())).device


class ModuleScores:
    """Scores of a model in torch, as NumPy has them."""

    def __init__(self, model: XMCClassifier) -> None:
        self.model, self.device = model, device_of(model)
        model.eval()

    @torch.inference_mode()
    def topk(self, inputs: Inputs, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """``(scores, labels) [b, k]`` of these rows, best first."""
        scores, labels = self.model.topk(to_device(inputs.batch(rows), self.device), k)
        return scores.float().cpu().numpy(), labels.cpu().numpy()

    @torch.inference_mode()
    def scores(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        """Scores of all labels ``[b, L]``."""
        return self.model(to_device(inputs.batch(rows), self.device)).float().cpu().numpy()

    @torch.inference_mode()
    def estimates(self, scores: np.ndarray) -> np.ndarray:
        """The model's own estimates of probabilities, within ``[0, 1]``."""
        return self.model.as_probabilities(torch.from_numpy(scores)).clamp(0, 1).numpy()
