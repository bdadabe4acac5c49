import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("numba")
from sparse_xmc.kernels.threads import num_threads, set_num_threads
from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.solver import choice, plan
from sparse_xmc.solver.choice import clustering, levels_of, on_all_rows
from sparse_xmc.solver.examples import Examples, against_all, among
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.head import Block, Level, TermHead
from sparse_xmc.solver.levels import cluster_labels, members_of, solve_clusters, solve_within
from sparse_xmc.solver.mixture import Levels
from sparse_xmc.solver.plan import plan_for
from sparse_xmc.solver.svm import widened
from sparse_xmc.solver.task import Task


def frequencies(y):
    return np.asarray(y.sum(axis=0)).ravel()


def random_head(rng, labels, terms, fan_in):
    indices = np.stack([rng.choice(terms, fan_in, replace=False) for _ in range(labels)]).astype(np.int32)
    weight = rng.integers(-2, 3, indices.shape).astype(np.float32)
    return TermHead([Block(np.arange(labels), indices, weight)], rng.integers(-1, 2, labels).astype(np.float32))


def scores_of(head, x):
    full = np.zeros((len(head.bias), x.shape[1]), np.float32)
    for block in head.blocks:
        full[block.labels[:, None], block.indices] = block.weight
    scores = x @ full.T + head.bias
    for level in head.levels:
        scores -= level.share * np.maximum(0, 1 - scores_of(level.clusters, x))[:, level.of] ** 2
    return scores


def test_topk_with_levels_equals_brute_force():
    rng = np.random.default_rng(2)
    x = sp.csr_matrix(rng.integers(0, 3, (40, 20)), dtype=np.float32)
    head = random_head(rng, 30, 20, 6)
    head.levels = [
        Level(random_head(rng, c, 20, 4), rng.integers(0, c, 30), rng.integers(0, 3, 30).astype(np.float32))
        for c in (5, 3)
    ]
    expected = scores_of(head, x)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :8]
    scores, labels = head.invert(20).topk(x, 8)
    np.testing.assert_array_equal(labels, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(expected, order, axis=1))


def rows_of(found: Examples, i):
    rows, n = found.rows[found.ptr[i] : found.ptr[i + 1]].tolist(), found.positives[i]
    return sorted(rows[:n]), sorted(rows[n:])


def test_clusters_learn_from_all_rows_and_labels_from_those_of_their_cluster():
    y = sp.csr_matrix(np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]], np.float32))
    of = np.array([0, 0, 1], np.int32)
    members = members_of(y, of)
    clusters = against_all(members, 1000)
    assert rows_of(clusters, 0) == ([0, 1, 3], [2, 4]) and rows_of(clusters, 1) == ([2], [0, 1, 3, 4])
    labels = among(y.tocsc(), members, of, 1000)
    assert [rows_of(labels, i) for i in range(3)] == [([0, 1], [3]), ([1, 3], [0]), ([2], [])]


def test_of_too_many_rows_an_even_share_is_taken_and_every_positive():
    y = sp.csr_matrix((np.arange(300)[:, None] % 10 == np.arange(10)).astype(np.float32))
    found = against_all(y.tocsc(), 500)
    for i in range(10):
        own, others = rows_of(found, i)
        assert own == list(range(i, 300, 10)) and len(others) == 45 and len(set(others) & set(own)) == 0
    assert len(found.rows) == found.ptr[-1] == 10 * (30 + 45)


def test_every_label_has_a_cluster_and_they_are_of_equal_size(topics):
    x, y = topics
    of = cluster_labels(x, y, 10, seed=1)
    assert np.bincount(of).tolist() == [4] * 10


def test_clusters_and_labels_in_them_are_told_apart(topics):
    x, y = topics
    of = cluster_labels(x, y, 10, seed=1)
    wide, members = widened(x), members_of(y, of)
    clusters = solve_clusters(wide, members, 64, most=10_000)
    z = scores_of(clusters, x)
    inside = members.toarray() > 0
    assert (z[inside] > 0).mean() > 0.95 and (z[~inside] < 0).mean() > 0.95
    assert clusters.blocks[0].indices.shape == (10, 64) and clusters.blocks[0].indices.max() < 300
    indices = np.tile(np.arange(160, dtype=np.int32), (40, 1))
    within = solve_within(wide, y, members, of, [Block(np.arange(40), indices, indices)], most=10_000)
    scores, own = scores_of(within, x), y.toarray() > 0
    near = inside[:, of] & ~own
    assert (scores[own] > 0).mean() > 0.95 and (scores[near] < 0).mean() > 0.95


@pytest.fixture
def always(monkeypatch):
    """Clusterings are taken whatever they bring."""
    monkeypatch.setattr(choice, "_WORTH", -1e9)
    monkeypatch.setitem(plan._FURTHER, "normal", -1e9)


