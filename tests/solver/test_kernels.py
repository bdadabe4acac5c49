import numpy as np
import pytest
import scipy.sparse as sp
import torch

pytest.importorskip("numba")
from scipy.optimize import minimize

from sparse_xmc.solver.centroids import centroid_weights, centroids
from sparse_xmc.solver.examples import examples
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.svm import OFFSET, select, solve, solve_path


def dense(block: Block, num_terms: int) -> np.ndarray:
    out = np.zeros((len(block.labels), num_terms))
    np.put_along_axis(out, block.indices.astype(np.int64), block.weight, axis=1)
    return out


def test_centroids_are_the_heaviest_entries_of_the_normalised_sums(topics):
    x, y = topics
    sums = np.asarray((y.T @ x).todense())
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    block = centroids(x, y, 20)
    for label in range(40):
        assert len(set(block.indices[label])) == 20
        largest = np.sort(expected[label])[::-1][:20]
        np.testing.assert_allclose(block.weight[label], largest, atol=1e-5)
    at = centroid_weights(x, y, block.labels, block.indices)
    np.testing.assert_allclose(at, block.weight, atol=1e-5)


def test_labels_with_fewer_terms_are_filled_up_with_distinct_ones_of_weight_0():
    x = sp.csr_matrix(np.eye(3, 9, dtype=np.float32))
    block = centroids(x, sp.csr_matrix(np.eye(3, dtype=np.float32)), 6)
    assert all(len(set(row)) == 6 for row in block.indices)
    np.testing.assert_allclose(block.weight, [[1, 0, 0, 0, 0, 0]] * 3)


def test_topk_equals_brute_force_with_ties_by_the_smaller_label():
    rng = np.random.default_rng(1)
    x = sp.csr_matrix(rng.integers(0, 3, (50, 30)), dtype=np.float32)
    parts = rng.permutation(70)
    blocks = []
    for labels, K in ((parts[:20], 12), (parts[20:], 3)):
        indices = np.stack([rng.choice(30, K, replace=False) for _ in labels]).astype(np.int32)
        blocks.append(Block(labels, indices, rng.integers(-2, 3, indices.shape).astype(np.float32)))
    head = TermHead(blocks, rng.integers(-1, 2, 70).astype(np.float32))
    full = np.zeros((70, 30))
    for block in blocks:
        full[block.labels] = dense(block, 30)
    expected = x @ full.T + head.bias
    order = np.argsort(-expected, axis=1, kind="stable")[:, :9]
    scores, labels = head.invert(30).topk(x, 9)
    np.testing.assert_array_equal(labels, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(expected, order, axis=1))
    assert head.invert(30).topk(x, 1000)[1].shape == (50, 70)
    pairs = np.where(labels % 5 == 0, -1, labels)
    products = np.where(pairs >= 0, scores - head.bias[labels], 0)
    np.testing.assert_allclose(head.products(x, pairs), products, atol=1e-5)


def test_examples_are_positives_first_then_each_other_row_once():
    y = sp.csr_matrix([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    e = examples(y, np.array([[1, 1, 0], [2, 0, -1], [2, 2, 1]], np.int32))
    rows = [e.rows[e.ptr[i] : e.ptr[i + 1]].tolist() for i in range(3)]
    assert rows == [[0, 2, 1], [1, 2, 0], [1, 2]]
    assert e.positives.tolist() == [2, 2, 0]


@pytest.mark.parametrize("cost", [0.3, 3.0])
def test_svm_reaches_the_optimum_of_the_primal(topics, cost):
    x, y = topics
    rng = np.random.default_rng(2)
    e = examples(y, rng.integers(0, 40, (600, 8)).astype(np.int32))
    chosen = np.array([0, 7, 39])
    indices = centroids(x, y, 16, chosen).indices
    weight = solve(x, e, chosen, indices, cost=cost, passes=2000, tolerance=1e-4)
    for i, label in enumerate(chosen):
        rows = e.rows[e.ptr[label] : e.ptr[label + 1]]
        own = np.asarray(x[rows][:, indices[i]].todense(), dtype=np.float64)
        sign = np.where(np.arange(len(rows)) < e.positives[label], 1, -1)

        def primal(w, own=own, sign=sign):
            loss = np.maximum(0, 1 - sign * (own @ w + OFFSET))
            return w @ w / 2 + cost * (loss**2).sum(), w - 2 * cost * own.T @ (sign * loss)

        best = minimize(primal, np.zeros(16), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-8})
        assert primal(weight[i].astype(np.float64))[0] <= best.fun * (1 + 1e-4)
        np.testing.assert_allclose(weight[i], best.x, atol=5e-3)


def test_costs_begin_from_the_solution_before_and_end_where_each_would_alone(topics):
    x, y = topics
    e = examples(y, np.random.default_rng(2).integers(0, 40, (600, 8)).astype(np.int32))
    chosen = np.arange(40)
    indices = centroids(x, y, 16, chosen).indices
    path = solve_path(x, e, chosen, indices, (0.3, 1.0), passes=2000, tolerance=1e-4)
    np.testing.assert_array_equal(path[0], solve(x, e, chosen, indices, cost=0.3, passes=2000, tolerance=1e-4))
    np.testing.assert_allclose(path[1], solve(x, e, chosen, indices, cost=1.0, passes=2000, tolerance=1e-4), atol=2e-3)


def test_all_terms_in_order_and_in_any_other_are_the_same_problem(topics):
    x, y = topics
    e = examples(y, np.random.default_rng(2).integers(0, 40, (600, 8)).astype(np.int32))
    order = np.random.default_rng(3).permutation(300).astype(np.int32)
    chosen = np.arange(40)
    every = np.tile(np.arange(300, dtype=np.int32), (40, 1))
    weight = solve(x, e, chosen, every)
    np.testing.assert_allclose(solve(x, e, chosen, np.tile(order, (40, 1))), weight[:, order], atol=1e-5)


def test_terms_of_the_svm_are_the_largest_of_weight_and_centroid(topics):
    x, y = topics
    e = examples(y, np.tile(np.arange(40, dtype=np.int32), (600, 1)))
    chosen = np.array([1, 5])
    prior = centroids(x, y, 300, chosen)
    every = np.tile(np.arange(300, dtype=np.int32), (2, 1))
    weight = solve(x, e, chosen, every, passes=3)
    total = np.abs(weight + dense(prior, 300))
    picked = select(x, e, prior, 10, passes=3)
    for i in range(2):
        expected = np.sort(total[i])[::-1][:10]
        np.testing.assert_allclose(total[i][picked[i]], expected, atol=1e-4)


def test_number_of_threads_changes_nothing(topics):
    x, y = topics
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            block = centroids(x, y, 16)
            index = TermHead([block], np.zeros(40, np.float32)).invert(300)
            scores, labels = index.topk(x, 5)
            weight = solve(x, examples(y, labels), block.labels, block.indices)
            results.append((scores, labels, weight))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)
