"""Files as people have them: read as they are meant, or refused in a line that says what to do."""

import gzip
import json

import pytest

from sparse_xmc.data import DataError, Features, open_split
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="reads files only")
HEADER = b"text,labels\n"


def read(path, **options):
    split = open_split(path, **options)
    texts = None if isinstance(split, Features) else list(split)
    return split, texts, [split.labels.row(i) for i in range(len(split.labels))]


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("a.csv", HEADER + b'a,"[\'x\', \'y\']"\nb,"[]"\nc,"[""it\'s""]"\n', [["x", "y"], [], ["it's"]]),
        ("a.csv", HEADER + b'a,"[1, 2]"\nb,"[""x""]"\n', [[1, 2], ["x"]]),
        ("a.csv", HEADER + b"a,\"['it\\'s, so']\"\n", [["it's, so"]]),
        ("a.jsonl", b'{"text": "a", "labels": "x;y"}\n{"text": "b", "labels": "z z"}\n', [["x", "y"], ["z z"]]),
        ("a.jsonl", b'{"text": "a", "label": "sports"}\n{"text": "b", "label": "food"}\n', [["sports"], ["food"]]),
        ("a.jsonl", b'{"text": "a", "labels": ["x;y"]}\n{"text": "b", "labels": "7 8"}\n', [["x;y"], [7, 8]]),
        ("a.json", b'[{"text": "a", "label": "007"}, {"text": "b", "label": "7"}]', [["007"], [7]]),
        ("a.svm", b"1 qid:3 1:0.5 3:1\n0 qid:4 2:1 # a\n", [[1], [0]]),
        ("a.txt", b"2,3 qid:3 1:0.5 3:1\n qid:4\n", [[2, 3], []]),
        ("a.libsvm", b"+1 1:0.5\n-1 2:1\n", [[1], [-1]]),
        ("a.csv", HEADER, []),
    ],
)
def test_read_as_meant(tmp_path, name, content, labels):
    (tmp_path / name).write_bytes(content)
    split, _, found = read(tmp_path / name)
    assert found == labels and f"{len(labels):,} rows" in split.summary()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,labels\ra,x\rb,y\r", "a.csv:1: its lines end with CR alone: save it with LF"),
        ("a.jsonl", b'{"text": "a", "labels": []}\r{"text": "b", "labels": []}', "a.jsonl:1: its lines end with CR alone"),
        ("a.txt", b"2 4 3\r0,1 0:1\r2 3:1\r", "a.txt:1: its lines end with CR alone"),
        ("a.csv", "text,labels\na,x\n".encode("utf-16-le"), "a.csv:1: not UTF-8 text: every other byte is NUL"),
        ("a.json", '[{"text": "a", "labels": []}]'.encode("utf-16"), "a.json:1: not UTF-8 text: this is UTF-16"),
        ("a.csv", HEADER + b"a,x\nb\0c,y\n", "a.csv:3: holds a NUL byte at column 2"),
        ("a.txt", b"1 9 9\n1 2:1\0\n", "a.txt:2: holds a NUL byte at column 6"),
        ("a.csv.gz", gzip.compress(gzip.compress(HEADER, mtime=0), mtime=0), "a.csv.gz: is compressed twice"),
        ("a.csv", HEADER + b"a,\"['x' 'y']\"\n", "a.csv:2: field 'labels': expected a list of labels in JSON, got "),
        ("a.csv", HEADER + b"a,\"[open('x')]\"\n", "expected a list of labels in JSON"),
        ("a.csv", HEADER + b"a,\"['x\ry']\"\n", "expected a list of labels in JSON"),
        ("a.csv", HEADER + b'a,"[' + b"9" * 5000 + b",'x']\"\n", "expected a list of labels in JSON"),
        ("a.csv", HEADER + b"a,[1 2]\n", "expected a list of labels in JSON"),
        ("a.csv", HEADER + b"a,\"['x',]\"\n", "expected a list of labels in JSON"),
        ("a.jsonl", b'{"text": "a", "labels": "x, y"}\n', "do commas separate labels in 'x, y'"),
        ("a.svm", b"1 1:1\n1.5 2:1\n", "a.svm:2: labels must be integers separated by commas, got '1.5'"),
        ("a.svm", b"1 1:1\n2 x\n", "a.svm:2: expected 'feature:value', got 'x'"),
        ("a.txt", b"1 1:1\n2 2:1\n1, 2 3:1\n", "a.txt:3: most lines read 'l1,l2 feature:value ...', but this one is '1, 2"),
        ("a.svm", b"1 qid:x 1:1\n", "a.svm:1: expected 'feature:value', got 'qid:x'|feature"),
    ],
)  # fmt: skip
def test_refused_with_the_place_and_the_way_out(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_classes_of_parquet_files_have_their_names(tmp_path):
    """``datasets`` keeps the names of classes in the file; -1 is how it writes that there is none."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    feature = {"_type": "ClassLabel", "names": ["good", "bad"]}
    info = {"info": {"features": {"text": {"_type": "Value"}, "label": feature}}}
    table = pa.table({"text": ["a", "b", "c", "d"], "label": pa.array([1, 0, -1, None], pa.int64())})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[2] == [["bad"], ["good"], [], []]
    for metadata in ("{", "[]", '{"info": 3}', '{"info": {"features": {"label": {"names": [1]}}}}'):
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "b.parquet")
        assert read(tmp_path / "b.parquet")[2] == [[1], [0], [-1], []]
    wrong = pa.table({"text": ["a"], "label": [2]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(wrong, tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"row 1: field 'label': label 2 is none of the 2 classes"):
        read(tmp_path / "c.parquet")


def test_parquet_columns_of_other_types(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = pa.array(["a", "b", "a"]).dictionary_encode()  # a categorical
    kinds = {
        "lists": (pa.array([["x"], [], None]), [["x"], [], []]),
        "large": (pa.array([["x"], ["y"], []], pa.large_list(pa.large_string())), [["x"], ["y"], []]),
        "categorical": (pa.array(["x", "y;z", None]).dictionary_encode(), [["x"], ["y", "z"], []]),
        "integers": (pa.array([1, 2, None], pa.uint8()), [[1], [2], []]),
    }
    for name, (column, labels) in kinds.items():
        pq.write_table(pa.table({"text": texts, "labels": column}), tmp_path / f"{name}.parquet")
        assert read(tmp_path / f"{name}.parquet")[1:] == (["a", "b", "a"], labels), name
    refused = {
        "floats": (pa.array([1.0, 2.0, float("nan")]), r"row 1: field 'labels': a label must be .* got 1.0"),
        "nulls": (pa.array([["x", None], [], []]), r"row 1: field 'labels': a label must be .* got None"),
        "nested": (pa.array([[["x"]], [], []]), r"row 1: field 'labels': a label must be .* got \['x'\]"),
        "flags": (pa.array([True, False, True]), r"row 1: field 'labels': a label must be .* got True"),
        "bytes": (pa.array([b"x", b"y", b"z"]), r"row 1: field 'labels': a label must be .* got b'x'"),
    }
    for name, (column, message) in refused.items():
        pq.write_table(pa.table({"text": texts, "labels": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=message):
            read(tmp_path / f"{name}.parquet")
