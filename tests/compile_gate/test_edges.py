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
HALF, FLOAT16 = (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)
WIDE, MIXED = (torch.float32, torch.float32), (torch.bfloat16, torch.float32)
# what the whole sweep found to spill, one row for each kind: B, K, G, dtypes, target, calls
FOUND = {
    "64 labels in float32": (128, 64, 64, WIDE, "sm_90", "^step, SGD"),
    "64 labels in float32, sm_80": (128, 64, 64, WIDE, "sm_80", "^gradients$"),
    "32 connections in float32, sm_80": (129, 20, 96, WIDE, "sm_80", "^step, Adam"),
    "128 connections in float32, sm_80": (128, 128, 32, WIDE, "sm_80", "^step, Adam"),
    "128 connections in float32, gfx942": (128, 128, 32, WIDE, "gfx942", "^step, Adam"),
    "momenta of many labels in float16": (128, 64, 128, FLOAT16, "sm_90", "^step, momentum"),
    "few rows, second moments": (1, 64, 32, MIXED, "sm_80", "^step, Adam"),
    "connections that fill no block, wider weights": (128, 33, 32, MIXED, "sm_80", "^step, momentum"),
    "maxima over 256 connections in float32": (128, 256, 32, WIDE, "sm_90", "^topk$"),
    "maxima of 64 labels with wider weights": (128, 64, 64, MIXED, "sm_80", "^topk$"),
    "products of 128 labels with wider weights": (128, 64, 128, MIXED, "sm_80", "^backward_input"),
    "products of several tiles of labels in float32": (100, 129, 96, WIDE, "sm_80", "^backward_input"),
    "the same, more of them": (33, 48, 200, WIDE, "sm_90", "^backward_input"),
    "several tiles of rows": (512, 64, 32, HALF, "sm_80", "^backward_input, deterministic$"),
    "dense tiles of wider weights": (128, 64, 1, MIXED, "sm_80", "^(backward_input|gradients)$"),
}


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found(found: str) -> None:
    B, K, G, dtypes, target, calls = FOUND[found]
    rows = edges._rows(edges.Edge(B, 768, 20_011, K, G), dtypes, target, calls)
    assert rows
    assert [row for row in rows if row["problems"]] == []


@pytest.mark.parametrize("K", [1, 8, 16, 128])
def test_groups_in_float32(K: int) -> None:
    """The most state beside products of triples."""
    calls = "^step, Adam(, no loss)?$"
    rows = edges._rows(edges.Edge(128, 768, 20_011, K, 32), WIDE, "sm_90", calls)
    assert rows
    if K == 128 and tuple(map(int, rows[0]["triton"].split(".")[:2])) >= (3, 9):
        # 40 bytes with 3.9.0, with four warps or eight, with as many labels a tile or half of them
        assert max(row["spilled"] for row in rows) <= 40
    else:
        assert [row for row in rows if row["problems"]] == []


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_compile(shape: str) -> None:
    calls = "^(forward|backward_input|backward_weight|step, SGD|topk|rewire)$"
    rows = edges._rows(SHAPES[shape], HALF, "sm_90", calls)
    assert len({row["call"] for row in rows}) == (
        5 if shape == "D=1,K=1" else 6
    )  # one feature leaves nothing to rewire
    assert [row for row in rows if row["problems"]] == []
