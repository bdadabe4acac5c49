"""What a run reports beside its model is believed only as it was written."""

import json
import os
import shutil

import pytest

from sparse_xmc.app.cli import main
from sparse_xmc.app.reports import REPORTS, changed, recorded
from sparse_xmc.storage.atomic import write_text
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
OPTIONS = ["--min-df", "1", "--effort", "fast", "--no-progress", "--threads", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    rows = [{"text": f"w{i % 5} w{i % 3}", "labels": [f"l{i % 5}"]} for i in range(30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(train(folder)) == 0
    return folder


def train(folder):
    data = str(folder / "data.jsonl")
    return ["train", "--train", data, "--test", data, *OPTIONS, "--out", str(folder / "run")]


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copy(finished / "data.jsonl", tmp_path)
    return tmp_path / "run"


def inspected(run, capsys) -> str:
    assert main(["inspect", str(run)]) == 0
    return capsys.readouterr().out


def test_every_changed_byte_of_the_metrics_is_told(finished, run, capsys):
    path = run / "metrics.json"
    content = path.read_bytes()
    assert "P@1" in inspected(run, capsys)
    for at in range(0, len(content), 7):
        spoilt = bytearray(content)
        spoilt[at] ^= 1
        path.write_bytes(spoilt)
        assert changed(str(path))
    said = inspected(run, capsys)
    assert "P@1" not in said and "metrics.json has been changed since it was written" in said
    assert main(["evaluate", str(run), "--test", str(finished / "data.jsonl"), "--no-progress"]) == 0
    assert not changed(str(path)) and "P@1" in inspected(run, capsys)


def test_a_configuration_that_was_edited_stays_and_is_told(run, capsys, monkeypatch):
    path = run / "config.toml"
    path.write_text(path.read_text().replace('effort = "fast"', 'effort = "normal"'))
    assert "config.toml has been changed since the run wrote it" in inspected(run, capsys)
    monkeypatch.chdir(run.parent)
    assert main(["train", "--config", "run/config.toml", "--out", "other", *OPTIONS]) == 0
    assert "run/config.toml has been changed since a run wrote it" in capsys.readouterr().err
    os.rename(run.parent / "data.jsonl", run.parent / "moved.jsonl")
    command = [word.replace("data.jsonl", "moved.jsonl") for word in train(run.parent)]
    assert main(command) == 0
    assert "config.toml has been changed since a run wrote it: left as it is" in capsys.readouterr().out
    assert 'effort = "normal"' in path.read_text()


def test_runs_of_older_versions_and_damaged_records_are_not_doubted(run, capsys):
    (run / REPORTS).write_bytes((run / REPORTS).read_bytes().replace(b"metrics", b"metrixs"))
    assert "P@1" in inspected(run, capsys)
    (run / REPORTS).unlink()
    assert "P@1" in inspected(run, capsys)


def test_a_report_whose_writer_was_killed_is_not_doubted(tmp_path):
    path = str(tmp_path / "metrics.json")
    with recorded(path):
        write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), recorded(path):
        write_text(path, "new")
        raise KeyboardInterrupt
    assert not changed(path)
    with recorded(path):
        write_text(path, "newer")
    (tmp_path / "metrics.json").write_text("other")
    assert changed(path)
    (tmp_path / "metrics.json").unlink()
    assert changed(path)


def test_overwriting_removes_the_record_too(run):
    assert main([*train(run.parent), "--overwrite"]) == 0
    assert not changed(str(run / "metrics.json")) and not changed(str(run / "config.toml"))
