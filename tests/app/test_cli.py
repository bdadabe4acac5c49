"""The command line around its jobs: start, words, streams; what it costs to ask for help."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

import sparse_xmc
from sparse_xmc.app import first_use, jobs
from sparse_xmc.app.cli import main, make_parser
from tests.app.test_command_line import SMALL, run  # noqa: F401
from tests.conftest import INTERPRETING

trained = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"sparse-xmc {sparse_xmc.__version__}\n"


def test_flags_are_not_abbreviated(capsys):
    for arguments in (["train", "--epoch", "1"], ["predict", "r", "--inp", "x"], ["--vers"]):
        with pytest.raises(SystemExit) as ended:
            make_parser().parse_args(arguments)
        assert ended.value.code == 2
    assert "unrecognized arguments: --epoch 1" in capsys.readouterr().err


def test_help_loads_neither_torch_nor_numpy():
    code = "import sys; from sparse_xmc.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'scipy', 'numba') if m in sys.modules])"
    for command in ([], ["train"], ["predict"]):
        done = python("-c", code, *command, "--help")
        assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stderr


def test_every_command_has_a_job():
    actions = [action for action in make_parser()._actions if action.choices and action.dest == "command"]
    assert set(actions[0].choices) == {"train", "evaluate", "predict", "inspect", "convert", "warmup", "memory"}


@pytest.mark.parametrize("package", ["scipy", "sklearn"])
def test_a_missing_package_names_its_extra(tmp_path, package):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {package!r}:\n"
        f"            raise ModuleNotFoundError('No module named ' + repr({package!r}), name={package!r})\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    (tmp_path / "a.jsonl").write_text('{"text": "some words", "labels": ["a"]}\n' * 4)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    train = ["-m", "sparse_xmc", "train", "--train", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "run")]
    train += ["--solver", "gradient"] * (package == "sklearn")  # whose embeddings start from its SVD
    done = python(*train, env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"No module named '{package}'" in done.stderr and "pip install '.[train]' in a checkout" in done.stderr


def test_only_the_first_compiled_kernel_is_announced(capsys):
    from numba import njit

    def kernel(x):
        return x + 1

    kernel.__module__ = "sparse_xmc.ops.cpu_kernels.made_up"
    with first_use.announcing_compilation():
        njit(lambda x: x)(1)
        assert capsys.readouterr().err == ""
        njit(kernel)(1), njit(kernel)(1.0)
    njit(kernel)(1j)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "compiling kernels, once on this machine" in said


@trained
def test_predictions_on_standard_output(run, capsys):  # noqa: F811
    arguments = ["predict", str(run / "a"), "--input", str(run / "test.jsonl"), "--no-progress"]
    assert main([*arguments, "--k", "2"]) == 0
    first = capsys.readouterr()
    assert first.err.splitlines()[-1] == "101 rows written to standard output"
    rows = [json.loads(line) for line in first.out.splitlines()]
    assert len(rows) == 101 and all(len(row["labels"]) == 2 for row in rows)
    assert main([*arguments, "--k", "2", "--format", "csv", "--out", "-"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(int(r["row"]), r["label"], float(r["score"])) for r in table] == [
        (i, str(label), score)
        for i, row in enumerate(rows)
        for label, score in zip(row["labels"], row["scores"], strict=True)
    ]


@trained
def test_a_threshold_leaves_labels_out(run, capsys):  # noqa: F811
    arguments = ["predict", str(run / "a"), "--input", str(run / "test.jsonl"), "--no-progress"]
    assert main([*arguments, "--threshold", "0.5"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scores = [score for row in rows for score in row["scores"]]
    assert len(rows) == 101 and scores and min(scores) >= 0.5 and len(scores) < 5 * 101
    assert main([*arguments, "--threshold", "1.5"]) == 1
    assert "threshold must lie in [0, 1], got 1.5" in capsys.readouterr().err


@trained
def test_f1_at_a_threshold(run, capsys):  # noqa: F811
    arguments = ["evaluate", str(run / "a"), "--test", str(run / "test.jsonl"), "--no-progress"]
    values = []
    for threshold in ("0.5", "1"):
        assert main([*arguments, "--threshold", threshold]) == 0
        assert f"at {threshold}: micro P" in capsys.readouterr().out
        values.append(json.loads((run / "a" / "metrics.json").read_text())["micro F1"])
    assert values[0] > 60 > values[1]
    assert main([*arguments, "--threshold", "2"]) == 1
    assert main(arguments) == 0 and "micro" not in capsys.readouterr().out


@trained
def test_a_reader_that_leaves_early_is_no_error(run):  # noqa: F811
    command = (
        f"{sys.executable} -m sparse_xmc predict {run / 'a'} --input {run / 'test.jsonl'} --no-progress --threads 1"
    )
    done = subprocess.run(f"{command} | head -c 1", shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "{" and "Traceback" not in done.stderr and "Broken" not in done.stderr


@trained
def test_inspect_says_what_a_run_is(run, capsys):  # noqa: F811
    assert main(["inspect", str(run / "a")]) == 0
    said = capsys.readouterr().out
    assert "encoder bow, head fixed_fan_in of 8 connections per label" in said
    assert "labels: 12" in said and "trained on 400 rows" in said and "P@1" in said and "checkpoints: 2" in said
    total = sum(path.stat().st_size for path in (run / "a" / "model").iterdir())
    assert f"bytes: {total:,} on disk" in said
    assert main(["inspect", str(run)]) == 1
    assert "holds no trained model" in capsys.readouterr().err


@trained
@pytest.mark.parametrize("form", ["csr", "dense"])
def test_converted_weights_score_as_the_model_does(run, tmp_path, form):  # noqa: F811
    out = tmp_path / "w"
    assert main(["convert", str(run / "a"), "--out", str(out), "--format", form]) == 0
    weights = {
        n: sp.load_npz(out / f"{n}.npz") if form == "csr" else np.load(out / f"{n}.npy") for n in ("head", "lexical")
    }
    labels, terms = (json.loads((out / f"{name}.json").read_text()) for name in ("labels", "terms"))
    model = sparse_xmc.load(run / "a")
    x = np.zeros(len(terms), np.float32)
    for word in ("word2", "word4"):
        x[terms.index(word)] = 1
    x *= np.load(out / "idf.npy")
    x /= np.linalg.norm(x)
    hidden = x @ np.load(out / "encoder.weight.npy") + np.load(out / "encoder.bias.npy")
    hidden = np.maximum(np.load(out / "penultimate.0.weight.npy") @ hidden + np.load(out / "penultimate.0.bias.npy"), 0)
    logits = weights["head"] @ hidden + np.load(out / "head.bias.npy")
    margins = weights["lexical"] @ x + np.load(out / "lexical.bias.npy")
    expected = (1 / (1 + np.exp(-logits)) + (margins + 1) / 2) / 2
    assert labels == model.labels
    np.testing.assert_allclose(model.predict_proba(["word2 word4"])[0], expected.clip(0, 1), atol=1e-5)
    assert main(["convert", str(run / "a"), "--out", str(out)]) == 1


@trained
def test_warmup_leaves_nothing_to_compile(capsys):
    assert main(["warmup", "--no-progress"]) == 0
    assert "kernels ready" in capsys.readouterr().out
    assert jobs.warmup(progress=False, report=lambda line: None) == 0


@trained
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_training_without_a_terminal_reports_progress(tmp_path, monkeypatch, capsys, run):  # noqa: F811
    from sparse_xmc import _progress

    monkeypatch.setattr(_progress, "EVERY", 0.0)
    arguments = ["train", "--train", str(run / "train.jsonl"), *[a for a in SMALL if a != "--no-progress"]]
    assert main([*arguments, "--fan-in", "8", "--epochs", "1", "--out", str(tmp_path / "r")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("reading train.jsonl: ") for line in lines)
    assert any(line.startswith("training: 4 of 4 steps (100 %), ") and "loss" in line for line in lines)
