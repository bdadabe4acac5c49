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
    path.write_text("0 7\n1 a\n1 unknown\n\n0 7\n0 two words \n")
    matrix = read_filter(path, 2, LabelVocabulary([7, "a", "two words"]))
    assert matrix.toarray().tolist() == [[1, 0, 1], [0, 1, 0]]
    with pytest.warns(UserWarning, match=r"filter.txt: none of its 5 labels \('7', 'a', 'unknown', \.\.\.\)"):
        assert read_filter(path, 2, LabelVocabulary([3])).nnz == 0


def test_label_ids_keep_their_writing_in_every_file(tmp_path):
    """What an id becomes depends on the id alone, so that any two files agree."""
    x = tmp_path / "x.npy"
    np.save(x, np.zeros((2, 1), np.float32))
    long = "9" * 5000
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf5 001\n0\n")
    (tmp_path / "b.txt").write_text(f"5,0\n\u00b2 x-1 007 7 {long}\n", encoding="utf-8")
    assert rows(open_split(x, labels=tmp_path / "a.txt")) == [[5, "001"], [0]]
    assert rows(open_split(x, labels=tmp_path / "b.txt")) == [[5, 0], ["\u00b2", "x-1", "007", 7, long]]


def test_byte_order_marks_are_left_out(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"text": "x", "labels": []}\n')
    (tmp_path / "a.txt").write_bytes(mark + b"1 2 3\r\n0 1:1\r\n")
    (tmp_path / "t.txt").write_bytes(mark + b"first\n")
    (tmp_path / "f.txt").write_bytes(mark + b"0 7\n")
    assert list(open_split(tmp_path / "a.jsonl")) == ["x"]
    assert rows(open_split(tmp_path / "a.txt")) == [[0]]
    assert list(open_split(tmp_path / "t.txt", need_labels=False)) == ["first"]
    assert read_filter(tmp_path / "f.txt", 1, LabelVocabulary([7])).nnz == 1


def test_texts_may_begin_with_three_integers(tmp_path):
    path = tmp_path / "t_raw_texts.txt"
    path.write_text("10 20 30\nwords\n")
    assert list(open_split(path, need_labels=False, texts=True)) == ["10 20 30", "words"]
    (tmp_path / "t_labels.txt").write_text("1\n2\n")
    assert list(open_split(path)) == ["10 20 30", "words"]


