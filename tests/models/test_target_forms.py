"""Targets as people have them: every head computes the loss of the same positives from every form, and names bad ones."""

from collections import deque

import numpy as np
import pytest
import torch

from sparse_xmc.data import targets_from_lists
from sparse_xmc.models import (
    AuxiliaryObjective,
    DenseLinear,
    FixedFanInLinear,
    HeadTailLinear,
    SparseInputLinear,
)
from tests import oracle

sparse = pytest.importorskip("scipy.sparse")
B, L, D = 5, 12, 16
LISTS = [[3, 11, 0], [], [7, 7, 2], [11], [1]]  # one empty row, one label twice


def dense():
    out = torch.zeros(B, L, dtype=torch.bool)
    for row, labels in enumerate(LISTS):
        out[row, labels] = True
    return out


def coo(values=None):
    rows = torch.tensor([row for row, labels in enumerate(LISTS) for _ in labels])
    ids = torch.tensor([label for labels in LISTS for label in labels])
    order = torch.tensor([4, 0, 6, 3, 2, 1, 5, 7])
    values = torch.ones(len(ids)) if values is None else values
    return torch.sparse_coo_tensor(torch.stack([rows, ids])[:, order], values, (B, L), check_invariants=False)


def crow_col():
    ends = torch.tensor([0, *(len(labels) for labels in LISTS)]).cumsum(0)
    return ends, torch.tensor([label for labels in LISTS for label in labels])


def nested(layout):
    rows = [torch.tensor(labels, dtype=torch.int64) for labels in LISTS]
    return torch.nested.nested_tensor(rows, layout=layout)


FORMS = {
    "csr": lambda: dense().float().to_sparse_csr(),
    "csr_repeated": lambda: torch.sparse_csr_tensor(*crow_col(), torch.ones(8), (B, L), check_invariants=False),
    "pair": crow_col,
    "pair_int32": lambda: tuple(part.int() for part in crow_col()),
    "pair_numpy": lambda: tuple(part.numpy() for part in crow_col()),
    "coo": coo,
    "coo_coalesced": lambda: coo().coalesce(),
    "csc": lambda: dense().float().to_sparse_csc(),
    "bsr": lambda: dense().float().to_sparse_bsr((1, 3)),
    "bsc": lambda: dense().float().to_sparse_bsc((5, 2)),
    "scipy_csr": lambda: sparse.csr_matrix(dense().numpy()),
    "scipy_coo_array": lambda: sparse.coo_array(dense().numpy()),
    "scipy_zeros": lambda: sparse.csr_matrix(
        (np.array([1, 1, 1, 0, 1, 1, 1, 1]), ([0, 0, 0, 1, 2, 2, 3, 4], [3, 11, 0, 5, 7, 2, 11, 1])), (B, L)
    ),
    "bool": dense,
    "int": lambda: dense().int(),
    "float": lambda: dense().float(),
    "numpy": lambda: dense().numpy(),
    "numpy_float": lambda: dense().double().numpy(),
    "lists": lambda: LISTS,
    "tuple_of_lists": lambda: tuple(LISTS),
    "arrays": lambda: [np.array(labels, dtype=np.int32) for labels in LISTS],
    "tensors": lambda: [torch.tensor(labels, dtype=torch.int64) for labels in LISTS],
    "sets": lambda: [set(labels) for labels in LISTS],
    "object_array": lambda: np.array([list(labels) for labels in LISTS], dtype=object),
    "from_lists": lambda: targets_from_lists(LISTS, L),
    "deque": lambda: deque(LISTS),
    "keys": lambda: [dict.fromkeys(labels).keys() for labels in LISTS],
    "series": lambda: pytest.importorskip("pandas").Series(LISTS),
    "frame": lambda: pytest.importorskip("pandas").DataFrame(dense().numpy()),
    "nested": lambda: nested(torch.strided),
    "nested_jagged": lambda: nested(torch.jagged),
}


