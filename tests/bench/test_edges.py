"""The sweep over shapes at the edge: what it calls, and what it says of a kernel that must not be shipped."""

import json

import pytest
import torch

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)
pytest.importorskip("triton")

from bench import edges, edges_report, offline


def test_every_launcher_is_called_in_every_shape() -> None:
    """But rewiring where no feature is free."""
    with_all = {name for name, _ in edges.calls(edges.EDGES[2], edges.DTYPES[0])}
    assert {
        "forward",
        "backward_input",
        "backward_weight",
        "gradients",
        "step, SGD",
        "step, Adam",
        "topk",
        "rewire",
    } < with_all
    for edge in edges.EDGES:
        for dtypes in edges.DTYPES:
            names = [name for name, _ in edges.calls(edge, dtypes)]
            missing = with_all - set(names)
            assert missing <= {"rewire", "topk"} and len(names) == len(set(names))
            assert ("rewire" in missing) == (edge.D == edge.K) and ("topk" in missing) == (dtypes[0] == torch.float64)


def test_problems_are_listed_and_counted(monkeypatch, tmp_path, capsys) -> None:
    """Spills of float64 are none; a failure to compile is."""
    monkeypatch.setattr(edges, "EDGES", (edges.Edge(16, 16, 64, 4, 1),))
    monkeypatch.setattr(edges, "DTYPES", (edges.DTYPES[2],))

    class Here:
        """The pool in this process, where the patches hold."""

        def __init__(self, *arguments, **options):
            self.map = map

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(edges, "ProcessPoolExecutor", Here)
    assert edges.sweep(tmp_path, ["sm_90"], "^forward$") == 0
    rows = [json.loads(line) for line in (tmp_path / "edges.jsonl").read_text().splitlines()]
    assert [row["kernel"] for row in rows] == ["transpose_kernel", "forward_kernel"]
    assert all(row["problems"] == [] and row["registers"] > 0 and row["target"] == "sm_90" for row in rows)

    monkeypatch.setattr(offline, "problems", lambda *a, **k: ["spills 64 bytes per thread"])
    assert edges.sweep(tmp_path, ["sm_90"], "^forward$") == 1
    assert "forward_kernel of forward, float32, B=16 D=16 L=64 K=4 G=1: spills 64 bytes" in capsys.readouterr().out
    again = edges.read(tmp_path)
    assert [row["problems"] for row in again] == [["spills 64 bytes per thread"]] * 2  # in place of the former rows

    page = tmp_path / "edges.md"
    edges_report.write([*again, {**again[0], "dtypes": "float64"}, {**rows[0], "target": "sm_80", "spilled": 8}], page)
    text = page.read_text()
    assert "| sm_90 | 1 | 2 | 3 | 0 | 0 | 1 | 2 |" in text
    assert "| sm_80 | 1 | 1 | 1 | 0 | 1 | 0 | 0 |" in text
    assert text.count("by nature)") == 1
    assert "| transpose_kernel | float32 | 1 | 8 | sm_80 " in text
    assert edges.by_nature({"dtypes": "float64", "problems": ["spills 64 bytes per thread"]})
    assert not edges.by_nature({"dtypes": "float64", "problems": ["races: x"]})
