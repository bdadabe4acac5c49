"""Sizes of one and many labels in a group compile as the usual shapes do; ``python -m bench edges`` takes far more of them."""

import pytest
import torch

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)
pytest.importorskip("triton")

from bench import edges

pytestmark = pytest.mark.compile_gate
SHAPES = {
    "B=1": edges.Edge(1, 768, 20_011, 32, 1),
    "B=1,G=32": edges.Edge(1, 768, 20_011, 64, 32),
    "D=1,K=1": edges.Edge(128, 1, 20_011, 1, 1),
    "K=1,G=32": edges.Edge(128, 768, 20_011, 1, 32),
    "G=64": edges.Edge(128, 768, 20_011, 64, 64),
    "G=100": edges.Edge(128, 768, 20_011, 64, 100),
}


@pytest.mark.parametrize("K", [1, 8, 16, 128])
def test_groups_in_float32(K: int) -> None:
    """The most state beside products of triples."""
    calls = "^step, Adam(, no loss)?$"
    rows = edges._rows(edges.Edge(128, 768, 20_011, K, 32), (torch.float32, torch.float32), "sm_90", calls)
    assert rows
    if K == 128 and tuple(map(int, rows[0]["triton"].split(".")[:2])) >= (3, 9):
        # 40 bytes with 3.9.0, with four warps or eight, with as many labels a tile or half of them
        assert max(row["spilled"] for row in rows) <= 40
    else:
        assert [row for row in rows if row["problems"]] == []


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_compile(shape: str) -> None:
    calls = "^(forward|backward_input|backward_weight|step, SGD|topk|rewire)$"
    rows = edges._rows(SHAPES[shape], (torch.bfloat16, torch.bfloat16), "sm_90", calls)
    assert len({row["call"] for row in rows}) == (
        5 if shape == "D=1,K=1" else 6
    )  # one feature leaves nothing to rewire
    assert [row for row in rows if row["problems"]] == []
