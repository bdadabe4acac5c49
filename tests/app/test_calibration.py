"""Curves from a model's estimates to probabilities."""

import numpy as np
import pytest

from sparse_xmc.app.calibration import FEWEST_HITS, Calibration
from sparse_xmc.app.hold_out import hold_out
from sparse_xmc.app.isotonic import isotonic
from sparse_xmc.data import DenseInputs, LabelRows
from sparse_xmc.metrics import calibration_error


def drawn(power, count=20_000, seed=0):
    """Estimates that are ``probability ** power``, with what happened."""
    rng = np.random.default_rng(seed)
    probability = rng.random(count)
    return probability**power, rng.random(count) < probability


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
def test_what_is_fitted_on_some_rows_holds_on_others(power):
    curve = Calibration.fit(*drawn(power))
    estimates, hits = drawn(power, seed=1)
    before, after = calibration_error(estimates, hits), calibration_error(curve(estimates), hits)
    assert after < 2 and (power == 1.0 or before > 10)


def test_a_curve_rises_within_0_and_1_and_is_kept_as_it_is():
    curve = Calibration.fit(*drawn(2.0))
    x = np.linspace(0, 1, 1001)
    y = curve(x)
    assert (np.diff(y) >= 0).all() and y[0] == 0 and y[-1] <= 1 and len(curve.estimates) <= 258
    again = Calibration.from_state(curve.state())
    assert np.array_equal(again(x), y)
    assert Calibration.from_state(None) is None


def test_too_few_hits_give_no_curve():
    estimates = np.linspace(0, 1, 1000)
    assert Calibration.fit(estimates, np.arange(1000) < FEWEST_HITS - 1) is None
    assert Calibration.fit(estimates, np.arange(1000) < FEWEST_HITS) is not None


@pytest.mark.parametrize("values", [3, 1000])
def test_isotonic_regression_is_that_of_scikit_learn(values):
    fitted = pytest.importorskip("sklearn.isotonic").IsotonicRegression(y_min=0, y_max=1)
    rng = np.random.default_rng(values)
    x = rng.integers(0, values, 2000) / values
    y = rng.random(2000) < x
    x_ends, y_ends = isotonic(x, y)
    fitted.fit(x, y)
    everywhere = np.linspace(x.min(), x.max(), 501)
    np.testing.assert_allclose(np.interp(everywhere, x_ends, y_ends), fitted.predict(everywhere), atol=1e-9)
    assert len(x_ends) <= len(fitted.X_thresholds_) and (np.diff(x_ends) > 0).all()


FALLING = {"estimates": [1, 0], "probabilities": [0, 1]}
BEYOND = {"estimates": [0, 2], "probabilities": [0, 1]}


@pytest.mark.parametrize("state", [{}, [], FALLING, BEYOND])
def test_a_damaged_state_is_refused(state):
    with pytest.raises(ValueError, match="calibration"):
        Calibration.from_state(state)


def test_the_error_of_known_scores():
    scores = np.array([[0.9, 0.1], [0.9, np.nan]], dtype=np.float32)
    assert calibration_error(scores, np.array([[True, False], [False, False]])) == pytest.approx(
        (2 * 40 + 10) / 3, abs=1e-4
    )
    assert calibration_error(np.empty((0, 5)), np.empty((0, 5), dtype=bool)) == 0
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        calibration_error(np.array([1.5]), np.array([True]))


def rows_of(lists):
    rows = LabelRows()
    for labels in lists:
        rows.append(labels)
    return rows


def test_no_label_loses_its_last_row():
    rows = rows_of([[0], [0], [1], [1, 2], [2], [3]] * 5 + [[4]])
    inputs = DenseInputs(np.arange(len(rows), dtype=np.float32)[:, None])
    (kept, kept_rows), (held, held_rows) = hold_out(inputs, rows, 0.9, seed=0)
    assert len(kept) == len(kept_rows) and len(held) == len(held_rows) and len(kept) + len(held) == len(rows)
    assert sorted([*kept.array.ravel(), *held.array.ravel()]) == list(range(len(rows)))
    assert set(kept_rows.names) == {0, 1, 2, 3, 4}
    for array, part in ((kept.array, kept_rows), (held.array, held_rows)):
        assert [part.row(i) for i in range(len(part))] == [rows.row(int(i)) for i in array.ravel()]
    with pytest.raises(ValueError, match="calibration_share=0.5 holds out no row"):
        hold_out(inputs, rows_of([[i] for i in range(31)]), 0.5, seed=0)
