"""From splits to inputs: errors as they are, nothing made dense as a whole, damaged caches rebuilt."""

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.prepare import Precomputed, Terms
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