def test_a_further_clustering_is_tried_where_the_one_before_brought_enough(topics, monkeypatch):
    x, y = topics
    monkeypatch.setattr(choice, "_WORTH", -1e9)
    solution = fit(x, y, plan_for("normal", frequencies(y), 300, fan_in=24))
    assert "1 x 10 clusters" in solution.lines[0] and "2 x" not in solution.lines[1]


def flat(head):
    arrays = [a for b in head.blocks for a in (b.labels, b.indices, b.weight)] + [head.bias]
    for level in head.levels:
        arrays += [*flat(level.clusters), level.of, level.share]
    return arrays


def test_a_solution_with_levels_has_the_connections_of_one_without_and_is_the_same_for_any_number_of_threads(
    topics, always
):
    x, y = topics
    plan = plan_for("normal", frequencies(y), 300, fan_in=24)
    first = fit(x[:500], y[:500], plan, held_out=0.1)
    assert "2 x 10 clusters in front" in first.lines[0]
    assert all(b.indices.shape[1] == 24 for b in first.head.blocks) and len(first.head.levels) == 2
    top = first.head.invert(300).topk(x[500:], 5)[1]
    assert ranking_metrics(top, Truth(y[500:]))["P@1"] > 90
    before = num_threads()
    set_num_threads(1 if before > 1 else 2)
    try:
        second = fit(x[:500], y[:500], plan, held_out=0.1)
    finally:
        set_num_threads(before)
    for a, b in zip(flat(first.head), flat(second.head), strict=True):
        np.testing.assert_array_equal(a, b)


def test_labels_that_come_with_all_rows_go_to_the_cluster_that_their_rows_score_highest(topics):
    x, y = topics
    late = np.array([20, 33])
    kept = np.flatnonzero(np.asarray(y[:, late].sum(axis=1)).ravel() == 0)
    plan = plan_for("normal", frequencies(y), 300, fan_in=24)
    tasks = [Task(x[rows], y[rows].tocsr(), plan, frequencies(y) >= 20) for rows in (kept, np.arange(600))]
    topology = [np.tile(np.arange(160, dtype=np.int32), (len(labels), 1)) for labels in tasks[0].groups]
    solved = clustering(tasks[0], topology, 1)
    known = tasks[0].frequencies > 0
    assert np.flatnonzero(~known).tolist() == late.tolist()
    whole = on_all_rows(tasks[1], topology, 1, solved, known)
    assert np.array_equal(whole["of"][known], solved["of"][known]) and whole["weight"] is solved["weight"]
    (front, _), *_ = levels_of(tasks[0], topology, [solved]).fronts
    said = -(np.maximum(0, 1 - scores_of(front, x)) ** 2)
    for label in late:
        rows = np.flatnonzero(y[:, [label]].toarray().ravel())
        assert whole["of"][label] == said[rows].sum(axis=0).argmax()
    own = scores_of(levels_of(tasks[1], topology, [whole]).within, x)[:, late]
    assert (own[y[:, late].toarray() > 0] > -0.5).mean() > 0.8


def test_levels_that_bring_nothing_are_not_taken(topics):
    x, y = topics
    solution = fit(x, y, plan_for("normal", frequencies(y), 300))
    assert "clusters in front" in solution.lines[1] and "clusters" not in solution.lines[0]
    assert not solution.head.levels


def test_average_over_clusterings_is_what_each_says():
    rng = np.random.default_rng(5)
    x = sp.csr_matrix(rng.integers(0, 3, (7, 12)), dtype=np.float32)
    fronts = [(random_head(rng, c, 12, 3), rng.integers(0, c, 9)) for c in (4, 2)]
    labels = rng.integers(0, 9, (7, 3))
    said = Levels(fronts, random_head(rng, 9, 12, 3)).log_likelihoods(x, labels)
    each = [-(np.maximum(0, 1 - scores_of(head, x))[np.arange(7)[:, None], of[labels]] ** 2) for head, of in fronts]
    np.testing.assert_allclose(said, np.mean(each, axis=0))


def test_memory_bounds_levels_too():
    counts = np.array([1] * 900 + [50] * 100)
    for memory in (12_000, 100_000, 400_000, 4_000_000):
        plan = plan_for("best", counts, 10_000, memory=memory)
        labels = 8 * (900 * plan.rare[-1] + 100 * plan.frequent[-1]) + 4 * 1000
        clusters = plan.clusterings * (plan.clusters * (8 * plan.cluster_fan_in + 4) + 8 * 1000)
        assert labels + clusters <= memory
    assert plan.clusterings == 3 and plan_for("best", counts, 10_000, memory=12_000).clusterings == 0
