"""Labels solved after the head: by the settings that the model carries, to scores that compare with the head's."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.later import fit_labels, grown
from sparse_xmc.solver.plan import plan_for
from sparse_xmc.solver.settings import Settings
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="solves with the CPU kernels")


@pytest.fixture(scope="module")
def topics():
    """Rows of the words of one or two of 30 topics, of which each has eight words of its own."""
    rng = np.random.default_rng(0)
    rows = 1200
    y = sp.csr_matrix((np.ones(rows, np.float32), (np.arange(rows), rng.integers(0, 30, rows))), (rows, 30))
    x = np.zeros((rows, 300), np.float32)
    for i in range(rows):
        x[i, 8 * y.indices[i] + rng.integers(0, 8, 5)] = 1
        x[i, 240 + rng.integers(0, 60, 6)] = 0.5
    return sp.csr_matrix(x / np.linalg.norm(x, axis=1, keepdims=True)), y


@pytest.mark.parametrize("rows", [None, 1200])  # 1200: every row is an example of every label
@pytest.mark.parametrize("effort", ["fast", "normal"])
def test_new_labels_score_as_those_solved_with_all(topics, effort, rows):
    x, y = topics
    counts = np.asarray(y.sum(axis=0)).ravel().astype(np.int64)
    plan = plan_for(effort, counts, x.shape[1], rows=rows)
    old = fit(x, y[:, :25].tocsr(), plan)
    settings = Settings.from_state(json.loads(json.dumps(old.settings.state())))
    assert settings.whole == (rows is not None)
    later = fit_labels(x, y[:, 25:].tocsr(), settings, plan, frequent=counts[25:] >= 20, share=5 / 30)
    scores = np.hstack([_scores(old.head, x), _scores(later, x)])
    right = scores.argmax(1) == y.indices
    assert right[y.indices < 25].mean() > 0.97 and right[y.indices >= 25].mean() > 0.97


def test_labels_of_one_row_come_later_in_closed_form():
    rng = np.random.default_rng(1)
    x = sp.csr_matrix(np.where(rng.random((80, 60)) < 0.15, 1, 0).astype(np.float32))
    y = sp.identity(80, dtype=np.float32, format="csr")
    plan = plan_for("normal", np.ones(60), 60, fan_in=12)
    old = fit(x[:60], y[:60, :60].tocsr(), plan)
    later = fit_labels(x[60:], y[60:, 60:].tocsr(), old.settings, plan, frequent=np.zeros(20, bool), share=0.25)
    whole = fit(x, y, plan_for("normal", np.ones(80), 60, fan_in=12))
    if whole.settings.power == old.settings.power:
        np.testing.assert_allclose(_scores(later, x), _scores(whole.head, x)[:, 60:], atol=1e-6)
    own = np.hstack([_scores(old.head, x), _scores(later, x)]).argmax(1)
    assert (own == np.arange(80)).mean() > 0.9


def _scores(head, x):
    index = head.invert(x.shape[1])
    by_term = sp.csr_matrix((index.weights, index.labels, index.term_ptr), (x.shape[1], len(index.bias)))
    return (x @ by_term).toarray() + index.bias


def test_a_tenth_more_rows_make_a_label_worth_solving_again():
    known, now = np.array([0, 1, 10, 10, 100, 100, 5]), np.array([1, 2, 10, 11, 109, 110, 3])
    assert grown(known, now).tolist() == [0, 1, 3, 5]


UNIFORM = {"rare": 64, "frequent": 256, "cost": 1.0, "uniform": [2.0, 1.0, 0.0]}
BY_FREQUENCY = {"rare": 4, "frequent": 4, "cost": 0.3, "by frequency": [[0, 1], [1.0, 1], [2.0, 0], [0.0, -1]]}


@pytest.mark.parametrize(
    "state", [UNIFORM, BY_FREQUENCY, {**UNIFORM, "whole": True}, {"rare": 32, "frequent": 32, "power": 0.25}]
)
def test_settings_are_read_back(state):
    assert Settings.from_state(state).state() == state and Settings.from_state(None) is None


@pytest.mark.parametrize(
    "state",
    [
        [], {}, "x", {**UNIFORM, "rare": 0}, {**UNIFORM, "rare": True}, {**UNIFORM, "frequent": 2**40},
        {**UNIFORM, "cost": None}, {**UNIFORM, "whole": 1}, {**UNIFORM, "whole": "yes"},
        {**UNIFORM, "cost": float("nan")}, {**UNIFORM, "uniform": [1, 2]}, {**UNIFORM, "uniform": [1, 2, "3"]},
        {**UNIFORM, "uniform": {}}, {**BY_FREQUENCY, "by frequency": [[1, 0], [1, 1], [1, 1], [1, 1]]},
        {**BY_FREQUENCY, "by frequency": [[0, 1], [1], [1, 1], [1, 1]]}, {**BY_FREQUENCY, "by frequency": [[], [], [], []]},
        {"rare": 1, "frequent": 1, "power": "inf"}, {"rare": 1, "frequent": 1, "power": float("inf")},
        {"rare": 1, "frequent": 1, "cost": 1.0},
    ],
)  # fmt: skip
def test_settings_of_a_damaged_model_are_refused(state):
    with pytest.raises(ValueError, match=r"solved head|connections of a label|mixture by frequency"):
        Settings.from_state(state)
