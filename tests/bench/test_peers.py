"""The comparison with other classifiers: the same scoring for all, and a page that says where we lose."""

import gzip
import json
import sys

import numpy as np
import pytest

from bench import compare_report
from bench.studies import peer_process, peers


def _job(tmp_path, **more):
    for part in ("train", "test"):
        with gzip.open(tmp_path / f"{part}.jsonl.gz", "wt") as file:
            for i in range(40):
                words, label = [("bread salt oven", "food"), ("judge court appeal", "law")][i % 2]
                file.write(json.dumps({"text": f"{words} {i % 5}", "labels": [label]}) + "\n")
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    files = {part: str(tmp_path / f"{part}.jsonl.gz") for part in ("train", "test")}
    return {
        **files, "fields": ["text"], "label_field": "labels", "folder": str(model), "scratch": str(tmp_path), "threads": 1,
        "min_df": 1, "max_features": 100, "cpu_limit": 100.0, "memory_bytes": 10**9, "options": {}, "started": 0.0, **more,
    }  # fmt: skip


@pytest.mark.parametrize("system", ["sklearn_ovr", "sparse_xmc"])
def test_a_system_is_trained_from_files_and_scored(tmp_path, system):
    pytest.importorskip("sklearn")
    job = _job(tmp_path, system=system)
    row = peer_process.run(job)
    assert row["status"] == "ok" and row["batch_texts"] == 40 and row["disk_bytes"] > 0 and row["text_ms_p50"] > 0
    found = json.loads((tmp_path / "predicted.json").read_text())
    scored = peers.scores(found["predicted"], found["true"], *peers.training_labels(job))
    assert scored["P@1"] == 100.0 and scored["P@3"] == pytest.approx(33.33) and scored["PSP@1"] == 100.0


def test_what_takes_too_much_says_so_instead_of_running(tmp_path):
    pytest.importorskip("sklearn")
    row = peer_process.run(_job(tmp_path, system="sklearn_ovr", memory_bytes=10))
    assert row["status"] == "not run" and "does not fit: its weights alone take" in row["reason"]
    row = peer_process.run(_job(tmp_path, system="sklearn_ovr", cpu_limit=0.0))
    assert row["status"] == "not run" and "told from 2 of 2 labels" in row["reason"]


def test_labels_without_training_rows_count_as_missed():
    scored = peers.scores([["a", "b", "", "", ""]], [["a", "new"]], {"a": 3, "b": 1}, 4)
    assert scored["P@1"] == 100.0 and scored["P@3"] == pytest.approx(33.33)
    assert scored["PSP@3"] < 100.0


def test_best_stored_scores_first_and_fewer_than_k():
    scores = np.array([[0.0, 3.0, 5.0], [0.0, 0.0, 0.0]])
    assert peer_process.top_columns(scores, 3).tolist() == [[2, 1, -1], [-1, -1, -1]]


def test_features_of_the_repository(tmp_path):
    with gzip.open(tmp_path / "x.txt.gz", "wt") as file:
        file.write("2 4 3\n0,2 1:0.5 3:1\n 0:1\n")
    x, labels = peer_process.read_features(str(tmp_path / "x.txt.gz"))
    assert x.toarray().tolist() == [[0, 0.5, 0, 1], [1, 0, 0, 0]] and labels == [["0", "2"], []]


def test_memory_of_the_process_tree_is_seen_and_a_slow_run_ends():
    inner = "import time; x = bytearray(90 << 20); time.sleep(0.5)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    done, peak = peers.measured([sys.executable, "-c", code], timeout=60)
    assert done.returncode == 0 and peak > 90 << 20
    done, _ = peers.measured([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.3)
    assert done.returncode and "took longer than 0.3 s" in done.stderr


def _row(variant, p, **more):
    ranking = dict.fromkeys(("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5"), p)
    return {
        "set": "Some", "variant": variant, "status": "ok", "version": f"{variant} 1", "threads": 2, "cpu": "a CPU", "cores": 2,
        "commit": "c0ffee0000", "train_cpu_s": 10.0, "train_wall_s": 9.0, "batch_texts": 100, "batch_cpu_s": 1.0,
        "text_ms_p50": 1.0, "disk_bytes": 10**6, "peak_bytes": 10**8, **ranking, **more,
    }  # fmt: skip


def test_the_page_shows_the_best_in_bold_and_says_where_we_lose():
    rows = [_row("sparse_xmc", 50.0), _row("omikuji", 40.0, **{"P@5": 60.0}, train_cpu_s=5.0)]
    rows.append({**_row("napkinXC PLT", 0.0), "status": "not run", "reason": "does not fit: 9 GB"})
    text = "\n".join(compare_report.lines(rows))
    assert "| sparse_xmc | **50.00** | **50.00** | 50.00 |" in text and "| napkinXC PLT | does not fit: 9 GB |" in text
    assert "- omikuji: P@5 60.00 against 50.00; training 5.0 CPU seconds against 10.0." in text
    assert "this project at c0ffee00" in text and "omikuji 1" in text
    with pytest.raises(ValueError, match="no rows"):
        compare_report.write_report([])


def test_the_stored_page_is_made_of_the_stored_rows():
    rows = compare_report.stored()
    if not rows:
        pytest.skip("nothing has been compared yet")
    assert compare_report.PAGE.read_text() == "\n".join(compare_report.lines(rows))
