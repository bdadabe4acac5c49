"""Odd numbers of labels, as 670,091 is one, cost the kernels of groups what even ones do: rows of logits are padded."""

import pytest
import torch

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)
pytest.importorskip("triton")

from bench import offline, static_analysis
from sparse_xmc.ops.triton_kernels import linear
from sparse_xmc.ops.triton_kernels._launch import padded

pytestmark = pytest.mark.compile_gate
B, D, K, G, WARPS = 128, 768, 64, 32, 4
# instructions of a warp in the listings of even numbers, before there was padding
MOST = {"forward_kernel": 328, "backward_input_kernel": 560, "backward_weight_kernel": 392}


def executed(L: int) -> dict[str, int]:
    half = {"dtype": torch.bfloat16, "device": "meta"}
    x, weight, bias, dy = (torch.empty(*size, **half) for size in ((B, D), (L, K), (L,), (B, padded(L))))
    indices = torch.empty(-(-L // G), K, dtype=torch.uint16, device="meta")

    def calls() -> None:
        linear.forward(x, weight, indices, bias, G)
        linear.backward_input(dy[:, :L], weight, indices, D, G, False)
        linear.backward_weight(dy[:, :L], x, indices, G, torch.bfloat16)

    target = offline.TARGETS["sm_90"]
    found = {}
    for launch in offline.recorded(calls):
        if launch.kernel.__name__ in MOST:
            compiled = offline.compile_for(launch, target)
            found[launch.kernel.__name__] = static_analysis._executed(launch, compiled) // WARPS
    return found


def test_odd_numbers_of_labels_cost_what_even_ones_do() -> None:
    even, odd = executed(20_000), executed(20_011)
    assert even.keys() == odd.keys() == MOST.keys()
    assert all(odd[name] <= most for name, most in MOST.items()), odd
    assert all(odd[name] <= 1.25 * even[name] for name in MOST), (even, odd)
