"""The model of a direct run: sparse terms straight into blocks of fixed fan-in."""

from __future__ import annotations

from torch import Tensor

from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.encoders import SparseTerms
from sparse_xmc.models.term_blocks import TermBlocks
from sparse_xmc.solver.head import TermHead


def solved_model(head: TermHead, num_features: int) -> XMCClassifier:
    """Of a solved head; its scores are log-odds."""
    return XMCClassifier(SparseTerms(num_features), TermBlocks.from_solution(head, num_features), loss="bce")


def restored_model(num_features: int, num_labels: int, weights: dict[str, Tensor]) -> XMCClassifier:
    """The same with the sizes of stored tensors, its weights still to be loaded.

    Raises:
        ValueError: they are of no such model.
    """
    sizes: list[tuple[int, int]] = []
    while f"head.indices_{len(sizes)}" in weights:
        shape = weights[f"head.indices_{len(sizes)}"].shape
        if len(shape) != 2:
            raise ValueError(f"head.indices_{len(sizes)} must be [labels, connections], is {list(shape)}")
        sizes.append((shape[0], shape[1]))
    if sum(labels for labels, _ in sizes) != num_labels:
        raise ValueError(f"the blocks of the head hold {sizes} labels and connections, of {num_labels} labels")
    return XMCClassifier(SparseTerms(num_features), TermBlocks(num_features, sizes), loss="bce")
