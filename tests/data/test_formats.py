"""Files of every kind that people have: read right, with a line that says how, or refused with a reason."""

import gzip
import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.prepare import Precomputed, Terms
from sparse_xmc.data import DataError, Features, LabelVocabulary, open_split


def write(folder, name, content):
    path = folder / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def rows(split):
    return [split.labels.row(i) for i in range(len(split.labels))]


def read(path, **options):
    """Texts (or features) and labels of a file."""
    split = open_split(path, **options)
    content = split.matrix.toarray().tolist() if isinstance(split, Features) else list(split)
    return content, rows(split)


# ---- the formats of the repository


PAIRS = "2 90\n14:0.5 26:0.25\n11:0.75 14:0.25\n"


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "", "\n\n"])
def test_two_files(tmp_path, ending, mark, end):
    text = (mark + PAIRS).rstrip().replace("\n", "\r\n" if end == "\r\n" else "\n") + end
    x = write(tmp_path, "trn_X_Xf" + ending, text)
    y = write(tmp_path, "trn_X_Y" + ending, mark + "2 50\n1:1.0 2:1.0\n3:1.0\n")
    split = open_split(x, labels=y)
    assert split.matrix.shape == (2, 90)
    assert split.matrix[0].indices.tolist() == [14, 26] and split.matrix[1].data.tolist() == [0.75, 0.25]
    assert rows(split) == [[1, 2], [3]]
    assert "'rows features'" in split.summary() and "2 rows, 90 features, 3 labels" in split.summary()


def test_two_files_with_other_labels(tmp_path):
    x = write(tmp_path, "X.txt", PAIRS)
    for name, content in (("y.txt", "1 2\n3\n"), ("y.csv", "1,2\n3\n"), ("y.jsonl", "[1, 2]\n[3]\n")):
        assert rows(open_split(x, labels=write(tmp_path, name, content))) == [[1, 2], [3]]
    sp.save_npz(tmp_path / "y.npz", sp.csr_matrix(np.array([[0, 1, 1, 0], [0, 0, 0, 1]])))
    assert rows(open_split(x, labels=tmp_path / "y.npz")) == [[1, 2], [3]]
    texts = write(tmp_path, "trn_X.txt", "first text\nsecond text\n")
    y = write(tmp_path, "Y.txt", "2 5000000000\n1:1.0 4999999999:1.0 7:0\n\n")
    assert read(texts, labels=y) == (["first text", "second text"], [[1, 4999999999], []])


def test_features_without_labels(tmp_path):
    x = write(tmp_path, "X.txt", PAIRS)
    with pytest.raises(DataError, match=r"X.txt: a file of features needs a file of labels"):
        open_split(x)
    split = open_split(x, need_labels=False)
    assert split.matrix.shape == (2, 90) and rows(split) == [[], []]
    with pytest.raises(DataError, match=r"X.txt: holds features .*, the model reads texts"):
        open_split(x, need_labels=False, texts=True)


def test_one_file_has_labels_of_its_own(tmp_path):
    x = write(tmp_path, "train.txt", "2 90 5\n1,3 14:0.5\n2 11:0.75\n")
    y = write(tmp_path, "y.txt", "1\n2\n")
    with pytest.raises(DataError, match=r"train.txt: holds .*: leave out the file of labels"):
        open_split(x, labels=y)
    with pytest.raises(DataError, match=r"train.txt: holds features"):
        open_split(x, need_labels=False, texts=True)


