"""A run's folder goes on with the run that is in it and with no other, and loses nothing by a command that is refused."""

import json
import random
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.cli import main
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.jobs import train
from sparse_xmc.app.run_folder import digest
from sparse_xmc.data import TokenCache, TokenInputs
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
SMALL = ["--lexical-fan-in", "4", "--embedding-dim", "8", "--fan-in", "4", "--min-df", "1", "--epochs", "2"]
SMALL += ["--batch-size", "16", "--no-progress", "--threads", "1", "--checkpoint-seconds", "inf"]


def write_texts(path, seed=0, rows=60):
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(rows):
            words = rng.sample(range(12), 4)
            text = " ".join(f"word{w}" for w in words)
            file.write(json.dumps({"text": text, "labels": [f"l{w}" for w in words if w < 6]}) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    write_texts(folder / "train.jsonl")
    write_texts(folder / "other.jsonl", seed=1)
    train = ["train", "--train", str(folder / "train.jsonl"), "--test", str(folder / "train.jsonl")]
    train += ["--valid", str(folder / "other.jsonl")]
    assert main([*train, *SMALL, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of a finished run; relative paths, so that its command works there."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "identity.json"
    path.write_text(path.read_text().replace(f"{finished}/", ""))
    return tmp_path / "copy"


COMMAND = ["train", "--train", "train.jsonl", "--test", "train.jsonl", "--valid", "other.jsonl"]
COMMAND += [*SMALL, "--out", "run"]


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(run, capsys, arguments, message):
    """The command ends with this one line and leaves the folder as it was."""
    before = contents(run / "run")
    capsys.readouterr()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(run / "run") == before


def test_the_same_command_goes_on(run, capsys):
    assert main(COMMAND) == 0
    assert "resumed at step 8 of 8" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["finished", "interrupted"])
@pytest.mark.parametrize("name", ["train.jsonl", "other.jsonl"])
@pytest.mark.parametrize("change", ["label", "word", "count", "row"])
def test_other_data_are_refused(run, capsys, state, name, change):
    if state == "interrupted":
        shutil.rmtree(run / "run" / "checkpoints" / "step-0000000008")
        shutil.rmtree(run / "run" / "model")
    path = run / name
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[0])
    if change == "label":
        row["labels"] = ["l5", "another"]
    else:
        row["text"] = {"word": "word0 word11", "count": row["text"] + " " + row["text"].split()[0], "row": "x"}[change]
    lines[0] = json.dumps(row) + "\n" if change != "row" else ""
    path.write_text("".join(lines))
    kind = "training" if name == "train.jsonl" else "validation"
    refused(run, capsys, COMMAND, f"the {kind} data have changed since the run in run: choose another --out")


def test_data_are_compared_for_dense_features_too(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    sp.save_npz(tmp_path / "y.npz", sp.csr_matrix((rng.random((30, 5)) < 0.4).astype(np.float32)))
    files = {"train": str(tmp_path / "x.npy"), "train_labels": str(tmp_path / "y.npz"), "out": str(tmp_path / "run")}
    config = TrainingConfig(**files, encoder="features", fan_in=3, epochs=1, progress=False)
    train(config, report=lambda text: None)
    x[7, 3] += 1
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="the training data have changed"):
        train(config, report=lambda text: None)


def test_a_run_of_unknown_data_is_refused(run, capsys):
    path = run / "run" / "identity.json"
    identity = json.loads(path.read_text())
    del identity["training data"]
    path.write_text(json.dumps(identity))
    refused(run, capsys, COMMAND, "does not tell which training data it had")
    path.unlink()
    refused(run, capsys, COMMAND, "run holds a run without identity.json: choose another --out")


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff"])
def test_a_damaged_identity_is_named(run, capsys, content):
    (run / "run" / "identity.json").write_bytes(content)
    refused(run, capsys, COMMAND, "identity.json is damaged")


def test_an_option_left_to_the_data_is_compared(run, capsys):
    at = COMMAND.index("--lexical-fan-in")
    without = COMMAND[:at] + COMMAND[at + 2 :]
    refused(run, capsys, without, "run holds a run with other options (lexical_fan_in)")
    assert main(COMMAND) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--train", "none.jsonl"], "none.jsonl: no such file"),
        (["--valid", "none.jsonl"], "none.jsonl: no such file"),
        (["--test", "none.jsonl"], "none.jsonl: no such file"),
        (["--head", "head_tail", "--fused"], "fused=true needs head='fixed_fan_in'"),
    ],
)
def test_overwrite_deletes_nothing_before_the_model_is_built(run, capsys, option, message):
    refused(run, capsys, [*COMMAND, "--overwrite", *option], message)
    assert main(COMMAND) == 0


def test_a_lost_best_model_is_explained(run, capsys):
    shutil.rmtree(run / "run" / "model")
    assert main(COMMAND) == 1
    error = capsys.readouterr().err
    assert "the best model of this run is lost" in error and "train anew with --overwrite" in error


def test_overwrite_begins_anew(run, capsys):
    write_texts(run / "train.jsonl", seed=2, rows=40)
    assert main([*COMMAND, "--overwrite", "--fan-in", "3"]) == 0
    assert "resumed" not in capsys.readouterr().out
    assert sorted(path.name for path in (run / "run" / "checkpoints").iterdir())[-1] == "step-0000000006"
    refused(run, capsys, COMMAND, "other options (fan_in)")


def test_a_refused_configuration_does_not_claim_the_folder(run, capsys):
    command = [*COMMAND[:-1], "new"]
    assert main([*command, "--head", "head_tail", "--fused"]) == 1
    assert main(command) == 0


@pytest.mark.parametrize("changed", ["tokens", "rows", "labels", "names"])
def test_digest_of_tokens(tmp_path, changed):
    def of(name, texts, targets, names):
        cache = TokenCache.build(tmp_path / name, texts, lambda chunk: chunk, 1000)
        return digest(TokenInputs(cache, 0), sp.csr_matrix(np.array(targets, dtype=np.float32)), names)

    parts = {"tokens": [[1, 2], [3]], "labels": [[1, 0], [0, 1]], "names": ["a", "b"]}
    other = {"tokens": [[1, 2], [4]], "rows": [[1], [2, 3]], "labels": [[1, 0], [1, 1]], "names": ["b", "a"]}
    assert of("one", *parts.values()) == of("two", *parts.values())
    parts["tokens" if changed == "rows" else changed] = other[changed]
    assert of("one", [[1, 2], [3]], [[1, 0], [0, 1]], ["a", "b"]) != of("three", *parts.values())
