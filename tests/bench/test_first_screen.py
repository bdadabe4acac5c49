"""The README's figures are those of stored rows."""

import pytest

from bench import first_screen
from bench.environment import REPOSITORY
from bench.rows import RowFile
from tests.bench.test_report import _row


def _rows(L: int, run: str = "r", **lost):
    rows = []
    for name, factor in (
        ("sparse_xmc_fused", 1.0),
        ("dense", 20.0),
        ("torch_csr", 5.25),
        ("embedding_bag", 4.0),
        ("bottleneck", 2.0),
    ):
        for kind in ("time", "memory"):
            row = _row(name, factor, "step", L) | {
                "kind": kind,
                "run": run,
                "persistent_bytes": 0,
                "peak_bytes": factor * 2**20,
            }
            rows.append(row | ({"status": "oom", "reason": "predicted"} if lost.get(name) else {}))
    return [*rows, {"kind": "end", "suite": "gain", "run": run}]


def test_ratios_of_time_and_memory_and_what_does_not_fit():
    lines = first_screen.table([*_rows(1000, dense=True), *_rows(1000, "later"), *_rows(9, "later")])
    assert lines[0] == "| a training step against | 9 labels | 1,000 labels |"
    assert lines[2] == "| `nn.Linear` | 20x faster, 20x smaller | 20x faster, 20x smaller |"
    assert lines[3].startswith("| `torch.sparse` CSR | 5.2x faster, 5.2x smaller")
    assert "does not fit" in first_screen.table(_rows(1000, dense=True))[2]


def test_nothing_is_made_of_an_unfinished_run():
    with pytest.raises(ValueError, match="no complete run"):
        first_screen.table(_rows(1000)[:-1])


def test_a_readme_without_marks_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="must hold the lines"):
        first_screen.write(readme=tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "nothing"


def test_the_readme_holds_the_table_of_the_stored_rows():
    text = (REPOSITORY / "README.md").read_text()
    wanted = "\n".join(first_screen.table(RowFile(REPOSITORY / "reports" / "cpu").read()))
    assert f"{first_screen.BEGIN}\n{wanted}\n{first_screen.END}" in text
