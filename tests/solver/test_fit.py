import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("numba")
from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.solver.calibrate import calibrate
from sparse_xmc.solver.efforts import EFFORTS
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.plan import held_out_rows, plan_for


def frequencies(y):
    return np.asarray(y.sum(axis=0)).ravel()


def flat(head):
    return [*(a for b in head.blocks for a in (b.labels, b.indices, b.weight)), head.bias]


@pytest.mark.parametrize("rows", [None, 500])  # 500: every row is an example of every label
@pytest.mark.parametrize("effort", EFFORTS)
def test_learns_every_effort(topics, effort, rows):
    x, y = topics
    plan = plan_for(effort, frequencies(y[:500]), 300, rows=rows)
    assert plan.whole == (rows is not None)
    solution = fit(x[:500], y[:500], plan, held_out=0.1)
    top = solution.head.invert(300).topk(x[500:], 5)[1]
    assert ranking_metrics(top, Truth(y[500:]))["P@1"] > 90
    assert len(solution.lines) == (1 if effort == "fast" else 3)


def test_every_label_has_its_connections_once(topics):
    x, y = topics
    head = fit(x, y, plan_for("normal", frequencies(y), 300, fan_in=24)).head
    assert sorted(np.concatenate([b.labels for b in head.blocks]).tolist()) == list(range(40))
    for block in head.blocks:
        assert block.indices.shape == (len(block.labels), 24)
        assert all(len(set(row)) == 24 for row in block.indices.tolist())


class _Killed(Exception):
    pass


@pytest.mark.parametrize("rows", [None, 500])
def test_goes_on_after_a_kill_with_the_same_result(topics, rows):
    x, y = topics
    plan = plan_for("normal", frequencies(y), 300, rows=rows)
    expected = fit(x, y, plan)
    kept, fresh = {}, [0]

    def stages(name, work):
        if name not in kept:
            fresh[0] += 1
            kept[name] = work()
            if fresh[0] == (2 if rows is None else 1):
                fresh[0] = 0
                raise _Killed
        return kept[name]

    kills = 0
    while True:
        try:
            solution = fit(x, y, plan, stages=stages)
            break
        except _Killed:
            kills += 1
    assert kills >= 3
    assert solution.lines == expected.lines
    for a, b in zip(flat(solution.head), flat(expected.head), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "x, y",
    [
        (np.zeros((60, 5)), np.eye(60, 3)),  # no row has a term
        (np.eye(60, 70), np.ones((60, 1))),  # one label, on every row
        (np.eye(2, 4), np.eye(2)),  # two rows
        (np.eye(1, 1), np.ones((1, 1))),
        (np.eye(60, 2), np.eye(60, 50)),  # fewer terms than connections
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_odd_data(x, y, whole):
    x, y = sp.csr_matrix(x, dtype=np.float32), sp.csr_matrix(y, dtype=np.float32)
    plan = plan_for("normal", frequencies(y), x.shape[1], rows=len(x.indptr) - 1 if whole else None)
    head = fit(x, y, plan, held_out=0.5).head
    scores, labels = head.invert(x.shape[1]).topk(x, 5)
    assert np.isfinite(scores).all() and labels.shape == (x.shape[0], min(5, y.shape[1]))


def test_memory_bounds_the_connections():
    counts = np.array([1] * 900 + [50] * 100)
    plan = plan_for("best", counts, 10_000, memory=400_000)
    assert 12 * 1000 <= 900 * plan.rare[-1] * 8 + 100 * plan.frequent[-1] * 8 + 4000 <= 400_000
    with pytest.raises(ValueError, match="head memory of 11,000 bytes is too little for 1,000 labels: at least 12,000"):
        plan_for("best", counts, 10_000, memory=11_000)
    with pytest.raises(ValueError, match=r"fan_in must lie in \[1, 30\], the number of terms, got 31"):
        plan_for("best", counts, 30, fan_in=31)
    with pytest.raises(ValueError, match="effort must be one of fast, normal, best, got 'slow'"):
        plan_for("slow", counts, 30)


def test_few_frequent_labels_may_have_more_connections():
    few, many = np.full(100, 50), np.full(5000, 50)
    assert plan_for("normal", few, 10_000).frequent == (256, 1024, 2048, 4096)
    assert plan_for("normal", many, 10_000).frequent == (256, 1024)
    assert plan_for("fast", few, 10_000).frequent == (256,)
    assert plan_for("best", few, 10_000, fan_in=9).frequent == (9,)


def test_every_row_is_an_example_where_labels_and_rows_are_few():
    counts = np.full(100, 50)
    plan = plan_for("normal", counts, 10_000, rows=5_000)
    assert plan.whole and plan.rare == plan.frequent == (10_000,) and plan.clusterings == 0
    assert plan_for("normal", counts, 100_000, rows=5_000).rare == ((1 << 22) // 100,)
    assert plan_for("normal", counts, 10_000, rows=5_000, fan_in=9).rare == (9,)
    bounded = plan_for("normal", counts, 10_000, rows=5_000, memory=100 * (8 * 70 + 4))
    assert bounded.whole and bounded.rare == bounded.frequent == (70,)
    assert not plan_for("normal", counts, 10_000, rows=500_000, entries=5).whole  # too many rows
    assert not plan_for("normal", counts, 10_000, rows=5_000, entries=2_000).whole  # too long ones
    assert not plan_for("normal", counts, 10_000).whole


def test_a_bias_is_learned_from_all_rows():
    """A label on nine rows of ten that share no term with it is the first choice of nearly any row."""
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.random((400, 1)) < 0.9, np.eye(8)[rng.integers(0, 8, 400)] > 0], axis=1)
    x = sp.csr_matrix(np.where(rng.random((400, 50)) < 0.1, 1, 0), dtype=np.float32)
    y = sp.csr_matrix(y, dtype=np.float32)
    head = fit(x[:300], y[:300], plan_for("fast", frequencies(y[:300]), 50, rows=300)).head
    assert (head.invert(50).topk(x[300:], 1)[1] == 0).mean() > 0.9 and head.bias.argmax() == 0


def test_calibration_finds_the_odds_it_was_drawn_from():
    rng = np.random.default_rng(3)
    n = 40_000
    z, c, count = rng.normal(size=n), rng.normal(size=n), 2.0 ** rng.integers(0, 4, n)
    odds = (1 + np.log2(count)) * z + 0.5 * c - 1
    hit = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float)
    a, g, b = calibrate(z, c, hit, count).of(np.array([1, 4, 8]))
    np.testing.assert_allclose(a, [1, 3, 4], atol=0.35)
    np.testing.assert_allclose(g, 0.5, atol=0.2)
    np.testing.assert_allclose(b, -1, atol=0.2)


def test_rows_held_out_by_default_are_enough_to_decide():
    assert [held_out_rows(rows, None) for rows in (100, 4000, 20_000, 100_000)] == [20, 800, 2000, 5000]
    assert held_out_rows(4000, 0.05) == 200 and held_out_rows(4000, 0.0) == 0
