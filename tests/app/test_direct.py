"""Runs of the direct solver through the command line."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.model import TermModel
from sparse_xmc.app.direct.options import GRADIENT, settled
from sparse_xmc.app.direct.stages import StageFolder
from sparse_xmc.app.jobs import convert, train
from sparse_xmc.data import DataError, SparseInputs, open_split
from sparse_xmc.solver import choice, plan
from sparse_xmc.solver.head import Block, TermHead
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="solves with the CPU kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("direct"), random.Random(0)
    for name, rows in (("train", 500), ("test", 60)):
        with open(path / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(rows):
                labels = rng.sample(range(15), rng.choice((1, 2)))
                words = [f"w{label}x{rng.randrange(5)}" for label in labels for _ in range(3)] + ["all"]
                file.write(json.dumps({"text": " ".join(words), "labels": [f"L{label}" for label in labels]}) + "\n")
    return path


def config(folder, out, **options):
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    return TrainingConfig(**files, out=str(folder / out), progress=False, **options)


def test_default_run_solves_says_what_it_chose_and_leaves_no_stages(folder):
    lines = []
    metrics = train(config(folder, "a"), report=lines.append)
    assert metrics["P@1"] > 90
    assert [line.split()[0] for line in lines if line.startswith(("chosen", "tried", "refitted"))] == [
        "chosen", "tried", "refitted",
    ]  # fmt: skip
    assert not os.path.exists(folder / "a" / "checkpoints")
    again = []
    assert train(config(folder, "a"), report=again.append)["P@1"] == metrics["P@1"]
    assert any("the run is finished" in line for line in again)
    model = Bundle.load(folder / "a").model
    assert isinstance(model, TermModel) and len(model.bias) == 15


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(("rows", "first"), [(0, "shortlists of 400 rows"), (1 << 25, "topology by 400 rows")])
def test_killed_run_goes_on_with_the_next_stage_to_the_same_model(folder, monkeypatch, rows, first):
    monkeypatch.setattr(plan, "_WHOLE_ROWS", rows)
    train(config(folder, f"whole{rows}", keep_stages=True), report=lambda line: None)
    made, call = [], StageFolder.__call__

    def stop(self, name, work):
        def once():
            made.append(name)
            if len(made) == 3:
                raise _Killed
            return work()

        return call(self, name, once)

    monkeypatch.setattr(StageFolder, "__call__", stop)
    with pytest.raises(_Killed):
        train(config(folder, f"killed{rows}"), report=lambda line: None)
    lines = []
    train(config(folder, f"killed{rows}"), report=lines.append)
    assert any(f"resumed behind stage {first!r}" in line for line in lines)
    assert made.count(first) == 1
    whole, killed = (Bundle.load(folder / name).model.state_dict() for name in (f"whole{rows}", f"killed{rows}"))
    assert all(np.array_equal(whole[name], killed[name]) for name in whole)
    assert os.path.isdir(folder / f"whole{rows}" / "checkpoints")


def test_options_of_gradients_choose_gradients_and_are_refused_beside_the_direct_solver(folder, tmp_path):
    assert settled(config(folder, "none")).solver == "direct"
    assert settled(config(folder, "none", epochs=2)).solver == "gradient"
    assert settled(TrainingConfig(encoder="features")).solver == "auto"
    with pytest.raises(ValueError, match="epochs=2 has no effect with solver='direct'"):
        config(folder, "none", solver="direct", epochs=2)
    with pytest.raises(ValueError, match="solver='direct' runs in one process, got 2 ranks"):
        settled(config(folder, "none", solver="direct"), 2)
    with pytest.raises(ValueError, match="tail"):
        config(folder, "none", solver="gradient", tail=0.5)
    (tmp_path / "identity.json").write_text('{"epochs": 6}')
    assert settled(TrainingConfig(out=str(tmp_path))).solver == "gradient"
    assert set(GRADIENT) <= {name for name in TrainingConfig.__dataclass_fields__}


@pytest.mark.parametrize("options", [{"effort": "fast"}, {"effort": "best", "tail": 1.0}, {"fan_in": 7}])
def test_options_of_the_solver(folder, options):
    train(config(folder, f"{options}", **options), report=lambda line: None)
    model = Bundle.load(folder / f"{options}").model
    if "fan_in" in options:
        assert {indices.shape[1] for indices, _ in model.blocks} == {7}


def test_memory_that_is_too_little_is_refused_before_the_folder_is_made(folder):
    with pytest.raises(ValueError, match="head memory of 50 bytes is too little for 15 labels: at least 180"):
        train(config(folder, "little", head_memory=50), report=lambda line: None)
    assert not os.path.exists(folder / "little")


def test_blocks_score_what_their_arrays_say():
    rng = np.random.default_rng(0)
    blocks = []
    for labels, fan_in in ((np.arange(3), 5), (np.arange(3, 9), 2)):
        indices = np.stack([rng.choice(11, fan_in, replace=False) for _ in labels]).astype(np.int32)
        blocks.append(Block(labels, indices, rng.integers(-3, 4, indices.shape).astype(np.float32)))
    model = TermModel.from_solution(TermHead(blocks[::-1], rng.integers(-2, 3, 9).astype(np.float32)), 11)
    x = rng.integers(0, 3, (6, 11)).astype(np.float32)
    inputs, rows = SparseInputs(sp.csr_matrix(x)), np.arange(6)
    dense = np.zeros((9, 11), np.float32)
    for block in blocks:
        for label, indices, weight in zip(block.labels, block.indices, block.weight, strict=True):
            dense[label, indices] = weight
    expected = x @ dense.T + model.bias
    np.testing.assert_array_equal(model.matrix().toarray(), dense)
    np.testing.assert_array_equal(model.scores(inputs, rows), expected)
    scores, labels = model.topk(inputs, rows, 4)
    np.testing.assert_array_equal(scores, -np.sort(-expected, axis=1)[:, :4])
    np.testing.assert_array_equal(np.take_along_axis(expected, labels, axis=1), scores)
    again = TermModel.from_weights(11, 9, model.state_dict())
    np.testing.assert_array_equal(again.matrix().toarray(), dense)


def _weights():
    return {
        "head.indices_0": np.array([[0, 2], [1, 0]], np.uint16),
        "head.weight_0": np.ones((2, 2), np.float16),
        "head.bias": np.zeros(2, np.float32),
    }


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("head.indices_0", np.array([[0, 2], [1, 1]], np.uint16), r"indices_0\[1\] holds 1 twice"),
        ("head.indices_0", np.array([[0, 2], [3, 1]], np.uint16), r"indices_0\[1\] holds 3, outside \[0, 3\)"),
        ("head.indices_0", np.array([[0, 2], [1, 0]], np.int32), "must be uint16"),
        ("head.indices_0", np.array([[0, 1, 2, 0]] * 2, np.uint16), "1 to 3 connections of each"),
        ("head.weight_0", np.ones((2, 3), np.float16), "got indices .* weights"),
        ("head.weight_0", np.ones(2, np.float16), "of 2 dimensions"),
        ("head.bias", np.zeros(3, np.float32), "the blocks hold 2 labels, the bias 3"),
        ("head.more", np.zeros(3, np.float32), "are blocks, a bias and clusters"),
    ],
)
def test_weights_of_another_model_are_refused(name, array, message):
    with pytest.raises(ValueError, match=message):
        TermModel.from_weights(3, 2, {**_weights(), name: array})
    with pytest.raises(ValueError, match="holds 2 labels, of 5"):
        TermModel.from_weights(3, 5, _weights())


def _level():
    return {
        "head.clusters_0_indices": np.array([[0, 1], [2, 0]], np.uint16),
        "head.clusters_0_weight": np.array([[1, 2], [3, -1]], np.float16),
        "head.clusters_0_bias": np.array([-1, 1], np.float32),
        "head.clusters_0_of": np.array([1, 0], np.uint16),
        "head.clusters_0_share": np.array([2, 0.5], np.float16),
    }


def test_clusters_in_front_are_scored_stored_and_converted():
    x = np.array([[1, 0, 0], [0, 0.5, 0], [0, 0, 0.25], [0, 0, 0]], np.float32)
    inputs, rows = SparseInputs(sp.csr_matrix(x)), np.arange(4)
    model = TermModel.from_weights(3, 2, {**_weights(), **_level()})
    z = x @ np.array([[1, 2, 0], [-1, 0, 3]], np.float32).T + [-1, 1]
    labels = x @ np.array([[1, 0, 1], [1, 1, 0]], np.float32).T
    expected = labels - np.array([2, 0.5]) * np.maximum(0, 1 - z[:, [1, 0]]) ** 2
    np.testing.assert_allclose(model.scores(inputs, rows), expected)
    scores, best = model.topk(inputs, rows, 2)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1))
    np.testing.assert_allclose(np.take_along_axis(expected, best, axis=1), scores)
    again = TermModel.from_solution(model.solution(), 3).state_dict()
    assert again.keys() == model.state_dict().keys() == {**_weights(), **_level()}.keys()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("head.clusters_0_of", np.array([2, 0], np.uint16), "clusters_0_of holds 2, of 2 clusters"),
        ("head.clusters_0_of", np.array([1], np.uint16), r"clusters_0_of must have the shape \[2\], has \[1\]"),
        ("head.clusters_0_share", np.zeros(2, np.float32), "clusters_0_share must be float16"),
        ("head.clusters_0_bias", np.zeros(1, np.float32), "clusters_0_bias must have the shape"),
        ("head.clusters_0_indices", np.array([[0, 0], [2, 0]], np.uint16), r"clusters_0_indices\[0\] holds 0 twice"),
        ("head.clusters_0_weight", None, "lack head.clusters_0_weight"),
        ("head.clusters_1_bias", np.zeros(1, np.float32), "are blocks, a bias and clusters"),
    ],
)
def test_damaged_clusters_are_refused(name, array, message):
    weights = {**_weights(), **_level(), name: array}
    if array is None:
        del weights[name]
    with pytest.raises(ValueError, match=message):
        TermModel.from_weights(3, 2, weights)


@pytest.fixture
def listed(monkeypatch):
    """No split is small enough for every row to be an example of every label."""
    monkeypatch.setattr(plan, "_WHOLE_ROWS", 0)


def test_a_run_that_takes_levels_predicts_converts_and_learns_new_labels(folder, tmp_path, listed, monkeypatch):
    monkeypatch.setattr(choice, "_WORTH", -1e9)
    monkeypatch.setitem(plan._FURTHER, "normal", -1e9)
    lines = []
    metrics = train(config(folder, "levels", min_df=1), report=lines.append)
    assert metrics["P@1"] > 90 and any("clusters in front" in line for line in lines if line.startswith("chosen"))
    bundle = Bundle.load(folder / "levels")
    assert len(bundle.model.levels) == 2
    convert(str(folder / "levels"), str(tmp_path / "csr"), report=lambda line: None)
    files = {name: np.load(tmp_path / "csr" / f"clusters_1.{name}.npy") for name in ("bias", "of", "share")}
    np.testing.assert_array_equal(files["of"], bundle.model.levels[1].of)
    assert sp.load_npz(tmp_path / "csr" / "clusters_1.npz").shape == (len(files["bias"]), bundle.num_features)
    new = tmp_path / "new.jsonl"
    new.write_text(
        "".join(json.dumps({"text": f"late words {i % 3}", "labels": ["LATE"]}) + "\n" for i in range(6))
        + (folder / "train.jsonl").read_text()
    )
    options = {"train": str(new), "test": str(folder / "test.jsonl"), "from_": str(folder / "levels")}
    train(TrainingConfig(**options, out=str(tmp_path / "more"), min_df=1, progress=False), report=lambda line: None)
    later = Bundle.load(tmp_path / "more")
    assert len(later.vocabulary) == 16 and [level.share[15] for level in later.model.levels] == [0, 0]
    inputs, _ = later.preparation.transform(open_split(str(new)))
    assert (later.model.topk(inputs, np.arange(6), 1)[1] == 15).all()


_COMMANDS = """
import sys
from sparse_xmc.app.cli import main
for arguments in {commands}:
    assert main(arguments) == 0
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(loaded & {{"torch", "sklearn", "pandas", "transformers", "matplotlib"}}))
"""


def test_training_evaluating_and_predicting_load_neither_torch_nor_scikit_learn(folder, tmp_path):
    train_file, test_file, run = str(folder / "train.jsonl"), str(folder / "test.jsonl"), str(tmp_path / "run")
    commands = [
        ["train", "--train", train_file, "--test", test_file, "--out", run, "--no-progress", "--threads", "2"],
        ["evaluate", run, "--test", test_file, "--no-progress"],
        ["predict", run, "--input", test_file, "--out", str(tmp_path / "out.jsonl"), "--no-progress"],
        ["inspect", run],
        ["convert", run, "--out", str(tmp_path / "csr")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS.format(commands=commands)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "head of 15 labels with " in done.stdout


ODD = {
    "one label": [("a{i} b", ["x"])] * 40,
    "few rows": [("aa bb", ["x"]), ("bb cc", ["y"]), ("cc aa", ["x"])],
    "rows without a term": [("", ["x"]), ("aa b{i}", ["y"]), ("aa", ["x", "y"])] * 20,
    "labels without a term": [("u{i}", ["rare{i}"]), ("aa b{i}", ["x"]), ("aa", ["y"])] * 20,
    "rows without labels": [("aa bb", []), ("aa b{i}", ["x"]), ("bb", ["y"])] * 20,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("effort", ["normal", "best"])
@pytest.mark.parametrize("name", ODD)
def test_odd_rows_are_solved_without_a_warning(tmp_path, name, effort):
    with open(tmp_path / "odd.jsonl", "w", encoding="utf-8") as file:
        for i, (text, labels) in enumerate(ODD[name]):
            row = {"text": text.format(i=i % 9), "labels": [label.format(i=i) for label in labels]}
            file.write(json.dumps(row) + "\n")
    path = str(tmp_path / "odd.jsonl")
    options = {"train": path, "test": path, "out": str(tmp_path / "run"), "effort": effort, "held_out": 0.5}
    metrics = train(TrainingConfig(**options, progress=False), report=lambda line: None)
    assert 0 <= metrics["P@1"] <= 100 and np.isfinite(metrics["PSP@1"])


def test_texts_without_terms_are_refused_in_one_line(tmp_path):
    (tmp_path / "none.jsonl").write_text('{"text": "", "labels": ["x"]}\n' * 3)
    with pytest.raises(DataError, match="the training texts give no tf-idf terms"):
        train(TrainingConfig(train=str(tmp_path / "none.jsonl"), out=str(tmp_path / "run")), report=lambda line: None)