def test_numbers_from_one(tmp_path):
    """A column and a label are the numbers that the file writes, so files of one data set agree."""
    train = open_split(write(tmp_path, "a.txt", "2 3 4\n1,4 1:1 3:2\n2 2:1\n"))
    assert train.matrix.shape == (2, 4) and rows(train) == [[1, 4], [2]]
    assert train.matrix.toarray().tolist() == [[0, 1, 0, 2], [0, 0, 1, 0]]
    test = open_split(write(tmp_path, "b.txt", "1 3 4\n3 1:1 2:2\n"))
    terms = Terms({})
    terms.fit(train)
    assert terms.transform(test)[0].matrix[0].indices.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"c.txt:3: feature 3 lies outside \[0, 3\)"):
        open_split(write(tmp_path, "c.txt", "2 3 4\n1 0:1\n2 3:1\n"))
    with pytest.raises(DataError, match=r"c.txt:2: label 4 lies outside \[0, 4\)"):
        open_split(write(tmp_path, "c.txt", "2 3 4\n4 1:1\n0 2:1\n"))


def test_stored_zeros_of_text(tmp_path):
    split = open_split(write(tmp_path, "a.txt", "2 6 2\n0 5:0 1:1\n1 2:0.0\n"))
    assert split.matrix.nnz == 1


SVM = "# made by hand\n1,3 0:0.5 2:1\n 1:2\n4 3:1e-1 # a remark\n-1 1:1\n\n"


@pytest.mark.parametrize("name", ["a.txt", "a.svm", "a.libsvm.gz", "a.svmlight"])
def test_svmlight(tmp_path, name):
    split = open_split(write(tmp_path, name, SVM))
    assert rows(split) == [[1, 3], [], [4], [-1]]
    assert split.matrix.shape == (4, 4)
    assert "without a header" in split.summary()


