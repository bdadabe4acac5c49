"""sparsify_: replaces a named nn.Linear in any module."""

import pytest
import torch
from torch import nn

from sparse_xmc.models import FixedFanInLinear, sparsify_


def nested() -> nn.Module:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 7, bias=False)) for _ in range(2)])
    return nn.ModuleDict({"blocks": blocks, "out": nn.Linear(7, 30)})


def test_replaces_only_the_named_layer_and_returns_the_module():
    model = nested()
    kept = model["blocks"][0][2]
    assert sparsify_(model, "blocks.1.2", fan_in=5) is model
    assert type(model["blocks"][1][2]) is FixedFanInLinear
    assert model["blocks"][0][2] is kept and type(model["out"]) is nn.Linear
    assert model["blocks"][1][2].bias is None


@pytest.mark.parametrize("group_size", [1, 4])
def test_keeps_the_largest_magnitudes(group_size):
    model = nested().double().eval()
    dense = model["out"]
    dense.bias.requires_grad_(False)
    sparsify_(model, "out", fan_in=3, group_size=group_size)
    layer = model["out"]
    for row in range(layer.indices.shape[0]):
        labels = slice(row * group_size, min((row + 1) * group_size, 30))
        kept = dense.weight[labels].abs().sum(0).topk(3).indices
        assert set(layer.indices[row].tolist()) == set(kept.tolist())
    assert torch.equal(layer.weight, dense.weight.gather(1, layer.label_indices()))
    assert torch.equal(layer.bias, dense.bias)
    assert not layer.training and layer.weight.requires_grad and not layer.bias.requires_grad


def test_whole_fan_in_computes_the_same_function():
    model = nested()
    x = torch.randn(4, 7)
    expected = model["out"](x)
    torch.testing.assert_close(sparsify_(model, "out", fan_in=7)["out"](x), expected)


def tied_parameter() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(30, 7), "out": nn.Linear(7, 30)})
    model["out"].weight = model["embedding"].weight
    return model


def tied_view() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(30, 7), "out": nn.Linear(7, 30)})
    model["out"].weight = nn.Parameter(model["embedding"].weight.data[:30])
    return model


def twice_in_the_model() -> nn.Module:
    layer = nn.Linear(7, 30)
    return nn.ModuleDict({"out": layer, "again": layer})


@pytest.mark.parametrize(
    "make, other", [(tied_parameter, "embedding"), (tied_view, "embedding"), (twice_in_the_model, "again")]
)
def test_shared_parameters_are_refused(make, other):
    model = make()
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=rf"'out' are shared with \['{other}"):
        sparsify_(model, "out", fan_in=3)
    assert dict(model.named_modules()) == before


def test_errors_name_the_problem():
    model = nested()
    with pytest.raises(ValueError, match=r"no layer 'head'.*'out'"):
        sparsify_(model, "head", fan_in=3)
    with pytest.raises(ValueError, match="dotted name"):
        sparsify_(model["out"], "", fan_in=3)
    with pytest.raises(TypeError, match="ReLU"):
        sparsify_(model, "blocks.0.1", fan_in=3)
    with pytest.raises(TypeError, match="NonDynamicallyQuantizableLinear"):
        sparsify_(nn.MultiheadAttention(8, 2), "out_proj", fan_in=3)
    with pytest.raises(ValueError, match="fan_in=8"):
        sparsify_(model, "out", fan_in=8)
    model["out"].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        sparsify_(model, "out", fan_in=3)
