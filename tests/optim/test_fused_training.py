"""Three epochs with the fused head and without it end at the same weights and the same accuracy."""

import pytest
import torch

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim.fused import FusedSGD
from tests import oracle

N, B, L, D, K, G = 640, 32, 61, 24, 12, 4


def data():
    """A row is near the centres of its two labels."""
    g = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randperm(L, generator=g)[:2] for _ in range(N)])
    x = torch.randn(L, D, generator=g)[labels].sum(1) + 0.5 * torch.randn(N, D, generator=g)
    return x, torch.zeros(N, L).scatter_(1, labels, 1.0)


def train(fused: bool, dtype: torch.dtype = torch.float32) -> tuple[FixedFanInLinear, list[float], float]:
    """(head, loss of each step, precision at 2 on the training rows)."""
    x, y = data()
    head = FixedFanInLinear(D, L, K, group_size=G, seed=0).to(dtype)
    options = dict(lr=2.0, momentum=0.5, weight_decay=1e-3)
    groups = [{"params": [head.weight]}, {"params": [head.bias], "weight_decay": 0.0}]
    optimizer = FusedSGD(**options) if fused else torch.optim.SGD(groups, **options)
    if fused:
        head.fuse_optimizer(optimizer)
    order, losses = torch.Generator().manual_seed(1), []
    for _ in range(3):
        for rows in torch.randperm(N, generator=order).split(B):
            optimizer.zero_grad()
            loss = head.loss(x[rows], oracle.make_targets(y[rows]))
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
    return head, losses, float(y.gather(1, head.topk(x, 2)[1]).mean())


def test_training_fused_equals_training_unfused():
    fused, losses, precision = train(True)
    unfused, expected, expected_precision = train(False)
    assert losses[-1] < 0.2 * losses[0] and precision > 0.5  # it learns; chance is 0.03
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(fused.weight, unfused.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fused.bias, unfused.bias, rtol=1e-3, atol=1e-4)
    assert abs(precision - expected_precision) <= 0.002


def test_bfloat16_weights_reach_the_accuracy_of_float32():
    """With stochastic rounding; momenta are bfloat16 too."""
    _, losses, precision = train(True, torch.bfloat16)
    _, expected, expected_precision = train(False)
    assert losses[-1] == pytest.approx(expected[-1], rel=0.05)
    assert abs(precision - expected_precision) <= 0.02