def test_files_that_do_not_tell_their_width(tmp_path):
    terms = Terms({})
    terms.fit(open_split(write(tmp_path, "a.svm", "1 0:1 4:1\n2 1:1\n")))
    narrow = terms.transform(open_split(write(tmp_path, "b.svm", "1 0:1\n")))[0]
    assert narrow.matrix.shape == (1, 5)
    wide = open_split(write(tmp_path, "c.svm", "1 0:1 9:1 7:1\n"))
    assert terms.transform(wide)[0].matrix[0].indices.tolist() == [0]
    assert "2 values of features that the model lacks left out" in wide.summary()
    dense = Precomputed()
    dense.fit(open_split(tmp_path / "a.svm"))
    assert dense.transform(open_split(tmp_path / "b.svm"))[0].batch(np.array([0])).shape == (1, 5)
    with pytest.raises(DataError, match="d.txt: holds 7 features, the model reads 5"):
        terms.transform(open_split(write(tmp_path, "d.txt", "1 7 3\n1 0:1\n")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0_1 3:1\n1 3:1\n", "a file of raw texts needs a file of labels"),
        ("1 3_0:1\n1 3:1\n", "a file of raw texts needs a file of labels"),
        ("1 3000000000:1\n", r"a.txt:1: feature 3000000000 lies outside \[0, 134217728\)"),
        ("1 3:1\n1 2:nan\n", r"a.txt:2: feature 2 has the value nan, not finite"),
        ("1 3:1\n1 2:1_0\n", r"a.txt:2: feature 2 has the value 1_0"),
        ("1 3:1\n1 3:1 3:1\n", r"a.txt:2: feature 3 stands twice"),
        ("1 9999999999 3\n1 1:1\n", r"a.txt:1: 9999999999 features, more than 134217728"),
        ("1 3:1\n\n1 2:1\n", r"a.txt:2: an empty line"),
        ("2 9\n1:1\n", "a file of features needs a file of labels"),
    ],
)
def test_broken_features(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        open_split(write(tmp_path, "a.txt", content))


def test_rows_are_counted_in_both_files(tmp_path):
    y = write(tmp_path, "y.txt", "1\n2\n")
    for content, message in (
        ("3 9\n1:1\n2:1\n", "x.txt: holds 2 rows, its header says 3"),
        ("1 9\n1:1\n2:1\n", "x.txt:3: more rows than the 1 of the header"),
        ("1 9\n1:1\n", "y.txt: has 2 rows, the features .*x.txt have 1"),
    ):
        with pytest.raises(DataError, match=message):
            open_split(write(tmp_path, "x.txt", content), labels=y)


# ---- JSON


def test_fields_are_each_records_own(tmp_path):
    """The first record decides nothing for the others."""
    records = [
        {"title": "alpha", "labels": [0]},
        {"title": "b", "content": "c", "labels": [1]},
        {"content": "d", "labels": []},
    ]
    path = write(tmp_path, "a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    split = open_split(path)
    assert list(split) == ["alpha", "b c", "d"]
    assert "text from title (1 rows lack it), content (1 rows lack it); 3 rows; 2 labels from labels" in split.summary()
    assert "1 rows without labels" in split.summary()
    both = write(tmp_path, "b.jsonl", '{"text": "t", "title": "x"}\n{"title": "y"}\n')
    assert list(open_split(both, need_labels=False)) == ["t", "y"]


def test_named_fields(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": "x", "b": "y"}\n{"b": "z"}\n')
    assert list(open_split(path, text_fields=["a", "b"], need_labels=False)) == ["x y", "z"]
    with pytest.raises(DataError, match=r"a.jsonl: no record has the field 'c'"):
        list(open_split(path, text_fields=["b", "c"], need_labels=False))
    with pytest.raises(DataError, match=r"a.jsonl:2: no field 'a', the record has \['b'\]"):
        list(open_split(path, text_fields=["a"], need_labels=False))


def test_labels_are_not_looked_at_where_they_are_not_needed(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "x", "labels": "none"}\n{"text": "y", "labels": [1.5]}\n')
    assert read(path, need_labels=False) == (["x", "y"], [[], []])


def test_a_list_of_records(tmp_path):
    path = write(tmp_path, "a.json", '\n[{"text": "x",\n "labels": [1]},\n {"text": "y", "labels": ["b"]}]')
    split = open_split(path)
    assert (list(split), rows(split)) == (["x", "y"], [[1], ["b"]])
    for content, message in (
        ('[{"text": "x", "labels": [1]}, 5]', "record 2: expected a JSON object, got int"),
        ('[\n{"text": "x", "labels": [1]},\n', "a.json:3: not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ):
        with pytest.raises(DataError, match=message):
            list(open_split(write(tmp_path, "a.json", content)))


def test_json_of_another_name(tmp_path):
    for name in ("a", "a.txt", "a.data.gz"):
        assert read(write(tmp_path, name, '{"text": "x", "labels": [1]}\n')) == (["x"], [[1]])


def test_halves_of_surrogate_pairs(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "x \\ud800 y \\ud83d\\ude00", "labels": []}\n')
    assert list(open_split(path)) == ["x \ufffd y \U0001f600"]


# ---- tables


def test_tables(tmp_path):
    content = 'id,text,labels\n1,"one, two",a;b c\n2,"three\nlines ""q""",7\n3,,\n'
    expected = (["one, two", 'three\nlines "q"', ""], [["a", "b c"], [7], []])
    assert read(write(tmp_path, "a.csv", content)) == expected
    assert (
        read(write(tmp_path, "a.csv.gz", "\ufeff" + content.replace("\n", "\r\n").replace("three\r\n", "three\n")))
        == expected
    )
    for name, delimiter in (("a.tsv", "\t"), ("b.csv", "|"), ("a", "\t"), ("a.txt", ",")):
        split = open_split(write(tmp_path, name, f"labels{delimiter}text\nx;y{delimiter}some words\n"))
        assert (list(split), rows(split)) == (["some words"], [["x", "y"]])
        assert "1 rows; 2 labels from labels (separated by ';')" in split.summary()
    path = write(tmp_path, "c.csv", "Subject;Tags\nhello;a|b\n")
    assert read(path, text_fields=["Subject"], label_field="Tags") == (["hello"], [["a", "b"]])
    assert read(path, text_fields=["Subject", "Tags"], need_labels=False) == (["hello a|b"], [[]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.csv: is empty"),
        (
            "x,y\n1,2\n",
            r"a.csv:1: its first line must name a text column \(--text-field\) and a label column .*got 'x,y'",
        ),
        ("text,labels\na,1\nb\n", "a.csv:3: holds 1 cells, its first line names 2 columns"),
        ("text,labels\na,1\n\nb,2\n", "a.csv:3: an empty line"),
        ('text,labels\n"a,1\nb,2\n', r"a.csv:\d: not a table: unexpected end of data"),
        ('text,labels\n"a,1\n"b",2\n', r"a.csv:3: not a table: .* expected after"),
        ("text,text,labels\na,b,1\n", "a.csv:1: two columns are named 'text'"),
        ('text,labels\na,"x, y"\nb,z\n', r"a.csv: do commas separate labels in 'x, y'\? say so \(--label-separator"),
        (b"text,labels\na,1\nb\xff,2\n", "a.csv:3: not UTF-8"),
    ],
)
def test_broken_tables(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        list(open_split(write(tmp_path, "a.csv", content)))


def test_long_cells(tmp_path):
    path = write(tmp_path, "a.csv", f'text,labels\n"{"word " * 100_000}",1\n')
    assert len(next(iter(open_split(path)))) == 500_000


# ---- labels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("machine learning\n\nC++\n", [["machine learning"], [], ["C++"]]),
        ("machine learning;statistics\nx\ny\n", [["machine learning", "statistics"], ["x"], ["y"]]),
        ("a; b, c ;\nx|y\nz\n", [["a", "b, c"], ["x|y"], ["z"]]),
        ("a b\tc\nd;e\nf\n", [["a b", "c"], ["d;e"], ["f"]]),
        ("1 2\n-3,0\n007 Q42\n", [[1, 2], [-3, 0], ["007", "Q42"]]),
        ("5000000000 18446744073709551616\n1\n2\n", [[5000000000, 18446744073709551616], [1], [2]]),
        ('[1, 2]\n[]\n["machine learning", "a;b"]\n', [[1, 2], [], ["machine learning", "a;b"]]),
        ("type 2 diabetes\n3\ncovid-19\n", [["type 2 diabetes"], [3], ["covid-19"]]),
    ],
)
def test_label_files(tmp_path, content, expected):
    texts = write(tmp_path, "t.txt", "a\nb\nc\n")
    split = open_split(texts, labels=write(tmp_path, "l.txt", content))
    list(split)
    assert rows(split) == expected
    assert "l.txt" in split.summary()


def test_separators_that_are_asked_for(tmp_path):
    texts = write(tmp_path, "t.txt", "a\nb\n")
    labels = write(tmp_path, "l.txt", "Smith, John\nA::B\n")
    for separator, expected in (
        ("none", [["Smith, John"], ["A::B"]]),
        ("comma", [["Smith", "John"], ["A::B"]]),
        ("space", [["Smith,", "John"], ["A::B"]]),
        ("::", [["Smith, John"], ["A", "B"]]),
    ):
        split = open_split(texts, labels=labels, label_separator=separator)
        assert rows(split) == expected
    with pytest.raises(DataError, match=r"l.txt: do commas separate labels in 'Smith, John'\?"):
        open_split(texts, labels=labels)
    path = write(tmp_path, "a.jsonl", '{"text": "x", "labels": "a/b"}\n')
    assert read(path, label_separator="/") == (["x"], [["a", "b"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]\n[2.5]\n", "l.txt:2: not a row of labels: a label must be a string or an integer, got 2.5"),
        ("[1]\n[2,]\n", "l.txt:2: not a row of labels"),
        ("[" * 50_000 + "]\n[1]\n", "l.txt:1: not a row of labels"),
        (b"1\n\xff\n", "l.txt:2: not UTF-8"),
    ],
)
def test_broken_label_files(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        open_split(write(tmp_path, "t.txt", "a\nb\n"), labels=write(tmp_path, "l.txt", content))


def test_a_label_is_the_same_in_every_kind_of_file(tmp_path):
    """Whatever the training split was, every other kind of file means the same labels."""
    names = [5, -7, 0, 2**70, "007", "machine learning", "a-b"]
    encoded = []
    quoted = write(tmp_path, "s.jsonl", json.dumps({"text": "x", "labels": [str(name) for name in names]}) + "\n")
    typed = write(tmp_path, "t.jsonl", json.dumps({"text": "x", "labels": names}) + "\n")
    table = write(tmp_path, "c.csv", "text,labels\nx," + ";".join(map(str, names)) + "\n")
    texts = write(tmp_path, "x.txt", "x\n")
    file = write(tmp_path, "l.txt", "\t".join(map(str, names)) + "\n")
    splits = [open_split(quoted), open_split(typed), open_split(table), open_split(texts, labels=file)]
    for split in splits:
        list(split)
    for train in splits:
        vocabulary = LabelVocabulary.from_rows(train.labels)
        assert len(vocabulary) == len(names)
        encoded += [vocabulary.encode(other.labels).nnz for other in splits]
    assert encoded == [len(names)] * 16


def test_labels_of_numpy():
    from sparse_xmc.data import LabelRows

    labels = LabelRows()
    labels.append([np.int64(3), np.uint8(4), np.str_("x")])
    assert [type(label) for label in labels.row(0)] == [int, int, str]
    for wrong in (np.float32(1), np.bool_(True), True, None, b"x"):
        with pytest.raises(TypeError, match="a label must be a string or an integer"):
            labels.append([wrong])
    assert len(labels) == 1


# ---- columns


pyarrow = pytest.importorskip("pyarrow")


def columns(**values):
    return pyarrow.table(values)


def test_parquet(tmp_path):
    import pyarrow.parquet as pq

    table = columns(text=["one", None, "three"], labels=[["a", "b"], [], None], other=[1, 2, 3])
    for name in ("a.parquet", "a"):
        pq.write_table(table, tmp_path / name)
        split = open_split(tmp_path / name)
        assert (list(split), rows(split)) == (["one", "", "three"], [["a", "b"], [], []])
    assert "a Parquet file; text from text; 3 rows; 2 labels from labels" in split.summary()
    pq.write_table(columns(title=["x", "y"], label=[3, -1]), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == (["x", "y"], [[3], [-1]])
    pq.write_table(columns(text=["x", "y"], labels=["a;b", "c d"]), tmp_path / "c.parquet")
    assert read(tmp_path / "c.parquet") == (["x", "y"], [["a", "b"], ["c d"]])
    pq.write_table(columns(body=["x"], labels=[[1.5]]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d.parquet: no text column found, name one of \['body', 'labels'\]"):
        list(open_split(tmp_path / "d.parquet"))
    with pytest.raises(DataError, match=r"d.parquet: row 1: field 'labels'.*got 1.5"):
        list(open_split(tmp_path / "d.parquet", text_fields=["body"]))
    damaged = (tmp_path / "a.parquet").read_bytes()[:-20]
    with pytest.raises(DataError, match=r"e.parquet: e.parquet is no sound Parquet or Arrow file"):
        list(open_split(write(tmp_path, "e.parquet", damaged)))
    with pytest.raises(DataError, match=r"f.parquet: does not begin as a .parquet file does"):
        open_split(write(tmp_path, "f.parquet", b"nothing"))


def saved(folder, table, features, files=("data-00000-of-00001.arrow",)):
    """What ``Dataset.save_to_disk`` writes."""
    folder.mkdir()
    path = str(folder / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def test_folders_of_datasets(tmp_path):
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["neg", "very positive"], "_type": "ClassLabel"},
    }
    folder = saved(tmp_path / "a", columns(text=["x", "y"], label=[1, 0]), features)
    assert read(folder) == (["x", "y"], [["very positive"], ["neg"]])
    nested = {"labels": {"feature": {"names": ["p", "q"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    folder = saved(tmp_path / "b", columns(text=["x"], labels=[[0, 1]]), nested)
    assert read(folder) == (["x"], [["p", "q"]])
    folder = saved(tmp_path / "c", columns(text=["x"], labels=[[7]]), nested)
    with pytest.raises(DataError, match="row 1: field 'labels': label 7 is none of the 2 classes"):
        list(open_split(folder))
    (tmp_path / "dict" / "train").mkdir(parents=True)
    (tmp_path / "dict" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match="dict: holds several splits, name one of them: train"):
        open_split(tmp_path / "dict")
    for name in ("../a/data-00000-of-00001.arrow", "/etc/hostname", "", "..", None):
        folder = saved(
            tmp_path / f"d{name!r}".replace("/", "_"), columns(text=["x"], label=[1]), features, files=[name]
        )
        with pytest.raises(DataError, match="state.json names no file of this folder"):
            open_split(folder)


def test_folders_of_parquet(tmp_path):
    import pyarrow.parquet as pq

    folder = tmp_path / "data"
    folder.mkdir()
    with pytest.raises(DataError, match="is a folder without Parquet files"):
        open_split(folder)
    for i in range(2):
        pq.write_table(columns(text=[f"t{i}"], labels=[[i]]), folder / f"train-{i:05}-of-00002.parquet")
    assert read(folder) == (["t0", "t1"], [[0], [1]])
    pq.write_table(columns(text=["x"], labels=[[1]]), folder / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match="holds Parquet files of several splits: test, train"):
        open_split(folder)


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path, "a.parquet", b"PAR1....")
    with pytest.raises(DataError, match=r"needs the package pyarrow: it belongs to the extra 'parquet'"):
        list(open_split(path))


# ---- pipes, and what is no data


def test_standard_input():
    script = (
        "from sparse_xmc.data import open_split\ns = open_split('-')\nprint(list(s), s.labels.row(0))\n"
        "print(list(s), s.summary())"
    )
    content = gzip.compress(b'{"text": "one", "labels": [1]}\n')
    done = subprocess.run([sys.executable, "-c", script], input=content, capture_output=True, timeout=120)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "['one'] [1]" and lines[1].startswith("['one'] standard input: JSON lines"), done.stderr.decode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipes(tmp_path):
    pipe, content = tmp_path / "p.csv", "text,labels\nx,a;b\n"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(content))
    writer.start()
    split = open_split(pipe)
    writer.join()
    assert (list(split), list(split), rows(split)) == (["x"], ["x"], [["a", "b"]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xfd7zXZ\x00...", "is compressed with xz"),
        (b"BZh9...", "is compressed with bzip2"),
        (b"\x28\xb5\x2f\xfd...", "is compressed with zstd"),
        (b"\x80\x04\x95...", "is a pickle, which is never read"),
        (b"%PDF-1.7", "is a PDF"),
        (b"PK\x03\x04...", "not a scipy sparse matrix"),
    ],
)
def test_what_is_no_data(tmp_path, content, message):
    for name in ("a.txt", "a.csv", "a"):
        with pytest.raises(DataError, match=message):
            list(open_split(write(tmp_path, name, content), need_labels=False))


def test_compressed_arrays(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match=r"x.npy.gz: holds compressed arrays or columns: unpack it"):
        open_split(write(tmp_path, "x.npy.gz", buffer.getvalue()), need_labels=False)


def test_utf16(tmp_path):
    for name, start in (("a.jsonl", ""), ("a.csv", ""), ("a.txt", "")):
        path = write(tmp_path, name, (start + "text,labels\n").encode("utf-16"))
        with pytest.raises(DataError, match=r":1: not UTF-8 text: .*this is UTF-16, save it as UTF-8"):
            list(open_split(path, need_labels=False))


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs devices")
def test_devices():
    with pytest.raises(DataError, match="/dev/zero: is a device"):
        open_split("/dev/zero")


def test_files_that_may_not_be_read(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_split(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no such file"):
        open_split("a\0b.csv")
    with pytest.raises(DataError, match=r"is a folder, expected a file of labels"):
        open_split(write(tmp_path, "t.txt", "a\n"), labels=tmp_path)
