"""The training demo learns on data that can be learned, with both heads, and leaves rows."""

import argparse
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("scipy")

import scipy.sparse as sp

from bench.environment import REPOSITORY
from bench.rows import RowFile
from bench.studies import text_demo, training_data
from bench.studies.training_demo import Settings, main, train
from sparse_xmc.data import LabelRows
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="training never runs in the interpreter")


def _separable(rows: int, seed: int) -> tuple[np.ndarray, sp.csr_matrix]:
    """20 labels; each row is the sum of its two labels' random directions."""
    directions = np.random.default_rng(0).normal(size=(20, 32)).astype(np.float32)
    draw = np.random.default_rng(seed)
    labels = np.stack([draw.choice(20, 2, replace=False) for _ in range(rows)])
    targets = np.zeros((rows, 20), dtype=np.float32)
    np.put_along_axis(targets, labels, 1, axis=1)
    return directions[labels].sum(1), sp.csr_matrix(targets)


@pytest.fixture
def data() -> training_data.DataSet:
    return training_data.DataSet("separable", *_separable(1200, 1), *_separable(300, 2))


@pytest.mark.parametrize("fan_in", [None, 16], ids=["dense", "fixed fan-in"])
def test_both_heads_learn(data, fan_in) -> None:
    settings = Settings(fan_in, hidden=64, epochs=6, batch=32, lr=1e-2, dropout=0.0, rewire_steps=20)
    result = train(data, settings)
    assert result["P@1"] > 95 and result["P@5"] > 35
    assert result["head_bytes"] == (20 * 64 * 4 + 80 if fan_in is None else 20 * 16 * 6 + 80)


def test_command_leaves_a_row_per_head(data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(training_data, "load", lambda name: data)
    arguments = argparse.Namespace(data="docstrings", heads=["fixed", "dense"], epochs=1, out=tmp_path)
    assert main(arguments) == 0
    rows = RowFile(tmp_path).read()
    assert [r["head"] for r in rows] == ["fixed", "dense"] and all(r["commit"] and "P@1" in r for r in rows)
    assert "P@1" in capsys.readouterr().out


def test_a_model_is_trained_from_files_with_the_defaults(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("sklearn")
    labels = LabelRows()
    for i in range(60):
        labels.append([("food", "law")[i % 2]])
    texts = [f"{('bread salt oven', 'judge court appeal')[i % 2]} {i % 7}" for i in range(60)]
    monkeypatch.setattr(training_data, "docstrings", lambda: [(texts, labels), (texts, labels)])
    row = text_demo.run("docstrings", tmp_path)
    assert row["P@1"] == 100.0 and row["run_bytes"] > 0
    said = capsys.readouterr()
    assert "sparse-xmc train --train" in said.out and "P@1 / P@3 / P@5 100.00" in said.out and not said.err
    assert [stored["head"] for stored in RowFile(tmp_path).read()] == ["train"]


DOCSTRINGS = """
from bench.studies.training_data import docstrings
(train_texts, train_labels), (test_texts, _) = docstrings()
print(len(train_texts), len(test_texts), len(train_labels), min(train_labels.counts()))
"""


def test_a_real_set_comes_out_of_installed_packages() -> None:
    """In a process of its own: it imports whatever the packages hold."""
    done = subprocess.run([sys.executable, "-c", DOCSTRINGS], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train, test, labelled, fewest = map(int, done.stdout.splitlines()[-1].split())
    assert train > 4 * test - 5 > 100
    assert labelled == train and fewest >= 1
