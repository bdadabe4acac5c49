"""A trained run in a program of one's own: predictions, arrays, metrics; threads, and no disk."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp

import sparse_xmc
from tests.app.test_command_line import write_texts
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
OPTIONS = {"embedding_dim": 16, "fan_in": 8, "lexical_fan_in": 8, "min_df": 1, "epochs": 6, "batch_size": 32}
OPTIONS |= {"progress": False, "threads": 1}
TEXTS = ["word2 word3 word4 word20", "word0", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_texts(folder / "train.jsonl", 400, 0)
    write_texts(folder / "valid.jsonl", 200, 2)
    write_texts(folder / "test.jsonl", 100, 1)
    lines = []
    metrics = sparse_xmc.train(
        train=folder / "train.jsonl",
        valid=folder / "valid.jsonl",
        test=folder / "test.jsonl",
        out=folder / "run",
        report=lines.append,
        **OPTIONS,
    )
    assert metrics["P@1"] > 60 and any("trained in" in line for line in lines)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return sparse_xmc.load(folder / "run")


def test_predictions_are_labels_with_probabilities(model):
    first, second, empty = model.predict(TEXTS, k=3)
    assert [len(row) for row in (first, second, empty)] == [3, 3, 3]
    assert {str(label) for label, _ in first} == {"2", "label 3", "4"}
    for row in (first, second, empty):
        scores = [score for _, score in row]
        assert scores == sorted(scores, reverse=True) and min(scores) >= 0 and max(scores) <= 1
    assert model.predict([]) == []
    assert len(model.predict(TEXTS, k=99)[0]) == len(model.labels)


def test_a_threshold_leaves_out_what_is_less_probable(model):
    every = model.predict(TEXTS, k=8)
    some = model.predict(TEXTS, k=8, threshold=0.4)
    assert some == [[(label, score) for label, score in row if score >= 0.4] for row in every]
    assert 0 < sum(map(len, some)) < 24


def test_arrays_say_the_same(model):
    scores, labels = model.topk(TEXTS, 4)
    assert scores.dtype == np.float32 and labels.dtype == np.int64 and scores.shape == labels.shape == (3, 4)
    pairs = [
        [(model.labels[i], s) for i, s in zip(*row, strict=True)]
        for row in zip(labels.tolist(), scores.tolist(), strict=True)
    ]
    assert pairs == model.predict(TEXTS, 4)
    every = model.predict_proba(TEXTS)
    assert every.shape == (3, len(model.labels))
    np.testing.assert_allclose(np.take_along_axis(every, labels, 1), scores, atol=1e-6)


def test_evaluation_equals_that_of_the_command(model, folder):
    expected = json.loads((folder / "run" / "metrics.json").read_text())
    assert model.evaluate(folder / "test.jsonl") == expected
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert model.evaluate([row["text"] for row in rows], [row["labels"] for row in rows]) == expected
    with pytest.raises(ValueError, match="got 1 for 3 inputs"):
        model.evaluate(TEXTS, [["a"]])


def test_scores_are_calibrated_on_the_validation_split(model, folder):
    metrics = model.evaluate(folder / "test.jsonl")
    assert metrics["ECE@5"] < metrics["ECE@5 uncalibrated"]


def test_rows_held_out_calibrate_too(folder):
    arguments = {**OPTIONS, "out": folder / "held", "calibration_share": 0.25, "report": lambda line: None}
    sparse_xmc.train(train=folder / "train.jsonl", **arguments)
    metrics = sparse_xmc.load(folder / "held").evaluate(folder / "test.jsonl")
    assert metrics["ECE@5"] < metrics["ECE@5 uncalibrated"]


def test_any_number_of_threads_may_call_it(model):
    expected = model.predict(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        assert all(result == expected for result in pool.map(lambda _: model.predict(TEXTS), range(64)))


def test_no_disk_is_needed_after_loading(folder, tmp_path):
    (folder / "run").rename(tmp_path / "moved")
    model = sparse_xmc.load(tmp_path / "moved")
    (tmp_path / "moved").rename(folder / "run")
    before = {path: os.stat(path).st_mtime_ns for path in (folder / "run").rglob("*")}
    model.predict(TEXTS)
    assert {path: os.stat(path).st_mtime_ns for path in (folder / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one text", "must be a list of texts, got a single str"),
        (b"bytes", "must be a list of texts, got a single bytes"),
        ([1, 2], "inputs must be texts or a matrix, got a int among them: 1"),
        (3, "must be a sequence of texts or a matrix, got int"),
        (np.zeros((2, 3)), r"the model reads texts, got a matrix \[2, 3\]"),
        (sp.csr_matrix((2, 3)), r"the model reads texts, got a matrix \[2, 3\]"),
    ],
)
def test_other_inputs_are_refused(model, inputs, message):
    with pytest.raises(TypeError, match=message):
        model.predict(inputs)


@pytest.mark.parametrize(
    ("options", "error"), [({"k": 0}, ValueError), ({"k": 1.5}, TypeError), ({"threshold": 2}, ValueError)]
)
def test_numbers_out_of_range_are_refused(model, options, error):
    with pytest.raises(error, match=next(iter(options))):
        model.predict(TEXTS, **options)


def test_features(tmp_path):
    rng = np.random.default_rng(0)
    y = (rng.random((100, 6)) < 0.3).astype(np.float32)
    x = (y @ rng.standard_normal((6, 12))).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    sp.save_npz(tmp_path / "y.npz", sp.csr_matrix(y))
    files = {"train": tmp_path / "x.npy", "train_labels": tmp_path / "y.npz", "out": tmp_path / "run"}
    sparse_xmc.train(**files, encoder="features", epochs=8, batch_size=10, progress=False, report=lambda line: None)
    model = sparse_xmc.load(tmp_path / "run", device="cpu", threads=1)
    assert model.predict(x) == model.predict(sp.csr_matrix(x))
    assert (model.topk(x, 1)[1].ravel() == model.predict_proba(x).argmax(1)).all()
    with pytest.raises(TypeError, match="the model reads features .* got 1 texts"):
        model.predict(["text"])


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="train has no option 'fan_on'"):
        sparse_xmc.train(train="x", out="y", fan_on=3)
