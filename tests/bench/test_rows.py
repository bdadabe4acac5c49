"""Rows survive interruption, are never rewritten, and tell what an unfinished run still lacks."""

import json

from bench.rows import RowFile, job_key, newest, unfinished_run


def _row(value, **more):
    return {"kind": "time", "provider": "dense", "mode": "full", "L": 10, "status": "ok", "p50_ms": value, **more}


def test_append_and_read(tmp_path) -> None:
    file = RowFile(tmp_path / "deeper")
    file.append(_row(1.0))
    file.append(_row(2.0))
    assert [r["p50_ms"] for r in file.read()] == [1.0, 2.0]


def test_a_torn_line_costs_only_itself(tmp_path) -> None:
    file = RowFile(tmp_path)
    file.append(_row(1.0))
    with open(file.path, "a") as raw:
        raw.write('{"kind": "time", "provi')
    file.append(_row(3.0))
    assert [r["p50_ms"] for r in file.read()] == [1.0, 3.0]
    assert file.path.read_text().count("\n") == 3


def test_newest_row_of_every_job(tmp_path) -> None:
    rows = [_row(1.0), _row(5.0, L=20), _row(2.0), {"kind": "begin", "run": "a"}]
    assert [(r["L"], r["p50_ms"]) for r in newest(rows)] == [(10, 2.0), (20, 5.0)]
    assert job_key(rows[0]) == job_key(rows[2]) != job_key(rows[1])


def test_unfinished_run() -> None:
    begin = {"kind": "begin", "run": "r1", "suite": "full", "commit": "abc"}
    assert unfinished_run([begin], "full", "abc") == "r1"
    assert unfinished_run([begin], "full", "other") is None, "figures of two commits never mix in a run"
    assert unfinished_run([begin], "quick", "abc") is None
    assert unfinished_run([begin, {"kind": "end", "run": "r1"}], "full", "abc") is None


def test_nan_never_reaches_the_file(tmp_path) -> None:
    try:
        RowFile(tmp_path).append(_row(float("nan")))
    except ValueError:
        pass
    else:
        json.loads(RowFile(tmp_path).path.read_text())
        raise AssertionError("a NaN was written")
