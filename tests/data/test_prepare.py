"""From splits to inputs: errors as they are, nothing made dense as a whole, damaged caches rebuilt."""

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.prepare import Precomputed, Terms, restore_preparation
from sparse_xmc.data import DataError, Features, open_split

OPTIONS = {"max_features": 50, "min_df": 1, "max_ngram": 1}


def test_a_broken_training_file_keeps_its_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "labels": []}\n{"text"\n')
    with pytest.raises(DataError, match=r"^[^:]*a.jsonl:2: not valid JSON"):
        Terms(OPTIONS).fit(open_split(path))
    path.write_text("")
    with pytest.raises(DataError, match=r"^[^:]*a.jsonl: the training texts give no tf-idf terms"):
        Terms(OPTIONS).fit(open_split(path))


def test_splits_without_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "some words", "labels": []}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "x.txt").write_text("1 3 2\n0 1:1\n")
    (tmp_path / "empty.txt").write_text("0 3 2\n")
    for name, empty, reads_texts in (("a.jsonl", "empty.jsonl", True), ("x.txt", "empty.txt", False)):
        terms = Terms(OPTIONS)
        fitted, _ = terms.fit(open_split(tmp_path / name))
        assert terms.reads_texts == reads_texts
        inputs, labels = terms.transform(open_split(tmp_path / empty))
        assert len(inputs) == len(labels) == 0
        assert inputs.matrix.shape[1] == fitted.matrix.shape[1]


def test_features_and_texts_are_not_mixed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "some words", "labels": []}\n')
    (tmp_path / "x.txt").write_text("1 3 2\n0 1:1\n")
    terms = Terms(OPTIONS)
    terms.fit(open_split(tmp_path / "a.jsonl"))
    with pytest.raises(DataError, match="x.txt: holds features, the model was trained on texts"):
        terms.transform(open_split(tmp_path / "x.txt"))


def test_sparse_features_are_never_dense_as_a_whole():
    """10^12 entries as a dense matrix."""
    matrix = sp.csr_matrix((np.ones(1, np.float32), ([5], [7])), shape=(1_000_000, 1_000_000))
    inputs, _ = Precomputed().fit(Features(matrix))
    batch = inputs.batch(np.array([4, 5]))
    assert batch.shape == (2, 1_000_000)
    assert batch.nonzero().tolist() == [[1, 7]]


def test_counts_grow_with_their_logarithm_as_those_of_texts_do():
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = sp.csr_matrix(np.random.default_rng(0).poisson(0.8, (40, 12)).astype(np.float32))
    terms = Terms(OPTIONS)
    got, _ = terms.fit(Features(counts))
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(counts.astype(np.float64))
    np.testing.assert_allclose(got.matrix.toarray(), expected.toarray(), atol=1e-6)
    restored = restore_preparation(*terms.state())
    again, _ = restored.transform(Features(counts))
    assert (again.matrix != got.matrix).nnz == 0
    with pytest.raises(DataError, match="holds other values than counts"):
        restored.transform(Features(counts * 0.5))


@pytest.mark.parametrize("values", [[1, 1, 1], [0.5, 2, 3], [-1, 2, 3]])
def test_binary_and_weighted_features_stay_linear(values):
    weighted = sp.csr_matrix(np.diag(values).astype(np.float32))
    terms = Terms(OPTIONS)
    inputs, _ = terms.fit(Features(weighted))
    assert not terms.counts and "counts" not in terms.state()[0]
    assert np.array_equal(inputs.matrix.diagonal(), np.sign(values))