def test_empty_lines_end_a_file_of_records_only(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n \n')
    assert list(open_split(path, need_labels=False)) == ["x"]


def test_stored_zeros_are_no_labels():
    matrix = sp.csr_matrix((np.array([1.0, 0.0, 1.0]), np.array([2, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))
    labels = LabelRows.from_csr(matrix)
    assert [labels.row(0), labels.row(1)] == [[2], [0]]
    assert matrix.nnz == 3


def test_vocabulary_order_and_encoding():
    labels = LabelRows()
    for row in (["b"], ["a", "b"], [1, "a", "b"], []):
        labels.append(row)
    vocabulary = LabelVocabulary.from_rows(labels)
    assert vocabulary.names == ["b", "a", 1]
    other = LabelRows()
    other.append(["a", "unseen", "b"])
    other.append(["1"])
    assert vocabulary.encode(other).toarray().tolist() == [[1, 1, 0], [0, 0, 1]]
    assert other.counts().tolist() == [3, 1]
    turned = vocabulary.reordered(np.array([2, 0, 1]))
    assert turned.names == [1, "b", "a"]
    assert turned.encode(other).toarray().tolist() == [[0, 1, 1], [1, 0, 0]]


def test_integers_and_their_texts():
    """Where a model knows one of 1 and "1", both mean it; where it knows both, they are different labels."""
    labels = LabelRows()
    labels.append([1, "1", "01"])
    assert LabelVocabulary([1, "x"]).encode(labels).toarray().tolist() == [[1, 0]]
    assert LabelVocabulary(["1", "01"]).encode(labels).toarray().tolist() == [[1, 1]]
    assert LabelVocabulary([1, "1"]).encode(labels).toarray().tolist() == [[1, 1]]
    with pytest.warns(UserWarning, match=r"none of its 3 labels \(1, '1', '01', .* the model's 2 \(2, 'x', "):
        assert LabelVocabulary([2, "x"]).encode(labels).nnz == 0


TRUNCATED_GZIP = gzip.compress(b'{"text": "x", "labels": []}\n' * 99)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x", "labels": []}\n{"text": \n', r"a.jsonl:2: not valid JSON"),
        ("a.jsonl", b"[1]\n", r"a.jsonl:1: expected a JSON object, got list"),
        ("a.jsonl", b'{"body": "x", "labels": []}\n', r"a.jsonl:1: no text field found.*'body'"),
        ("a.jsonl", b'{"text": "x"}\n', r"a.jsonl:1: no label field found"),
        ("a.jsonl", b'{"text": "x", "labels": []}\n{"text": "x"}\n', r"a.jsonl:2: no field 'labels'"),
        ("a.jsonl", b'{"text": 3, "labels": []}\n', r"a.jsonl:1: field 'text' must hold text"),
        ("a.jsonl", b'{"text": "", "labels": [1.5]}\n', r"a.jsonl:1: field 'labels'.*got 1.5"),
        ("a.jsonl", b'{"text": "", "labels": [[1]]}\n', r"a.jsonl:1: field 'labels'.*got \[1\]"),
        ("a.jsonl", b'{"text": "", "labels": null}\n', r"a.jsonl:1: field 'labels' must be a list of labels, got null"),
        ("a.jsonl", b'{"text": "x", "labels": []}\n\n{"text": "x", "labels": []}\n', r"a.jsonl:2: an empty line"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", r"a.jsonl:1: JSON nested too deeply"),
        ("a.jsonl", b'{"text": "", "labels": [' + b"9" * 5000 + b"]}\n", r"a.jsonl:1: .*4300 digits"),
        ("a.jsonl", b'{"text": "x", "labels": []}\n{"text": "caf\xe9"}\n', r"a.jsonl:2: not UTF-8.*0xe9"),
        ("a.jsonl", b"\xff\xfe\n", r"a.jsonl:1: not UTF-8"),
        ("a.txt", b"2 3 4\n1 0:1\n9 0:1\n", r"a.txt:3: label 9 lies outside \[0, 4\)"),
        ("a.txt", b"1 3 4\n1 5:1\n", r"a.txt:2: feature 5 lies outside \[0, 3\)"),
        ("a.txt", b"1 3 4\n1 0:1 0:2\n", r"a.txt:2: feature 0 stands twice"),
        ("a.txt", b"1 3 4\n1 0:nan\n", r"a.txt:2: feature 0 has the value nan"),
        ("a.txt", b"1 3 4\n1 2:-1e39\n", r"a.txt:2: feature 2 has the value -1e39, not finite in float32"),
        ("a.txt", b"1 3 \xc2\xb2\n1 0:1\n", r"a.txt: a file of raw texts needs a file of labels"),
        ("a.txt", b"1 3 4\n" + b"9" * 5000 + b" 0:1\n", r"a.txt:2: labels must be integers.*'9{70}"),
        ("a.txt", b"1 3 4\n1 0\n", r"a.txt:2: expected 'feature:value', got '0'"),
        ("a.txt", b"1 3 4\nx 0:1\n", r"a.txt:2: labels must be integers"),
        ("a.txt", b"3 3 4\n1 0:1\n", r"a.txt: holds 1 rows, its header says 3"),
        ("a.txt", b"1 3 4\n1 0:1\n2 0:1\n", r"a.txt:3: more rows than the 1"),
        ("a.jsonl.gz", TRUNCATED_GZIP, r"truncated or corrupt gzip"),
        ("a.csv", b"", r"a.csv: is empty"),
        ("a.foo", b"words\n", r"a.foo: unknown format '.foo'"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # a test's name is the same in every process, and short
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
    for ending, save in ((".npy", np.save), (".npz", lambda path, x: sp.save_npz(path, sp.csr_matrix(x)))):
        for value in (np.nan, 1e39):
            x = np.zeros((5000, 2))
            x[4500, 1] = value
            save(tmp_path / f"bad{ending}", x)
            with pytest.raises(DataError, match=rf"bad{ending}: row 4500 \(from 0\) holds a value that is not finite"):
                open_split(tmp_path / f"bad{ending}", labels=tmp_path / "y.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("5 1\n", r"f.txt:1: row 5 lies outside \[0, 2\)"),
        ("0 1\n\u00b2 1\n", r"f.txt:2: expected 'row label'"),
        ("1\n", r"f.txt:1: expected 'row label'"),
    ],
)
def test_broken_filters(tmp_path, content, message):
    (tmp_path / "f.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_filter(tmp_path / "f.txt", 2, LabelVocabulary([1]))


def test_raw_texts_and_labels_must_match(tmp_path):
    (tmp_path / "t.txt").write_text("a\nb\nc\n")
    (tmp_path / "l.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="t.txt:3: .*l.txt has 2 rows"):
        list(open_split(tmp_path / "t.txt", labels=tmp_path / "l.txt"))
