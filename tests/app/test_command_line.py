"""The command line from files to files, on small data made here; failures are one line and lose nothing."""

import json
import random

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc.app import gradient_run, jobs
from sparse_xmc.app.cli import main, make_parser
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.config_file import load_toml, to_toml
from sparse_xmc.app.jobs import prediction
from sparse_xmc.app.jobs.evaluation import ranking
from sparse_xmc.distributed import RankFailure
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


def test_texts_stay_texts_whatever_their_first_line(run, tmp_path):
    (tmp_path / "texts.txt").write_text("2020 12 31\nword2 word4\n")
    out = tmp_path / "p.jsonl"
    arguments = ["predict", str(run / "a"), "--input", str(tmp_path / "texts.txt"), "--k", "2", "--out", str(out)]
    assert main([*arguments, "--no-progress"]) == 0
    assert set(json.loads(out.read_text().splitlines()[1])["labels"]) == {2, 4}


def test_empty_files(run, tmp_path, capsys):
    empty, out = tmp_path / "empty.jsonl", tmp_path / "p.jsonl"
    empty.write_text("")
    assert main(["predict", str(run / "a"), "--input", str(empty), "--out", str(out), "--no-progress"]) == 0
    assert out.read_text() == ""
    assert main(["evaluate", str(run / "a"), "--test", str(empty), "--no-progress"]) == 1
    assert "empty.jsonl: no rows to evaluate" in capsys.readouterr().err
    training = [
        "train",
        "--train",
        str(run / "train.jsonl"),
        "--valid",
        str(empty),
        "--out",
        str(tmp_path / "b"),
        *SMALL,
    ]
    assert main(training) == 1
    assert "empty.jsonl: no rows to validate on" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_predict_escapes_what_utf8_cannot_hold(run, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a word", "labels": ["half \\ud83d", "\u00e9"]}\n' * 4)
    command = ["train", "--train", str(tmp_path / "train.jsonl"), "--out", str(tmp_path / "run"), *SMALL]
    assert main([*command, "--fan-in", "2", "--epochs", "1"]) == 0
    arguments = ["predict", str(tmp_path / "run"), "--input", str(tmp_path / "train.jsonl"), "--no-progress"]
    assert main([*arguments, "--out", str(tmp_path / "out.jsonl")]) == 0
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)["labels"]) for line in lines] == [{"half \ud83d", "\u00e9"}] * 4
    assert "\u00e9" in lines[0]


def test_predict_leaves_nothing_half_done(run, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction.json, "dumps", lambda *args, **options: 1 / 0)
    arguments = ["predict", str(run / "a"), "--input", str(run / "test.jsonl"), "--out", str(tmp_path / "p.jsonl")]
    with pytest.raises(ZeroDivisionError):
        main([*arguments, "--no-progress"])
    assert list(tmp_path.iterdir()) == []


def test_options_that_this_kind_of_data_cannot_follow(run, capsys, tmp_path):
    (tmp_path / "x.txt").write_text("2 5 3\n0,1 1:1 2:3\n2 3:1 4:2\n")
    (tmp_path / "t_raw_texts.txt").write_text("some words\nmore words\n")
    (tmp_path / "t_labels.txt").write_text("1\n2\n")
    texts, features = str(tmp_path / "t_raw_texts.txt"), str(tmp_path / "x.txt")
    for file, option in ((texts, "text_field"), (features, "label_field"), (features, "max_ngram")):
        value = "2" if option == "max_ngram" else "a"
        flag = "--" + option.replace("_", "-")
        assert main(["train", "--train", file, flag, value, "--out", str(tmp_path / "r"), "--no-progress"]) == 1
        assert f"{option}=" in (error := capsys.readouterr().err) and "has no effect" in error
    assert not (tmp_path / "r").exists()


def test_a_picture_costs_no_result(run, capsys, monkeypatch, tmp_path):
    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gradient_run, "draw_curves", fails)
    arguments = ["train", "--train", str(run / "train.jsonl"), "--test", str(run / "test.jsonl"), *SMALL]
    assert main([*arguments, "--fan-in", "8", "--epochs", "1", "--out", str(tmp_path / "r")]) == 0
    assert "no curves.png" in capsys.readouterr().out
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["rows"] == 101


