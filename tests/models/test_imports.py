"""The package's face: names come without a detour, and nothing is loaded before it is asked for."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import sparse_xmc
from sparse_xmc import DenseLinear, FixedFanInLinear, HeadTailLinear, QuantizedFixedFanInLinear, SparseInputLinear


def test_names_are_those_of_models():
    for name in sparse_xmc.__all__:
        value = getattr(sparse_xmc, name)
        assert value is getattr(sparse_xmc.models, name, value), name
        assert name in dir(sparse_xmc)
    with pytest.raises(AttributeError, match="has no attribute 'FixedFanOut'"):
        _ = sparse_xmc.FixedFanOut


@pytest.mark.parametrize("statement", ["import sparse_xmc", "from sparse_xmc import __version__"])
def test_importing_the_package_loads_nothing_heavy(statement):
    code = f"import sys; {statement}; print(sorted({{'torch', 'numpy', 'numba', 'triton'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("layer", [FixedFanInLinear, QuantizedFixedFanInLinear, SparseInputLinear])
def test_bias_is_positional_as_in_nn_linear(layer):
    assert layer(8, 11, 3, False).bias is None
    assert layer(8, 11, 3, True).bias is not None and layer(8, 11, 3, bias=False).bias is None


def test_bias_of_the_other_heads():
    assert DenseLinear(8, 11, False).bias is None and not DenseLinear(8, 11).bias.any()
    head = HeadTailLinear(8, 11, 3, False, num_head=2)
    assert head.head.bias is None and head.tail.bias is None
    assert {p.dtype for p in HeadTailLinear(8, 11, 3, num_head=2, dtype=torch.float64).parameters()} == {torch.float64}


def test_dense_weights_are_drawn_as_nn_linear_draws_them():
    torch.manual_seed(0)
    dense = nn.Linear(8, 11)
    torch.manual_seed(0)
    assert torch.equal(DenseLinear(8, 11).weight, dense.weight)
    empty = DenseLinear(8, 11, device="meta", seed=1).to_empty(device="cpu")
    empty.reset_parameters(1)
    assert torch.equal(empty.weight, DenseLinear(8, 11, seed=1).weight) and not empty.bias.any()
