"""FixedFanInLinear: initialisation, conversions, state dict, representation."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops._arguments import validate_indices
from tests import oracle

SHAPES = [
    pytest.param(dict(in_features=40, out_features=101, fan_in=8), id="per-label"),
    pytest.param(dict(in_features=40, out_features=101, fan_in=8, group_size=16), id="short-last-group"),
    pytest.param(dict(in_features=9, out_features=5, fan_in=9), id="fan-in-equals-features"),
    pytest.param(dict(in_features=70_000, out_features=3, fan_in=2), id="int32-indices"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_initialisation(shape):
    layer = FixedFanInLinear(**shape, seed=3)
    validate_indices(layer.indices, layer.in_features)
    assert layer.indices.dtype == (torch.int32 if shape["in_features"] > 65_536 else torch.uint16)
    bound = shape["fan_in"] ** -0.5
    assert 0.5 * bound < layer.weight.abs().max() <= bound
    assert not layer.bias.any()
    again = FixedFanInLinear(**shape, seed=3)
    assert torch.equal(layer.weight, again.weight) and torch.equal(layer.indices, again.indices)
    assert not torch.equal(layer.weight, FixedFanInLinear(**shape, seed=4).weight)


def test_seed_none_follows_the_global_generator():
    torch.manual_seed(0)
    first = FixedFanInLinear(40, 11, 8)
    torch.manual_seed(0)
    assert torch.equal(first.weight, FixedFanInLinear(40, 11, 8).weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_dense_conversion(shape):
    layer = FixedFanInLinear(**shape, dtype=torch.float64, seed=0)
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
    dense = layer.to_dense()
    expected = oracle.dense_weight(layer.weight, layer.indices, layer.in_features, layer.group_size)
    assert torch.equal(dense.weight, expected)
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_csr_conversion(shape):
    layer = FixedFanInLinear(**shape, seed=0)
    csr = layer.to_sparse_csr()
    assert csr.layout == torch.sparse_csr
    expected = oracle.dense_weight(layer.weight, layer.indices, layer.in_features, layer.group_size).float()
    assert torch.equal(csr.to_dense(), expected)
    per_row = csr.col_indices().view(layer.out_features, layer.fan_in)
    assert bool((per_row.diff(dim=1) > 0).all())


@pytest.mark.parametrize("bias", [True, False])
def test_from_dense_keeps_the_largest(bias):
    linear = nn.Linear(20, 33, bias=bias)
    layer = FixedFanInLinear.from_dense(linear, 5)
    magnitudes = linear.weight.abs().sort(dim=1, descending=True).values
    kept = layer.weight.abs().sort(dim=1, descending=True).values
    assert torch.equal(kept, magnitudes[:, :5])
    assert torch.equal(layer.weight, linear.weight.gather(1, layer.label_indices()))
    assert (layer.bias is not None) == bias
    if bias:
        assert torch.equal(layer.bias, linear.bias)


def test_from_dense_groups_share_the_largest_mean_magnitude():
    linear = nn.Linear(20, 10)
    layer = FixedFanInLinear.from_dense(linear, 4, group_size=4)
    for group in range(3):
        rows = linear.weight[4 * group : 4 * group + 4].abs().sum(0)
        assert set(layer.indices[group].tolist()) == set(rows.topk(4).indices.tolist())
    assert torch.equal(layer.weight, linear.weight.gather(1, layer.label_indices()))


def test_round_trip_through_dense_is_exact():
    layer = FixedFanInLinear(30, 17, 6, seed=1)
    x = torch.randn(4, 30)
    back = FixedFanInLinear.from_dense(layer.to_dense(), 6)
    torch.testing.assert_close(back(x), layer(x))


def test_state_dict_round_trip_and_copy():
    layer, other = FixedFanInLinear(40, 11, 8, seed=0), FixedFanInLinear(40, 11, 8, seed=1)
    other.load_state_dict(layer.state_dict())
    for clone in (other, copy.deepcopy(layer)):
        assert torch.equal(clone.weight, layer.weight) and torch.equal(clone.indices, layer.indices)


@pytest.mark.parametrize(
    ("value", "message"),
    [(40, r"indices\[2\] holds 40, outside \[0, 40\)"), (None, r"indices\[2\] holds \d+ twice")],
    ids=["out-of-range", "duplicate"],
)
def test_loading_bad_indices_raises_and_changes_nothing(value, message):
    layer = FixedFanInLinear(40, 11, 8, seed=0)
    state = {name: tensor.clone() for name, tensor in FixedFanInLinear(40, 11, 8, seed=1).state_dict().items()}
    state["indices"][2, 3] = state["indices"][2, 4] if value is None else value
    before = layer.indices.clone()
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(state)
    assert torch.equal(layer.indices, before)


def test_loading_another_shape_raises():
    with pytest.raises(RuntimeError, match="size mismatch for indices"):
        FixedFanInLinear(40, 11, 8).load_state_dict(FixedFanInLinear(40, 11, 9).state_dict())


def test_meta_device_materialises_by_loading():
    layer = FixedFanInLinear(40, 11, 8, device="meta").to_empty(device="cpu")
    source = FixedFanInLinear(40, 11, 8, seed=0)
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.indices, source.indices)


def test_casting_keeps_the_indices():
    layer = FixedFanInLinear(40, 11, 8, seed=0)
    before = layer.indices.clone()
    layer.bfloat16()
    assert layer.weight.dtype == torch.bfloat16 and torch.equal(layer.indices, before)


def test_representation_shows_sparsity_and_bytes():
    layer = FixedFanInLinear(40, 11, 8)
    assert "sparsity=80.00%" in repr(layer)
    assert f"bytes={11 * 8 * 4 + 11 * 8 * 2 + 11 * 4:,}" in repr(layer)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ((8, 11, 9), ValueError, "fan_in must not exceed in_features, got fan_in=9, in_features=8"),
        ((8, 0, 2), ValueError, "out_features must be at least 1, got 0"),
        ((8, 11, 2.0), TypeError, "fan_in must be an int, got 2.0"),
    ],
)
def test_bad_sizes_raise(sizes, error, message):
    with pytest.raises(error, match=message):
        FixedFanInLinear(*sizes)


def test_from_dense_rejects_other_modules():
    with pytest.raises(TypeError, match="linear must be a torch.nn.Linear, got ReLU"):
        FixedFanInLinear.from_dense(nn.ReLU(), 4)


@pytest.mark.parametrize("group_size", [1, 16])
def test_a_part_starts_like_its_labels_of_the_whole(group_size):
    whole = FixedFanInLinear(40, 9000, 3, group_size=group_size, seed=5)
    part = FixedFanInLinear(40, 4600, 3, group_size=group_size)
    part.reset_parameters(5, first_label=4000)
    assert torch.equal(part.weight, whole.weight[4000:8600])
    assert torch.equal(part.label_indices(), whole.label_indices(4000, 8600))


WRONG_WIDTH = [
    lambda layer, x: layer(x),
    lambda layer, x: layer.loss(x, (torch.zeros(4).long(), torch.zeros(0).long())),
]
WRONG_WIDTH += [lambda layer, x: layer.topk(x, 2)]


@pytest.mark.parametrize("width", [39, 41])
@pytest.mark.parametrize("call", WRONG_WIDTH)
def test_an_input_of_another_width_is_refused(call, width):
    layer = FixedFanInLinear(40, 11, 8, seed=0)
    with pytest.raises(ValueError, match=rf"x must be \[..., in_features=40\], got shape \[3, {width}\]"):
        call(layer, torch.randn(3, width))


def test_plain_pickle_and_every_way_to_copy():
    layer = FixedFanInLinear(40, 11, 8, seed=0)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [pickle.loads(pickle.dumps(layer)), copy.copy(layer), torch.load(buffer, weights_only=False)]
    for clone in copies:
        assert clone.indices.dtype == torch.uint16 and torch.equal(clone.indices, layer.indices)
        assert torch.equal(clone.weight, layer.weight)


def test_assigned_indices_take_the_dtype_of_the_layer():
    layer, state = FixedFanInLinear(40, 11, 8), FixedFanInLinear(40, 11, 8, seed=1).state_dict()
    state["indices"] = state["indices"].long()
    layer.load_state_dict(state, assign=True)
    assert layer.indices.dtype == torch.uint16 and torch.equal(layer.indices.long(), state["indices"])
    assert state["indices"].dtype == torch.int64


def test_the_default_device_is_none_of_a_layers_business():
    layer = FixedFanInLinear(40, 11, 8, seed=0)
    with torch.device("meta"):
        made = FixedFanInLinear(40, 11, 8, device="cpu")
        csr = layer.to_sparse_csr()
    assert made.weight.isfinite().all() and csr.device.type == "cpu"


def test_meta_tensors_give_shapes():
    layer = FixedFanInLinear(40, 11, 8, device="meta", dtype=torch.bfloat16)
    y = layer(torch.empty(2, 3, 40, device="meta", dtype=torch.bfloat16))
    assert y.is_meta and y.shape == (2, 3, 11) and y.dtype == torch.bfloat16
