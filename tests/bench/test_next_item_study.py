"""The study of next items: what its rows say, and that the report says it."""

from statistics import mean

from bench.environment import REPOSITORY
from bench.studies import next_item

DENSE_PARAMETERS, DENSE_HITS = 3_110_214, 0.0597  # of the dense softmax by the old recipe, in the report


def row(head, seed, hits):
    shares = {name: hits for name in next_item.METRICS}
    return {"head": head, "seed": seed, **shares, "validation HR@10": 0.1, "head parameters": 1000, "CPU seconds": 90.0}


def test_the_table_has_means_and_the_range_of_seeds():
    lines = next_item.table([row("sparse", 0, 0.06), row("sparse", 1, 0.07), row("dense", 0, 0.08)])
    assert lines[2:] == [
        "| sparse | 2 | .0650 | .0650 (.0600 to .0700) | .0650 | .0650 | .1000 | 1,000 | 1.5 |",
        "| dense | 1 | .0800 | .0800 | .0800 | .0800 | .1000 | 1,000 | 1.5 |",
    ]


def test_an_eighth_of_the_parameters_hits_as_often_as_the_dense_softmax():
    """The rows that were measured: three seeds."""
    rows = [row for row in next_item.ROWS.read() if row["head"].startswith("fixed fan-in")]
    assert {row["seed"] for row in rows} == {0, 1, 2}
    assert all(row["head parameters"] <= DENSE_PARAMETERS / 8 for row in rows)
    assert mean(row["HR@10"] for row in rows) >= DENSE_HITS


def test_the_report_holds_the_table_of_its_rows():
    rows = next_item.ROWS.read()
    assert "\n".join(next_item.table(rows)) in (REPOSITORY / "reports" / "next_item.md").read_text(encoding="utf-8")
    runs = {run.name: " ".join(run.arguments()) for run in next_item.runs()}
    assert all(runs[row["name"]] == row["arguments"] for row in rows)
