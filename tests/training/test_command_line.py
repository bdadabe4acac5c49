"""The command line from files to files, on small data made here; failures are one line and lose nothing."""

import json
import random

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.cli import main, make_parser
from sparse_xmc.training.config import TrainingConfig, load_toml, to_toml
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
SMALL = ["--embedding-dim", "16", "--intermediate", "32", "--min-df", "1", "--no-progress", "--threads", "1"]


def write_texts(path, rows, seed):
    """Texts of words; word number w makes label w (an integer for even w, a string for odd w) true."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(rows):
            words = rng.sample(range(24), 6)
            labels = [w if w % 2 == 0 else f"label {w}" for w in words if w < 12]
            file.write(json.dumps({"text": " ".join(f"word{w}" for w in words), "labels": labels}) + "\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_texts(folder / "train.jsonl", 400, 0)
    write_texts(folder / "test.jsonl", 100, 1)
    with (folder / "test.jsonl").open("a") as file:
        file.write(json.dumps({"text": "", "labels": ["never seen"]}) + "\n")
    arguments = ["train", "--train", str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl")]
    arguments += ["--text-field", "text", "--label-field", "labels", "--encoder", "bow", "--fan-in", "8"]
    assert main([*arguments, "--epochs", "8", "--batch-size", "32", *SMALL, "--out", str(folder / "a")]) == 0
    return folder


def test_train_writes_everything_and_learns(run):
    metrics = json.loads((run / "a" / "metrics.json").read_text())
    assert metrics["P@1"] > 80
    assert {"P@3", "P@5", "nDCG@5", "PSP@1", "R@5", "coverage@5"} <= metrics.keys()
    assert metrics["unseen label occurrences"] == 1
    assert metrics["rows"] == 101
    assert (run / "a" / "curves.png").exists()
    saved = TrainingConfig(**load_toml(run / "a" / "config.toml"))
    assert (saved.fan_in, saved.epochs, saved.text_field) == (8, 8, ["text"])


def test_evaluate_repeats_the_figures(run, capsys):
    before = json.loads((run / "a" / "metrics.json").read_text())
    (run / "a" / "metrics.json").unlink()
    assert main(["evaluate", str(run / "a"), "--test", str(run / "test.jsonl"), "--no-progress"]) == 0
    assert json.loads((run / "a" / "metrics.json").read_text()) == before
    assert f"P@1 {before['P@1']:6.2f}" in capsys.readouterr().out


def test_predict_speaks_the_users_labels(run):
    (run / "texts.jsonl").write_text('{"text": "word2 word3 word4 word20"}\n{"text": ""}\n')
    out = run / "predictions.jsonl"
    arguments = ["predict", str(run / "a"), "--input", str(run / "texts.jsonl"), "--k", "3", "--out", str(out)]
    assert main([*arguments, "--no-progress"]) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert set(map(str, first["labels"])) == {"2", "label 3", "4"}
    assert {type(label) for label in first["labels"]} == {int, str}
    assert first["scores"] == sorted(first["scores"], reverse=True)
    assert len(second["labels"]) == 3


def test_a_filter_removes_pairs(run):
    (run / "filter.txt").write_text("".join(f"{row} {label}\n" for row in range(101) for label in range(0, 12, 2)))
    arguments = ["evaluate", str(run / "a"), "--test", str(run / "test.jsonl"), "--no-progress"]
    assert main(arguments) == 0
    before = json.loads((run / "a" / "metrics.json").read_text())["P@3"]
    assert main([*arguments, "--test-filter", str(run / "filter.txt")]) == 0
    assert json.loads((run / "a" / "metrics.json").read_text())["P@3"] < before
    assert main(arguments) == 0


def test_the_same_command_again_only_evaluates(run, capsys):
    arguments = ["train", "--config", str(run / "a" / "config.toml"), "--no-progress"]
    assert main(arguments) == 0
    assert "resumed at step 104 of 104" in capsys.readouterr().out
    assert main([*arguments, "--fan-in", "4"]) == 1
    assert "holds a run with other options (fan_in)" in capsys.readouterr().err


VARIANTS = {
    "terms": ["--embedding-dim", "0"],
    "dense": ["--head", "dense", "--lexical-fan-in", "0"],
    "head_tail": ["--head", "head_tail", "--head-share", "0.3", "--auxiliary-weight", "0.4"],
    "groups": ["--group-size", "4", "--grouping", "clustered", "--rewire-fraction", "0.2", "--rewire-interval", "5"],
    "fused": ["--fused", "--head-lr", "0.5", "--loss", "squared_hinge", "--accumulate", "1"],
    "amp": ["--amp", "bf16", "--accumulate", "2", "--intermediate", "0", "--topology", "random"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(run, name):
    arguments = ["train", "--train", str(run / "train.jsonl"), "--test", str(run / "test.jsonl"), *SMALL]
    out = run / name
    more = ["--fan-in", "8", "--epochs", "6", "--batch-size", "32", "--valid", str(run / "test.jsonl")]
    assert main([*arguments, *more, *VARIANTS[name], "--out", str(out)]) == 0
    assert json.loads((out / "metrics.json").read_text())["P@1"] > 55
    assert main(["evaluate", str(out), "--test", str(run / "test.jsonl"), "--no-progress"]) == 0


def test_dense_features(run):
    rng = np.random.default_rng(0)
    y = sp.csr_matrix((rng.random((200, 10)) < 0.2).astype(np.float32))
    np.save(run / "x.npy", (y @ rng.standard_normal((10, 16))).astype(np.float32))
    sp.save_npz(run / "y.npz", y)
    arguments = ["train", "--train", str(run / "x.npy"), "--train-labels", str(run / "y.npz"), "--encoder", "features"]
    arguments += ["--test", str(run / "x.npy"), "--test-labels", str(run / "y.npz"), *SMALL, "--fan-in", "8"]
    assert main([*arguments, "--epochs", "10", "--batch-size", "20", "--out", str(run / "features")]) == 0
    assert json.loads((run / "features" / "metrics.json").read_text())["R@5"] > 80


def test_failures_are_one_line(run, capsys, monkeypatch):
    def fails(*arguments):
        assert main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert error.startswith("sparse_xmc: ")
        assert error.count("\n") == 1
        return error

    (run / "broken.jsonl").write_text('{"text": "a", "labels": [1]}\n{"text": "b"\n')
    out = ["--out", str(run / "b"), *SMALL]
    assert "broken.jsonl:2: not valid JSON" in fails("train", "--train", str(run / "broken.jsonl"), *out)
    assert "no such file" in fails("train", "--train", str(run / "none.jsonl"), *out)
    (run / "empty.jsonl").write_text("")
    assert "no tf-idf terms" in fails("train", "--train", str(run / "empty.jsonl"), *out)
    (run / "bare.jsonl").write_text('{"text": "some words", "labels": []}\n')
    assert "no rows with labels" in fails("train", "--train", str(run / "bare.jsonl"), *out)
    assert "holds no trained model" in fails("evaluate", str(run / "b"), "--test", str(run / "test.jsonl"))
    (run / "bad.toml").write_text("fan_on = 3\n")
    assert "unknown option 'fan_on'" in fails("train", "--config", str(run / "bad.toml"))
    (run / "bad.toml").write_text('[training]\nepochs = "many"\n')
    assert "option 'epochs' must be int" in fails("train", "--config", str(run / "bad.toml"))


def test_a_damaged_model_says_so(run, capsys, tmp_path):
    import shutil

    shutil.copytree(run / "a", tmp_path / "a")
    file = tmp_path / "a" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    assert main(["evaluate", str(tmp_path / "a"), "--test", str(run / "test.jsonl")]) == 1
    assert "model.safetensors is truncated" in capsys.readouterr().err


def test_a_full_disk_keeps_the_last_checkpoint(run, capsys, monkeypatch):
    import errno

    from sparse_xmc.training import checkpoint

    arguments = ["train", "--train", str(run / "train.jsonl"), *SMALL, "--fan-in", "8", "--epochs", "4"]
    arguments += ["--out", str(run / "full")]
    save, calls = checkpoint.save_tensors, []

    def nearly_full(path, tensors, shards):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, tensors, shards)

    monkeypatch.setattr(checkpoint, "save_tensors", nearly_full)
    assert main(arguments) == 1
    assert "no space left on the disk; checkpoints written before are intact" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments) == 0
    assert "resumed at step 4 of 16" in capsys.readouterr().out


def test_configuration_round_trip(tmp_path):
    config = TrainingConfig(train="a", out="b", text_field=["x", "y"], valid=None, progress=False, dropout=0.1)
    (tmp_path / "c.toml").write_text(to_toml(config))
    assert TrainingConfig(**load_toml(tmp_path / "c.toml")) == config
    with pytest.raises(ValueError, match="loss must be one of"):
        TrainingConfig(loss="mse")


def test_memory_and_help(capsys):
    assert main(["memory", "--labels", "670091", "--fan-in", "32"]) == 0
    assert "GiB" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        make_parser().parse_args(["train", "--help"])
    assert "--text-field" in capsys.readouterr().out
