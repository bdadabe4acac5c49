"""Every file format, read back against what was written; broken files name file, line and reason."""

import gzip
import json

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.data import DataError, Features, LabelRows, LabelVocabulary, open_split, read_filter


def jsonl(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    if str(path).endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def rows(split):
    return [split.labels.row(i) for i in range(len(split.labels))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_json_lines(tmp_path, name):
    path = jsonl(tmp_path / name, [{"text": "one", "labels": ["x", 3]}, {"text": "", "labels": []}])
    split = open_split(path)
    assert list(split) == ["one", ""]
    assert rows(split) == [["x", 3], []]


def test_repository_json_fields_and_lists(tmp_path):
    path = jsonl(tmp_path / "trn.json", [{"title": "t", "content": ["p", "q"], "target_ind": [5, 2, 5]}])
    split = open_split(path)
    assert list(split) == ["t p q"]
    assert rows(split) == [[5, 2]]
    assert list(open_split(path, text_fields=["content"], label_field="target_ind")) == ["p q"]


def test_repository_text_format(tmp_path):
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(b"3 4 5\n1,3 0:0.5 2:1\n 1:2\n4 3:1e-1\n"))
    split = open_split(path)
    assert isinstance(split, Features)
    np.testing.assert_allclose(split.matrix.toarray(), [[0.5, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0.1]], rtol=1e-6)
    assert rows(split) == [[1, 3], [], [4]]


def test_raw_texts_with_labels_beside(tmp_path):
    (tmp_path / "train_raw_texts.txt").write_text("first text\n\nthird\n")
    (tmp_path / "train_labels.txt").write_text("3 1\n\n7\n")
    split = open_split(tmp_path / "train_raw_texts.txt")
    assert list(split) == ["first text", "", "third"]
    assert rows(split) == [[3, 1], [], [7]]


def test_arrays(tmp_path):
    features = sp.random(6, 8, 0.5, format="csr", random_state=0)
    labels = sp.csr_matrix(np.eye(6, 4))
    sp.save_npz(tmp_path / "x.npz", features)
    sp.save_npz(tmp_path / "y.npz", labels)
    np.save(tmp_path / "x.npy", features.toarray().astype(np.float32))
    sparse = open_split(tmp_path / "x.npz", labels=tmp_path / "y.npz")
    dense = open_split(tmp_path / "x.npy", labels=tmp_path / "y.npz")
    np.testing.assert_allclose(sparse.matrix.toarray(), features.toarray(), rtol=1e-6)
    np.testing.assert_allclose(dense.matrix, features.toarray(), rtol=1e-6)
    assert rows(sparse) == rows(dense) == [[0], [1], [2], [3], [], []]


def test_filter_file(tmp_path):
    path = tmp_path / "filter.txt"
    path.write_text("0 7\n1 a\n1 unknown\n\n0 7\n")
    matrix = read_filter(path, 2, LabelVocabulary([7, "a"]))
    assert matrix.toarray().tolist() == [[1, 0], [0, 1]]


def test_vocabulary_order_and_encoding():
    labels = LabelRows()
    for row in (["b"], ["a", "b"], [1, "a", "b"], []):
        labels.append(row)
    vocabulary = LabelVocabulary.from_rows(labels)
    assert vocabulary.names == ["b", "a", 1]
    other = LabelRows()
    other.append(["a", "unseen", "b"])
    other.append(["1"])
    assert vocabulary.encode(other).toarray().tolist() == [[1, 1, 0], [0, 0, 0]]
    assert other.counts().tolist() == [3, 1]
    turned = vocabulary.reordered(np.array([2, 0, 1]))
    assert turned.names == [1, "b", "a"]
    assert turned.encode(other).toarray().tolist() == [[0, 1, 1], [0, 0, 0]]


# mtime=0: a time of day in the bytes, and so in the test's name, would differ between pytest-xdist's workers.
TRUNCATED_GZIP = gzip.compress(b'{"text": "x", "labels": []}\n' * 99, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x", "labels": []}\n{"text": \n', r"a.jsonl:2: not valid JSON"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: expected a JSON object, got list"),
        ("a.jsonl", b'{"body": "x", "labels": []}\n', r"a.jsonl:1: no text field found.*'body'"),
        ("a.jsonl", b'{"text": "x"}\n', r"a.jsonl:1: no label field found"),
        ("a.jsonl", b'{"text": "x", "labels": []}\n{"text": "x"}\n', r"a.jsonl:2: no field 'labels'"),
        ("a.jsonl", b'{"text": 3, "labels": []}\n', r"a.jsonl:1: field 'text' must hold text"),
        ("a.jsonl", b'{"text": "", "labels": "x"}\n', r"a.jsonl:1: field 'labels' must be a list"),
        ("a.jsonl", b'{"text": "", "labels": [1.5]}\n', r"a.jsonl:1: field 'labels'.*got 1.5"),
        ("a.jsonl", b"\xff\xfe\n", r"a.jsonl: not UTF-8"),
        ("a.txt", b"2 3 4\n1 0:1\n9 0:1\n", r"a.txt:3: label 9 lies outside \[0, 4\)"),
        ("a.txt", b"1 3 4\n1 5:1\n", r"a.txt:2: feature 5 lies outside \[0, 3\)"),
        ("a.txt", b"1 3 4\n1 0:1 0:2\n", r"a.txt:2: feature 0 stands twice"),
        ("a.txt", b"1 3 4\n1 0:nan\n", r"a.txt:2: feature 0 has the value nan"),
        ("a.txt", b"1 3 4\n1 0\n", r"a.txt:2: expected 'feature:value', got '0'"),
        ("a.txt", b"1 3 4\nx 0:1\n", r"a.txt:2: labels must be integers"),
        ("a.txt", b"3 3 4\n1 0:1\n", r"a.txt: holds 1 rows, its header says 3"),
        ("a.txt", b"1 3 4\n1 0:1\n2 0:1\n", r"a.txt:3: more rows than the 1"),
        ("a.jsonl.gz", TRUNCATED_GZIP, r"truncated or corrupt gzip"),
        ("a.csv", b"", r"a.csv: unknown format '.csv'"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        split = open_split(tmp_path / name)
        list(split)


def test_broken_arrays(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "y.txt").write_text("1\n2\n")
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match="x.npz: not a scipy sparse matrix"):
        open_split(tmp_path / "x.npz", labels=tmp_path / "y.txt")
    with pytest.raises(DataError, match="y.txt: has 2 rows, the features .*x.npy have 3"):
        open_split(tmp_path / "x.npy", labels=tmp_path / "y.txt")
    with pytest.raises(DataError, match="no such file"):
        list(open_split(tmp_path / "none.jsonl"))
    (tmp_path / "f.txt").write_text("5 1\n")
    with pytest.raises(DataError, match=r"f.txt:1: row 5 lies outside \[0, 2\)"):
        read_filter(tmp_path / "f.txt", 2, LabelVocabulary([1]))


def test_raw_texts_and_labels_must_match(tmp_path):
    (tmp_path / "t.txt").write_text("a\nb\nc\n")
    (tmp_path / "l.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="t.txt:3: .*l.txt has 2 rows"):
        list(open_split(tmp_path / "t.txt", labels=tmp_path / "l.txt"))
