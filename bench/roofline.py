"""Bytes and FLOPs that a mode cannot do without."""

from __future__ import annotations

from typing import NamedTuple

from bench.point import POSITIVES_PER_ROW, TOP_K, Point
from bench.weights import Weights


class Floor(NamedTuple):
    """Lower bounds of one call: every tensor touched once per product, two FLOPs per connection and batch row."""

    flops: int
    bytes: int


def floor(point: Point, weights: Weights) -> Floor:
    """Counts of a mode for a provider's own storage (a dense matrix has more to read than a sparse one)."""
    item = point.itemsize
    x, y = point.B * point.D * item, point.B * point.L * item
    values = sum(t.numel() * t.element_size() for t in weights.tensors())
    where = sum(t.numel() * t.element_size() for t in weights.index_tensors())
    bias = 0 if weights.bias is None else weights.bias.numel() * weights.bias.element_size()
    product = 2 * point.B * weights.multiplications()
    forward = x + values + where + bias + y
    backward_input = y + values + where + x
    backward_weight = y + x + where + values
    positives = min(POSITIVES_PER_ROW, point.L) * point.B
    counts = {
        "forward": (product, forward),
        "backward_input": (product, backward_input),
        "backward_weight": (product, backward_weight),
        "full": (3 * product, forward + backward_input + backward_weight),
        # one pass that holds logits and gradients in registers: read and write the parameters, read x, write dx
        "step": (3 * product, 2 * (values + bias) + where + 2 * x + 16 * positives),
        # as the step, but dw is written in place of the weights: each read once, though the normaliser needs its own pass
        "softmax": (3 * product, 2 * (x + values) + where + bias + 8 * point.B),
        "topk": (product, x + values + where + bias + point.B * TOP_K * (item + 8)),
        "rewire": (0, 2 * (values + where)),
    }
    return Floor(*counts[point.mode])
