"""Commands under a hard limit of memory and of time, and the report of those that ran so."""

import json
import sys

import pytest

pytest.importorskip("psutil")
from bench import known_item_report
from bench.limited import run_limited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
_MIB = 1 << 20
_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}], check=True)"


def run(code, limit=400 * _MIB, **options):
    return run_limited([sys.executable, "-c", code], limit, **options)


def test_a_command_that_fits_says_what_it_takes():
    outcome = run("import time; held = bytearray(150 << 20); time.sleep(1); print('done')")
    assert (outcome.status, outcome.output) == (0, ["done"])
    assert 150 < outcome.peak < 250 and outcome.cpu_seconds < outcome.seconds + 1


def test_a_command_that_says_more_than_a_pipe_holds_comes_to_its_end():
    outcome = run("for i in range(100_000): print(i)", seconds=60)
    assert (outcome.status, outcome.output[-1]) == (0, "99999")


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "in a child"])
def test_more_than_the_limit_fails(wrapped):
    code = "held = bytearray(500 << 20)"
    outcome = run(_CHILD.format(code) if wrapped else code)
    assert outcome.status != 0 and any("MemoryError" in line for line in outcome.output)


def test_too_much_of_several_processes_together_and_too_long_are_ended():
    half = "import time; held = bytearray(230 << 20); time.sleep(60)"
    both = f"import subprocess, sys; one = subprocess.Popen([sys.executable, '-c', {half!r}]); {half}"
    assert run(both).status == -9
    assert run("import time; time.sleep(60)", seconds=0.5).status == -9


def test_the_report_has_rows_that_failed_and_both_figures(tmp_path):
    common = {
        "seconds": 2.0,
        "cpu_seconds": 3.0,
        "peak_mib": 900.0,
        "limit": 4 * 10**9,
        "environment": {"cpu": "a CPU"},
    }
    samples = {"samples": [[0.0, 10.0], [1.0, 900.0]]}
    rows = [
        {"name": "pecos", "status": "ended with 1", "rows": 670_091, "said": ["std::bad_alloc"], **common, **samples},
        {
            "name": "pecos",
            "status": "ok",
            "rows": 335_045,
            "P@1": 70.0,
            "R@5": 80.0,
            "disk": 10**8,
            **common,
            **samples,
        },
        {"name": "sparse_xmc", "status": "ok", "P@1": 81.8, "R@5": 92.08, "disk": 10**8, **common, **samples},
    ]
    (tmp_path / "known_item.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known_item_report.main(tmp_path)
    text = (tmp_path / "known_item.md").read_text()
    assert "| 670,091 | 81.80 | 92.08 | 3 | 2 | 900 | 100 |" in text
    assert "| 670,091 | out of memory | - |" in text and "| 335,045 | 70.00 |" in text
    for name in ("memory_over_time.png", "accuracy_against_bytes.png"):
        assert (tmp_path / name).stat().st_size > 10_000
