"""Studies of learning rates and drop-in layers: what their reports say of rows, and that the reports in the repository do."""

import pytest

from bench import learning_rate_report
from bench.environment import REPOSITORY
from bench.studies import check_costs, drop_in, learning_rate


def row(fan_in, lr, loss, *, rule=True, power=1.0, informed=False):
    return {
        "data": "EURLEX57K",
        "optimizer": "AdamW",
        "fan_in": fan_in,
        "lr": lr,
        "rule": rule,
        "power": power,
        "informed": informed,
        "valid loss": loss,
    }


ROWS = [
    row(0, 2e-3, 26.0),
    row(0, 1e-3, 27.0),
    row(16, 2e-3, 28.5),
    row(16, 1e-3, 28.25),
    row(16, 4e-3, None),
    row(16, 1e-3, 30.0, rule=False),
    row(16, 2e-3, 29.0, power=0.5),
    row(16, 2e-3, 1.0, informed=True),
]


def test_curves_and_their_best_rates():
    found = learning_rate_report.curves(ROWS)
    assert found[("EURLEX57K", "AdamW", 0, 1.0)] == [(1e-3, 27.0), (2e-3, 26.0)]
    assert found[("EURLEX57K", "AdamW", 16, 1.0)] == [(1e-3, 28.25), (2e-3, 28.5), (4e-3, None)]
    assert found.keys() == {("EURLEX57K", "AdamW", *key) for key in ((0, 1.0), (16, 1.0), (16, 0.0), (16, 0.5))}
    assert learning_rate_report.best_rate(found[("EURLEX57K", "AdamW", 16, 1.0)]) == 1e-3


def test_the_table_compares_with_the_dense_models_best_rate():
    lines = learning_rate_report.table(ROWS)
    assert lines[2:] == [
        "| EURLEX57K | AdamW | dense | lr | 0.002 | 26.00 | 26.00 |",
        "| EURLEX57K | AdamW | K=16 | lr | 0.001 | 30.00 | - |",
        "| EURLEX57K | AdamW | K=16 | lr (D/K)^0.5 | 0.002 | 29.00 | 29.00 |",
        "| EURLEX57K | AdamW | K=16 | lr D/K | 0.001 | 28.25 | 28.50 |",
    ]


def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    learning_rate_report.draw(ROWS, str(tmp_path / "rates.png"))
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("study", [learning_rate, drop_in], ids=["learning_rate", "drop_in"])
def test_the_report_holds_the_table_of_its_rows(study):
    rows, name = study.ROWS.read(), study.ROWS.path.stem
    table = study.table(rows)
    assert "\n".join(table) in (REPOSITORY / "reports" / f"{name}.md").read_text(encoding="utf-8")
    assert len({row["name"] for row in rows}) == len(rows)
    assert {run.name for run in study.runs()} >= {row["name"] for row in rows}


def test_with_both_lines_the_sparse_model_learns_what_the_dense_one_does():
    """The rows that were measured: every optimizer, three seeds, P@1 at least 0.98 of the dense model's."""
    cases = drop_in.by_case(drop_in.ROWS.read())
    for optimizer in drop_in.RATES:
        values = cases[optimizer, True, True]
        assert values.keys() == set(drop_in.FAN_INS) and all(len(v) == 3 for v in values.values())
        for fan_in in drop_in.FAN_INS[1:]:
            assert all(s >= 0.98 * d for s, d in zip(values[fan_in], values[0], strict=True)), (optimizer, fan_in)


def test_the_figure_of_drop_ins_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    drop_in.draw(drop_in.ROWS.read(), str(tmp_path / "drop_in.png"))
    assert (tmp_path / "drop_in.png").read_bytes().startswith(b"\x89PNG")


def test_frequent_items_are_numbered_anew():
    users = [[5, 7, 5, 9, 7, 5], [7, 5, 7, 1, 2], [9, 9]]
    assert learning_rate.with_frequent_items(users, 2) == [[1, 2, 1, 2, 1]]


def test_costs_are_shown(capsys):
    size = check_costs.Size(B=4, D=16, L=40, K=4, labels_per_row=2)
    costs = list(check_costs.of_step(size, repeats=2))
    assert [cost.what for cost in costs] == [
        "step",
        "checks of targets",
        "with pos_weight",
        "with sample_weight",
        "with pos_weight and sample_weight",
    ]
    assert costs[0].share == 1.0 and 0 < costs[1].share < 1 and all(cost.microseconds > 0 for cost in costs[:2])
    check_costs.show(size, costs)
    check_costs.show(None, list(check_costs.of_host(repeats=1)))
    shown = capsys.readouterr().out
    assert "B=4 D=16 L=40 K=4" in shown and "weights not used" in shown and shown.count("%") == len(costs)
