"""Rows of logits lie apart by multiples of 16 elements in the Triton kernels; nobody notices."""

import pytest
import torch

from sparse_xmc import ops
from tests.conftest import INTERPRETING

if not INTERPRETING:
    pytest.skip("needs the interpreter", allow_module_level=True)

from sparse_xmc.ops.triton_kernels import linear

B, L, D, K = 5, 37, 24, 16


def layer(G: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, D), torch.randn(L, K), ops.init_indices(-(-L // G), D, K, seed=1, device="cpu")


@pytest.mark.parametrize("G", [1, 8])
def test_logits_may_be_changed_in_place(G: int) -> None:
    x, weight, indices = layer(G)
    x.requires_grad_()
    y = ops.fixed_fan_in_linear(x, weight, indices, group_size=G)
    assert y.stride() == (48, 1)
    expected = y.detach().clone().sigmoid()
    y.sigmoid_()
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("G", [1, 8])
@pytest.mark.parametrize("deterministic", [False, True])
def test_what_stands_between_rows_of_a_gradient_does_not_count(G: int, deterministic: bool) -> None:
    x, weight, indices = layer(G)
    dense = torch.randn(B, L)
    gaps = torch.full((B, 48), float("nan"))
    gaps[:, :L] = dense
    padded = gaps[:, :L]
    dx = linear.backward_input(padded, weight, indices, D, G, deterministic)
    dw = linear.backward_weight(padded, x, indices, G, torch.float32)
    torch.testing.assert_close(dx, linear.backward_input(dense, weight, indices, D, G, deterministic))
    torch.testing.assert_close(dw, linear.backward_weight(dense, x, indices, G, torch.float32))
