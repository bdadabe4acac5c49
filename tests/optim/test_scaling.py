"""Learning rates by fan-in: which parameter gets which, and that a rate of the dense model serves the sparse one."""

import math

import pytest
import torch
from torch import nn

from bench.studies import drop_in
from sparse_xmc.models import FixedFanInLinear, HeadTailLinear, SparseInputLinear
from sparse_xmc.optim import FusedSGD, parameter_groups, rate_multiplier
from tests.conftest import INTERPRETING


def test_weights_of_sparse_layers_get_rates_by_fan_in():
    model = nn.ModuleDict(
        {
            "encoder": nn.Linear(8, 64),
            "head": FixedFanInLinear(64, 20, 8),
            "both": HeadTailLinear(64, 20, 16, num_head=5),
            "terms": SparseInputLinear(100, 20, 5),
        }
    )
    model["encoder"].bias.requires_grad_(False)
    groups = parameter_groups(model, 0.1, weight_decay=0.4)
    assert [(round(g["lr"], 6), round(g["weight_decay"], 6)) for g in groups] == [(0.1, 0.4), (0.4, 0.1), (0.8, 0.05)]
    assert groups[1]["params"] == [model["both"].tail.weight] and groups[2]["params"] == [model["head"].weight]
    trained = {p for p in model.parameters() if p.requires_grad}
    assert set().union(*(g["params"] for g in groups)) == trained and sum(len(g["params"]) for g in groups) == len(
        trained
    )
    assert [rate_multiplier(layer) for layer in model.values()] == [1, 8, 1, 1]
    assert all("weight_decay" not in g for g in parameter_groups(model, 0.1))
    torch.optim.AdamW(groups)
    assert [round(g["lr"], 6) for g in parameter_groups(model, 0.1, power=0.5)] == [0.1, 0.2, round(0.1 * 8**0.5, 6)]
    assert rate_multiplier(model["head"], power=0) == 1


def test_fused_and_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(8, 16), FixedFanInLinear(16, 20, 4))
    model[1].fuse_optimizer(FusedSGD(0.1 * rate_multiplier(model[1])))
    (group,) = parameter_groups(model, 0.1)
    assert group["params"] == list(model[0].parameters())
    with pytest.raises(ValueError, match="no parameters"):
        parameter_groups(model[1], 0.1)
    with pytest.raises(ValueError, match="lr must not be negative, got -1"):
        parameter_groups(model, -1)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, whose layers tell the rates, got generator"):
        parameter_groups(model.parameters(), 1)
    nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match=r"computed from other parameters .* lr \* 4 is that of the weight itself"):
        parameter_groups(model, 1)
    with pytest.raises(ValueError, match="weight_decay must not be negative, got nan"):
        parameter_groups(model, 1, weight_decay=math.nan)


@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.SGD], ids=lambda rule: rule.__name__)
def test_a_step_moves_logits_as_in_the_dense_layer(rule):
    """The quantity that the rates are derived from, over random topologies: the mean over labels agrees within 5 %."""
    torch.manual_seed(0)
    D, L, K, B = 256, 2000, 16, 32
    x, slopes = torch.randn(B, D).abs(), torch.randn(B, L)
    moved = []
    for layer in (nn.Linear(D, L), FixedFanInLinear(D, L, K, seed=0)):
        with torch.no_grad():
            before = layer(x)
        optimizer = rule(parameter_groups(layer, 1e-3), lr=1e-3)
        (layer(x) * slopes).sum().backward()
        layer.bias.grad = None
        optimizer.step()
        with torch.no_grad():
            moved.append((layer(x) - before).square().mean().sqrt())
    assert abs(float(moved[1] / moved[0]) - 1) < (0.05 if rule is torch.optim.SGD else 0.15)


@pytest.mark.skipif(INTERPRETING, reason="about the rates, not the kernels")
@pytest.mark.parametrize("fan_in", [16, 64])
@pytest.mark.parametrize("optimizer", drop_in.RATES)
def test_a_dense_rate_serves_the_sparse_model(optimizer, fan_in):
    """A smaller problem than that of the study, one seed."""
    dense, sparse = (drop_in.precision(drop_in.Run(optimizer, fan_in=k, seed=0, labels=2000)) for k in (0, fan_in))
    assert dense > 0.9 and sparse >= 0.98 * dense