def test_a_filter_may_exclude_any_number():
    class Ranked:
        """Ranks 100 labels in their order, three rows at a time."""

        config = TrainingConfig(progress=False)

        def predict(self, inputs, k, progress):
            for rows in (3, 3):
                yield np.tile(np.linspace(1, 0, 100)[:k], (rows, 1)), np.tile(np.arange(100)[:k], (rows, 1))

        def estimates(self, scores):
            return scores

    excluded = np.zeros((6, 100), dtype=np.float32)
    excluded[0, :90] = excluded[4, :98] = excluded[5, 1] = 1
    top, estimates = ranking(Ranked(), None, sp.csr_matrix(excluded))
    assert np.array_equal(np.isnan(estimates), top < 0)
    assert np.allclose(estimates[top >= 0], 1 - top[top >= 0] / 99)
    assert top.tolist()[0] == [90, 91, 92, 93, 94]
    assert top.tolist()[1] == [0, 1, 2, 3, 4]
    assert top.tolist()[4:] == [[98, 99, -1, -1, -1], [0, 2, 3, 4, 5]]


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
    "terms": ["--embedding-dim", "0", "--intermediate", "0"],
    "dense": ["--head", "dense", "--fan-in", "64", "--lexical-fan-in", "0"],
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


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_features(tmp_path, ending):
    """The same numbers, dense and sparse."""
    rng = np.random.default_rng(0)
    y = sp.csr_matrix((rng.random((200, 10)) < 0.2).astype(np.float32))
    x = (y @ rng.standard_normal((10, 16))).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    sp.save_npz(tmp_path / "x.npz", sp.csr_matrix(x))
    sp.save_npz(tmp_path / "y.npz", y)
    features, labels = str(tmp_path / f"x.{ending}"), str(tmp_path / "y.npz")
    arguments = ["train", "--train", features, "--train-labels", labels, "--encoder", "features"]
    arguments += [
        "--test",
        features,
        "--test-labels",
        labels,
        "--intermediate",
        "32",
        "--no-progress",
        "--threads",
        "1",
        "--fan-in",
        "8",
    ]
    assert main([*arguments, "--epochs", "10", "--batch-size", "20", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["R@5"] > 80


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


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "foo"], "device must be auto, cpu, cuda or cuda:N, got 'foo'"),
        (["--device", "cuda:99"], "device='cuda:99' is not there: torch sees"),
        (["--threads", "-1"], "threads must lie in [0, 1024], got -1"),
        (["--threads", "100000"], "threads must lie in [0, 1024], got 100000"),
    ],
)
def test_device_and_threads_are_checked(run, capsys, tmp_path, command, options, message):
    arguments = {
        "train": ["--train", str(run / "train.jsonl"), "--out", str(tmp_path / "new")],
        "evaluate": [str(run / "a"), "--test", str(run / "test.jsonl")],
        "predict": [str(run / "a"), "--input", str(run / "test.jsonl"), "--out", str(tmp_path / "p.jsonl")],
    }[command]
    assert main([command, *arguments, *options]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_k_is_at_least_one(run, capsys, tmp_path):
    arguments = ["predict", str(run / "a"), "--input", str(run / "test.jsonl"), "--out", str(tmp_path / "p.jsonl")]
    assert main([*arguments, "--k", "0"]) == 1
    assert "k must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError(), 1, "out of memory (no more to be had)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), 1, "out of memory (CUDA out of memory. Tried)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte"), 1, "out of memory (DefaultCPU"),
        (RankFailure("rank 0 of 2: top-k failed"), 1, "rank 0 of 2: top-k failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_what_ends_a_command_in_one_line(monkeypatch, capsys, command, error, status, message):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(jobs, command, fails)
    assert main({"train": ["train"], "evaluate": ["evaluate", "run", "--test", "x"]}[command]) == status
    said = capsys.readouterr().err
    assert said.startswith(f"sparse_xmc: {message}") and said.count("\n") == 1
    resumes = command == "train" and not isinstance(error, RankFailure)
    assert ("the same command resumes from the last checkpoint" in said) == resumes


def test_programming_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(jobs, "train", lambda *args, **options: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):
        main(["train"])


def test_a_damaged_model_says_so(run, capsys, tmp_path):
    import shutil

    shutil.copytree(run / "a", tmp_path / "a")
    file = tmp_path / "a" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    assert main(["evaluate", str(tmp_path / "a"), "--test", str(run / "test.jsonl")]) == 1
    assert "model.safetensors is truncated" in capsys.readouterr().err


def test_a_full_disk_keeps_the_last_checkpoint(run, capsys, monkeypatch):
    import errno

    from sparse_xmc.storage import checkpoint

    arguments = ["train", "--train", str(run / "train.jsonl"), *SMALL, "--fan-in", "8", "--epochs", "4"]
    arguments += ["--checkpoint-seconds", "inf", "--out", str(run / "full")]
    save, calls = checkpoint.save_tensors, []

    def nearly_full(path, tensors, shards, **options):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, tensors, shards, **options)

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


def test_a_list_may_be_given_in_parts():
    options = make_parser().parse_args(["train", "--text-field", "title,header", "--text-field", "body"])
    assert options.text_field == ["title", "header", "body"]


def test_memory_and_help(capsys):
    assert main(["memory", "--labels", "670091", "--fan-in", "32"]) == 0
    assert "GiB" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        make_parser().parse_args(["train", "--help"])
    assert "--text-field" in capsys.readouterr().out
