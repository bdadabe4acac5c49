"""QuantizedFixedFanInLinear: against the layer it was made of, state dicts, casts, bytes."""

import copy

import pytest
import torch
from torch import nn

from sparse_xmc.models import FixedFanInLinear, QuantizedFixedFanInLinear, memory_report

SHAPES = [
    pytest.param(dict(in_features=40, out_features=101, fan_in=8), id="per-label"),
    pytest.param(dict(in_features=40, out_features=101, fan_in=8, group_size=16, bias=False), id="groups-without-bias"),
    pytest.param(dict(in_features=70_000, out_features=3, fan_in=2), id="int32-indices"),
]


def make(shape, dtype=torch.float32):
    layer = FixedFanInLinear(**shape, dtype=dtype, seed=0)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer, QuantizedFixedFanInLinear.from_layer(layer)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_near_the_layer_and_equals_its_dequantization(shape):
    layer, quantized = make(shape)
    x = torch.randn(2, 3, layer.in_features)
    exact, dequantized = layer(x).detach(), quantized.dequantize()
    y = quantized(x)
    assert not y.requires_grad and not list(quantized.parameters())
    bound = nn.functional.linear(x.abs(), layer.to_dense().weight.abs()) / 16  # half a unit of 4 significant bits
    assert bool(((y - exact).abs() <= bound + 1e-5).all()) and not torch.equal(y, exact)
    torch.testing.assert_close(y, dequantized(x).detach())
    torch.testing.assert_close(y, quantized.to_dense()(x).detach())
    assert torch.equal(quantized.topk(x, 3)[1], dequantized.topk(x, 3)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_layers_of_other_dtypes(dtype):
    layer, quantized = make(dict(in_features=40, out_features=101, fan_in=8), dtype)
    assert quantized.bias.dtype == (torch.float32 if dtype == torch.float64 else dtype)
    again = quantized.dequantize(dtype)
    assert again.weight.dtype == again.bias.dtype == dtype and again.weight.requires_grad
    torch.testing.assert_close(again.weight, layer.weight, rtol=1 / 16, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_state_dict_round_trip(shape, tmp_path):
    layer, quantized = make(shape)
    torch.save(quantized.state_dict(), tmp_path / "head.pt")
    loaded = QuantizedFixedFanInLinear(**shape)
    loaded.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    x = torch.randn(4, layer.in_features)
    assert torch.equal(loaded(x), quantized(x)) and torch.equal(copy.deepcopy(loaded)(x), quantized(x))


def test_state_dicts_are_validated():
    layer, quantized = make(dict(in_features=40, out_features=11, fan_in=8))
    target = QuantizedFixedFanInLinear(40, 11, 8)
    with pytest.raises(TypeError, match="weight must be torch.float8_e4m3fn, got torch.float32: make"):
        target.load_state_dict(layer.state_dict(), strict=False)
    with pytest.raises(TypeError, match="weight is torch.float8_e4m3fn: load it into a Quantized"):
        layer.load_state_dict(quantized.state_dict(), strict=False)
    for name, message in (("weight", "weight: it holds inf or NaN"), ("weight_scale", "weight_scale: it holds")):
        state = quantized.state_dict()
        state[name] = torch.full(state[name].shape, float("nan")).to(state[name].dtype)
        with pytest.raises(ValueError, match=message):
            target.load_state_dict(state)
    state = quantized.state_dict()
    state["indices"] = torch.zeros_like(state["indices"])
    with pytest.raises(ValueError, match=r"indices\[0\] holds 0 twice"):
        target.load_state_dict(state)


def test_casts_leave_it_alone():
    _, quantized = make(dict(in_features=40, out_features=11, fan_in=8))
    model = nn.Sequential(nn.Linear(40, 40), quantized)
    before = [buffer.clone() for buffer in quantized.buffers()]
    model.half().to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    for a, b in zip(before, quantized.buffers(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a.float(), b.float())
    assert quantized.to("meta").weight.is_meta


def test_bytes():
    _, quantized = make(dict(in_features=40, out_features=1001, fan_in=8, group_size=16))
    parts = memory_report(1001, 40, 8, group_size=16).serving.components
    assert parts["weights"] + parts["indices"] + parts["bias"] == quantized.num_bytes()
    assert f"bytes={quantized.num_bytes():,}" in repr(quantized)


def test_bad_arguments():
    with pytest.raises(TypeError, match="layer must be a FixedFanInLinear, got Linear"):
        QuantizedFixedFanInLinear.from_layer(nn.Linear(3, 4))
    with pytest.raises(ValueError, match="fan_in must not exceed in_features"):
        QuantizedFixedFanInLinear(3, 4, 5)
    with pytest.raises(TypeError, match="fan_in must be an int"):
        QuantizedFixedFanInLinear(3, 4, 2.0)
