import pytest

from bench import direct_report as report

METRICS = [f"{kind}@{k}" for kind in ("P", "PSP") for k in (1, 3, 5)]


def row(value, **more):
    return {"set": "A", **dict.fromkeys(METRICS, value), "cpu_s": 10 * value, "peak_mib": 7, "disk_mb": 0.25, **more}


def test_seeds_stand_together_with_their_spread_and_the_middle_of_their_seconds():
    rows = [row(value, effort="normal", seed=seed) for seed, value in enumerate((1.0, 2.0, 6.0))]
    rows.append(row(4.0, effort="best", seed=0))
    lines = report.test_table(rows)
    triple = " / ".join(["3.00 ± 2.65"] * 3)
    assert lines[2] == f"| A | normal | 3 | {triple} | {triple} | 20 | 7 | 0.2 MB |"
    assert lines[3].startswith("| A | best | 1 | 4.00 / 4.00 / 4.00 |") and len(lines) == 4


def test_only_what_stands_between_the_marks_is_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "FIGURE", tmp_path / "tail.png")
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    dev = [row(1.0, part="default", tail=0.0), row(2.0, part="default", tail=1.0), row(3.0, part="one", tail=0.0)]
    report.write_report([row(1.0, effort="normal", seed=0)], dev)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| A | one | 3.00 / 3.00 / 3.00 |" in text and "accuracy/tail.png" in text
    assert (tmp_path / "tail.png").stat().st_size > 1000
    report.write_report([], dev[:1])
    assert "tail.png" not in page.read_text()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        report.write_report([], [])