def heads():
    torch.manual_seed(0)
    return {
        "fixed_fan_in": FixedFanInLinear(D, L, 4, seed=1),
        "groups": FixedFanInLinear(D, L, 4, group_size=4, seed=1),
        "dense": DenseLinear(D, L, seed=1),
        "head_tail": HeadTailLinear(D, L, 4, num_head=5, seed=1),
        "sparse_input": SparseInputLinear(D, L, 4, seed=1),
    }


def make_input(name):
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(3))
    return (x * (x > 0)).to_sparse_csr() if name == "sparse_input" else x


HEADS = list(heads())


@pytest.mark.parametrize("kind", ["bce", "squared_hinge"])
@pytest.mark.parametrize("name", HEADS)
def test_every_form_is_the_same_loss(name, kind):
    head, x = heads()[name], make_input(name)
    with torch.no_grad():
        logits = head(x).double()
        sign = dense() * 2.0 - 1
        if kind == "bce":
            expected = torch.nn.functional.softplus(-sign * logits).sum() / B
        else:
            expected = (1 - sign * logits).clamp(min=0).square().sum() / B
        for form, make in FORMS.items():
            assert float(head.loss(x, make(), loss=kind)) == pytest.approx(float(expected), rel=1e-5), form


def test_leading_dimensions_and_other_dtypes():
    head, x = heads()["fixed_fan_in"], make_input("dense").reshape(1, B, D)
    expected = head.loss(x, LISTS)
    assert torch.equal(head.loss(x, dense().reshape(1, B, L)), expected)
    assert torch.equal(heads()["head_tail"].loss(x, LISTS), heads()["head_tail"].loss(x[0], LISTS))
    assert heads()["dense"].loss(x, LISTS).isfinite()


def test_no_rows():
    for form in ([], torch.zeros(0, L), np.zeros((0, L)), sparse.csr_matrix((0, L)), targets_from_lists([], L)):
        for name in ("fixed_fan_in", "dense", "head_tail"):
            assert not heads()[name].loss(torch.zeros(0, D), form).detach().any()


BAD = {
    "coo": (lambda: coo(torch.full((8,), 0.5)), ValueError, "got 0.5: soft labels"),
    "soft": (lambda: torch.full((B, L), 0.25), ValueError, "got 0.25: soft labels"),
    "nan": (lambda: np.full((B, L), np.nan), ValueError, "got nan"),
    "negative": (lambda: -dense().int(), ValueError, "got -1"),
    "too_high": (lambda: [*LISTS[:-1], [3, 100]], ValueError, r"targets\[4\] holds label 100, outside \[0, 12\)"),
    "too_low": (lambda: [[], [-1], [], [], []], ValueError, r"targets\[1\] holds label -1, outside \[0, 12\)"),
    "names": (lambda: [["a"], [], [], [], []], TypeError, r"targets\[0\] must hold integer label ids, got \['a'\]"),
    "floats": (lambda: [[1.0], [], [], [], []], TypeError, r"targets\[0\] must hold integer label ids"),
    "flat": (lambda: [1, 2, 3, 4, 5], TypeError, r"targets\[0\] must be a list of label ids, got int 1"),
    "nested": (lambda: [[[1]], [], [], [], []], TypeError, r"targets\[0\] must be a list of label ids"),
    "zeros_and_ones": (lambda: dense().int().tolist(), ValueError, "multi-hot rows are given as an array"),
    "rows": (lambda: LISTS[:-1], ValueError, "for each of 5 rows, got 4"),
    "half_a_pair": (lambda: (crow_col()[0], [3, 100]), TypeError, "a pair of two tensors"),
    "width": (lambda: torch.zeros(B, 3), ValueError, r"must be \[5, 12\], got \[5, 3\]"),
    "classes": (lambda: torch.zeros(B, dtype=torch.int64), ValueError, "classes with loss='cross_entropy'"),
    "string": (lambda: "3", TypeError, "got str"),
    "none": (lambda: None, TypeError, "got NoneType"),
    "generator": (lambda: (labels for labels in LISTS), TypeError, "got generator"),
    "mapping": (lambda: dict(enumerate(LISTS)), TypeError, "got dict"),
    "meta": (lambda: dense().to("meta"), ValueError, "device"),
    "scipy_width": (lambda: sparse.csr_matrix((B, 3)), ValueError, r"must be \[5, 12\], got \[5, 3\]"),
}


