"""Arrays from outside: broken structure is refused before a kernel reads it, duplicates and stored zeros are resolved."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.prepare import Terms
from sparse_xmc.data import DataError, DenseInputs, Features, LabelRows, SparseInputs, open_split
from sparse_xmc.data.checked import canonical_csr, check_features

BROKEN = {
    "column beyond": ([0, 1, 2, 3], [0, 10**6, 1]),
    "column far beyond": ([0, 1, 2, 3], [0, 2**31 - 1, 1]),
    "column just beyond": ([0, 1, 2, 3], [0, 4, 1]),
    "negative column": ([0, 1, 2, 3], [0, -5, 1]),
    "falling": ([0, 3, 1, 3], [0, 1, 2]),
    "negative offset": ([0, -(10**6), 2, 3], [0, 1, 2]),
    "not from 0": ([1, 1, 2, 3], [0, 1, 2]),
    "ends beyond": ([0, 1, 2, 9], [0, 1, 2]),
    "ends early": ([0, 1, 1, 2], [0, 1, 2]),
    "too few rows": ([0, 1, 3], [0, 1, 2]),
}


def save(path, indptr, indices, *, kind="csr", data=None, shape=(3, 4)):
    data = np.ones(len(indices), np.float32) if data is None else np.asarray(data)
    np.savez(
        path,
        format=np.array(kind.encode()),
        shape=np.array(shape),
        data=data,
        indices=np.asarray(indices),
        indptr=np.asarray(indptr),
    )


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["csr", "csc"])
def test_broken_structure_in_a_file_is_refused(tmp_path, name, kind):
    save(tmp_path / "x.npz", *BROKEN[name], kind=kind, shape=(3, 4) if kind == "csr" else (4, 3))
    save(tmp_path / "y.npz", [0, 1, 2, 3], [0, 1, 2])
    with pytest.raises(DataError, match=r"x.npz: not a scipy sparse matrix: (indptr|indices) of the matrix"):
        open_split(tmp_path / "x.npz", labels=tmp_path / "y.npz")
    np.save(tmp_path / "d.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match=r"x.npz: not a scipy sparse matrix"):
        open_split(tmp_path / "d.npy", labels=tmp_path / "x.npz")


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "ends early"])
def test_broken_structure_in_memory_is_refused(name):
    matrix = sp.csr_matrix((3, 4))
    matrix.indptr, matrix.indices = map(np.array, BROKEN[name])
    matrix.data = np.ones(len(matrix.indices), np.float32)
    for door in (Features, SparseInputs, DenseInputs, LabelRows.from_csr):
        with pytest.raises(ValueError, match="(indptr|indices) of the "):
            door(matrix)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("indices", np.array([0.0, 1.0, 2.0]), "indices of the matrix must be a list of integers"),
        ("indptr", np.array([[0, 1, 2, 3]]), "indptr of the matrix must be a list of integers"),
        ("indices", np.array([0, 2**64 - 1, 1], np.uint64), "beyond 64-bit"),
        ("data", np.array([1j, 1, 1]), "must be real numbers"),
        ("data", np.array(["a", "b", "c"]), "must be real numbers"),
        ("data", np.ones(2), "3 indices and 2 values"),
        ("shape", np.array([3, -4]), "shape"),
        ("shape", np.array([3, 4, 5]), "shape"),
        ("shape", np.array([3.0, 4.0]), "shape"),
        ("format", np.array(b"dia"), "format 'dia'"),
        ("format", np.array([b"csr", b"csr"]), "not a scipy sparse matrix"),
        ("data", np.array([object()] * 3), "not a scipy sparse matrix"),
    ],
)
def test_members_of_other_kinds(tmp_path, part, value, message):
    parts = {"indptr": np.array([0, 1, 2, 3]), "indices": np.array([0, 1, 2]), "data": np.ones(3)}
    parts |= {"format": np.array(b"csr"), "shape": np.array([3, 4])}
    np.savez(tmp_path / "x.npz", **{**parts, part: value})
    with pytest.raises(DataError, match=message):
        open_split(tmp_path / "x.npz", need_labels=False)


def test_coordinates_out_of_range(tmp_path):
    for rows, columns in (([0, 3], [0, 1]), ([0, 1], [0, 4]), ([0, -1], [0, 1])):
        np.savez(tmp_path / "x.npz", format=b"coo", shape=[3, 4], row=rows, col=columns, data=np.ones(2))
        with pytest.raises(DataError, match=r"(rows|columns) of the matrix hold"):
            open_split(tmp_path / "x.npz", need_labels=False)


def test_rows_that_a_file_only_tells_of(tmp_path):
    """They would take 16 GiB."""
    parts = {"format": b"csc", "shape": [2**31, 2], "data": np.ones(1), "indices": [5], "indptr": [0, 1, 1]}
    np.savez(tmp_path / "x.npz", **parts)
    with pytest.raises(DataError, match="x.npz: not a scipy sparse matrix: 2147483648 rows for 1 entries"):
        open_split(tmp_path / "x.npz", need_labels=False)


def test_wide_features_and_other_arrays(tmp_path):
    sp.save_npz(tmp_path / "x.npz", sp.csr_matrix((2, 2**40)))
    with pytest.raises(DataError, match="1099511627776 columns, more than 134217728"):
        open_split(tmp_path / "x.npz", need_labels=False)
    np.savez(tmp_path / "d.npz", np.ones((2, 3)))
    with pytest.raises(DataError, match="d.npz: not a scipy sparse matrix: it lacks 'format'"):
        open_split(tmp_path / "d.npz", need_labels=False)
    np.save(tmp_path / "o.npy", np.array([[None, 1]], dtype=object))
    with pytest.raises(DataError, match="o.npy: not a NumPy array: "):
        open_split(tmp_path / "o.npy", need_labels=False)
    with pytest.raises(TypeError, match="must be a NumPy array or a SciPy sparse matrix, got list"):
        check_features([[1.0]])


def test_labels_beyond_32_bits(tmp_path):
    columns = [2**40, 5, 2**33]
    sp.save_npz(tmp_path / "y.npz", sp.csr_matrix((np.ones(3), columns, [0, 1, 3]), shape=(2, 2**41)))
    np.save(tmp_path / "x.npy", np.zeros((2, 1), np.float32))
    labels = open_split(tmp_path / "x.npy", labels=tmp_path / "y.npz").labels
    assert [sorted(labels.row(i)) for i in range(2)] == [[2**40], [5, 2**33]]


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"])
@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csr_array])
def test_every_sparse_format_is_taken(kind, make):
    dense = np.array([[0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 4, 0]], np.float64)
    result = canonical_csr(make(dense).asformat(kind), dtype=np.float32)
    assert isinstance(result, sp.csr_matrix) and result.dtype == np.float32
    np.testing.assert_array_equal(result.toarray(), dense)


def test_duplicates_and_stored_zeros_change_nothing(tmp_path):
    """One matrix stored plainly, with zeros, in halves and out of order: the same features."""
    plain = sp.random(40, 30, 0.2, format="csr", random_state=1, dtype=np.float32)
    coo = plain.tocoo()
    extra = np.arange(30)
    zeros = sp.csr_matrix(
        (
            np.r_[plain.data, np.zeros(30, np.float32)],
            np.r_[plain.indices, extra],
            np.r_[plain.indptr[:-1], len(plain.data) + 30],
        ),
        shape=plain.shape,
    )
    halves = sp.coo_matrix(
        (np.r_[coo.data, coo.data] / 2, (np.r_[coo.row, coo.row], np.r_[coo.col, coo.col])), (40, 30)
    )
    turned = sp.csr_matrix((plain.data.copy(), plain.indices.copy(), plain.indptr), shape=plain.shape)
    for start, end in zip(plain.indptr[:-1], plain.indptr[1:], strict=True):
        turned.indices[start:end], turned.data[start:end] = plain.indices[start:end][::-1], plain.data[start:end][::-1]
    expected = Terms({}).fit(Features(plain))[0].matrix
    before = zeros.nnz
    for i, other in enumerate((zeros, halves, turned)):
        sp.save_npz(tmp_path / f"{i}.npz", other)
        for features in (Features(other), open_split(tmp_path / f"{i}.npz", need_labels=False)):
            got = Terms({}).fit(features)[0].matrix
            np.testing.assert_array_equal(got.indptr, expected.indptr)
            np.testing.assert_array_equal(got.indices, expected.indices)
            np.testing.assert_allclose(got.data, expected.data, rtol=1e-6)
    assert zeros.nnz == before
    assert canonical_csr(plain) is plain


def test_stale_flags_are_not_believed():
    matrix = sp.csr_matrix((np.array([1.0, 2.0]), np.array([0, 0]), np.array([0, 2])), shape=(1, 2))
    matrix.has_canonical_format = True
    assert canonical_csr(matrix).data.tolist() == [3.0]


def test_hostile_files_end_no_interpreter(tmp_path):
    """In a process of its own, as the failure would be its end."""
    for i, (indptr, indices) in enumerate(BROKEN.values()):
        save(tmp_path / f"{i}.npz", indptr, indices)
    script = (
        "import sys\nfrom sparse_xmc.data import DataError, open_split\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        open_split(path, need_labels=False)\n"
        "    except DataError:\n        print('refused')\n"
    )
    paths = [str(tmp_path / f"{i}.npz") for i in range(len(BROKEN))]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["refused"] * len(BROKEN))
