import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("numba")
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.plan import plan_for


def test_labels_of_one_row_are_found_by_half_of_its_terms():
    rng = np.random.default_rng(0)
    x = sp.csr_matrix((rng.random((300, 200)) < 0.05) * rng.random((300, 200)), dtype=np.float32)
    y = sp.csr_matrix(np.eye(300, dtype=np.float32)[:, rng.permutation(300)])
    solution = fit(x, y, plan_for("normal", np.ones(300), 200, fan_in=16))
    assert solution.lines[0].startswith("no label has a second row: 16 connections a label in closed form")
    assert solution.head.blocks[0].indices.shape == (300, 16)
    top = solution.head.invert(200).topk(x, 1)[1][:, 0]
    full = np.diff(x.indptr) > 3
    assert (top == y.indices)[full].mean() > 0.95
    again = fit(x, y, plan_for("normal", np.ones(300), 200, fan_in=16))
    np.testing.assert_array_equal(solution.head.blocks[0].weight, again.head.blocks[0].weight)


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.eye(3, 4), np.zeros((0, 4))])
def test_rows_that_make_no_queries(rows):
    y = sp.csr_matrix(np.eye(len(rows), 3), dtype=np.float32)
    head = fit(sp.csr_matrix(rows, dtype=np.float32), y, plan_for("fast", np.ones(3), 4)).head
    assert np.isfinite(head.blocks[0].weight).all()