@pytest.mark.parametrize("form", BAD)
@pytest.mark.parametrize("name", HEADS)
def test_bad_targets_are_named(name, form):
    make, error, text = BAD[form]
    with pytest.raises(error, match=text):
        heads()[name].loss(make_input(name), make())


ENTRIES = {
    "too_high": ([0, 1, 1, 2, 2, 2], [3, 100], "label 100"),
    "negative": ([0, 1, 1, 2, 2, 2], [3, -1], "label -1"),
    "huge": ([0, 1, 1, 2, 2, 2], [3, 10**9], "label 1000000000"),
    "short": ([0, 1, 1, 1, 1, 1], [3, 4], "offsets|crow"),
    "long": ([0, 1, 1, 2, 2, 7], [3, 4], "offsets|crow"),
    "late": ([1, 1, 1, 2, 2, 2], [3, 4], "offsets|crow"),
    "descending": ([0, 2, 1, 2, 2, 2], [3, 4], "offsets|crow"),
}


@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("name", HEADS)
def test_bad_entries_are_named(name, entries):
    crow, col, text = ENTRIES[entries]
    crow, col = torch.tensor(crow), torch.tensor(col)
    matrix = torch.sparse_csr_tensor(crow, col, torch.ones(2), (B, L), check_invariants=False)
    for targets in ((crow, col), matrix):
        with pytest.raises(ValueError, match=text):
            heads()[name].loss(make_input(name), targets)


def test_auxiliary_objective_takes_the_same_forms():
    objective, x = AuxiliaryObjective(D, torch.arange(L) // 3), make_input("dense")
    expected = objective.loss(x, FORMS["csr"]())
    for form, make in FORMS.items():
        assert torch.equal(objective.loss(x, make()), expected), form
    with pytest.raises(ValueError, match="holds label 12"):
        objective.loss(x, [[12], [], [], [], []])


def test_class_ids_as_people_have_them():
    head, x = heads()["fixed_fan_in"], make_input("dense")
    ids = [3, 0, 11, -100, 7]
    expected = torch.nn.functional.cross_entropy(head(x), torch.tensor(ids))
    for targets in (
        ids,
        tuple(ids),
        [torch.tensor(one) for one in ids],
        np.array(ids),
        np.array(ids, np.int16),
        torch.tensor(ids),
        torch.tensor(ids).int(),
    ):
        assert float(head.loss(x, targets, loss="cross_entropy")) == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(
        head.loss(x, range(1, 6), loss="cross_entropy"), head.loss(x, [1, 2, 3, 4, 5], loss="cross_entropy")
    )
    for unsigned in (torch.uint8, torch.uint16, torch.uint64):
        given = torch.tensor([3, 0, 11, 1, 7]).to(unsigned)
        assert torch.equal(head.loss(x, given, loss="cross_entropy"), head.loss(x, given.long(), loss="cross_entropy"))
    for bad in ([3.0, 0, 1, 2, 3], LISTS, np.zeros(5), torch.zeros(5)):
        with pytest.raises(TypeError, match="class ids"):
            head.loss(x, bad, loss="cross_entropy")
    with pytest.raises(ValueError, match=r"targets\[0\] is 12, outside \[0, 12\)"):
        head.loss(x, [12, 0, 0, 0, 0], loss="cross_entropy")


def test_targets_from_lists():
    targets = targets_from_lists(LISTS, L)
    assert targets.layout == torch.sparse_csr and torch.equal(targets.to_dense(), dense().float())
    assert targets.col_indices().tolist() == [0, 3, 11, 2, 7, 11, 1]
    torch.sparse_csr_tensor(
        targets.crow_indices(), targets.col_indices(), targets.values(), targets.shape, check_invariants=True
    )
    with pytest.raises(ValueError, match="num_labels must be at least 1"):
        targets_from_lists(LISTS, 0)
    with pytest.raises(TypeError, match="got str"):
        targets_from_lists("abc", L)
    expected = oracle.make_targets(dense().int())
    assert torch.equal(expected.crow_indices(), targets.crow_indices())
