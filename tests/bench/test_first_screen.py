"""The README's figures are those of stored rows."""

import pytest

from bench import answers, first_screen
from bench.environment import REPOSITORY
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
            rows.append(
                row | ({"status": "oom", "reason": "predicted: needs about 12.5 GiB"} if lost.get(name) else {})
            )
    return [*rows, {"kind": "end", "suite": "gain", "run": run}]


def _even(slow_until: int):
    """Rows of the suite of small layers: the fused step loses up to ``slow_until`` labels."""
    rows = []
    for L in (100, 200, 400, 800):
        for name, cost in (("dense", 1.0), ("sparse_xmc_fused", 2.0 if slow_until >= L else 0.5)):
            rows.append(_row(name, cost, "step", L) | {"kind": "time", "run": "even"})
    return [*rows, {"kind": "end", "suite": "break_even", "run": "even"}]


def test_ratios_of_time_and_memory_and_what_does_not_fit():
    lines = first_screen.table([*_rows(10**6, dense=True), *_rows(10**6, "later"), *_rows(9 * 10**5, "later")])
    assert lines[0] == "| a training step against | 900,000 labels | 1,000,000 labels |"
    assert lines[2] == "| `nn.Linear` | 20x faster, 20x smaller | 20x faster, 20x smaller |"
    assert lines[3].startswith("| `torch.sparse` CSR | 5.2x faster, 5.2x smaller")
    assert "does not fit (needs 12.5 GiB)" in first_screen.table(_rows(10**6, dense=True))[2]


def test_of_two_runs_the_less_disturbed_one_counts():
    quiet, loud = _rows(10**6), _rows(10**6, "later")
    for row in loud:
        if row.get("provider") == "sparse_xmc_fused":
            row |= {"p20_ms": 0.5, "p50_ms": 9.0, "p80_ms": 20.0}
    for rows in ([*quiet, *loud], [*loud, *quiet]):
        assert first_screen.table(rows)[2] == "| `nn.Linear` | 20x faster, 20x smaller |"


def test_small_layers_are_left_to_the_figure():
    assert "900" not in first_screen.table([*_rows(900, "r"), *_rows(10**6, "r")])[0]


def test_break_even_is_where_the_sparse_step_stays_ahead():
    assert answers.break_even(_even(0), "sparse_xmc_fused") == (100, True)
    assert answers.break_even(_even(200), "sparse_xmc_fused") == (400, False)
    with pytest.raises(ValueError, match="was not faster than the dense layer at 800 labels"):
        answers.break_even(_even(800), "sparse_xmc_fused")
    with pytest.raises(ValueError, match="no complete run"):
        answers.break_even(_even(0)[:-1], "sparse_xmc_fused")
    said = first_screen.answers_of([*_rows(10**6), *_even(200)])[-1]
    assert "D=64, 8 connections per label" in said and "from 400 labels on." in said


def test_nothing_is_made_of_an_unfinished_run():
    with pytest.raises(ValueError, match="no complete run"):
        first_screen.table(_rows(1000)[:-1])


def test_a_readme_without_marks_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ValueError, match="must hold the lines"):
        first_screen.write(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == "nothing"


def test_accuracy_is_that_of_the_stored_rows():
    lines = answers.accuracy()
    assert lines[2].startswith(
        "| EURLEX57K, 512 frozen features | 90.8 | 87.3 with K=64"
    )  # as reports/topology.md has it
    assert len(lines) == 3 + len(answers.PAIRS)


@pytest.mark.parametrize(
    "marks",
    [first_screen.GAIN, first_screen.ACCURACY, first_screen.KNOWN_ITEM],
    ids=["gain", "accuracy", "known item"],
)
def test_the_readme_holds_what_the_stored_rows_say(marks):
    begin, end = marks
    wanted = "\n".join([begin, *first_screen.blocks()[marks], end])
    assert wanted in (REPOSITORY / "README.md").read_text(), "python -m bench first_screen"
