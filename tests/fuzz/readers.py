"""Files for ``open_split``: whatever is done to one, it is read as a whole or refused in one line that names it."""

import contextlib
import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.prepare import Precomputed, Terms
from sparse_xmc.data import DataError, Features, LabelVocabulary, open_split, read_filter
from tests.fuzz.mutation import changed, mutated

RECORDS = [
    {"text": "one two", "labels": ["machine learning", 5]},
    {"text": "naïve Ünïcode 機械", "labels": []},
    {"title": "only a title", "labels": ["a;b", "007"]},
    {"title": "t", "content": ["p", "q"], "labels": [-3, 2**40]},
]
TABLE = 'text,labels,other\n"one, two",a;b c,1\n"three\nlines ""q""",7,2\nlast,,3\n'
ONE_FILE = "4 6 5\n1,3 0:0.5 2:1\n 1:2\n4 3:1e-1 5:0\n2\n"
PAIRS = "3 6\n0:0.5 2:1\n\n3:1e-1 5:0\n"
LABELS = ("1 2\n\n3\n", "machine learning;b\nc\n\n", "3 9\n1:1 2:1\n\n8:1\n", '[1]\n[]\n[2, "x"]\n')
SVM = "1,3 0:0.5 2:1 # c\n4 3:1e-1\n-1 1:1\n"
TEXTS = "first text\n\nthird\n"


def _lines(records: list) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def use(path: Path, rows_there: int | None = None, **options) -> None:
    """Reads a file, makes features and targets of it; checks that no row is lost.

    Args:
        rows_there: rows that the file holds, where that is told independently.
    """
    try:
        split = open_split(path, **options)
        if isinstance(split, Features):
            rows = split.matrix.shape[0]
            kinds = [Terms({"min_df": 1}), Precomputed()] if split.matrix.shape[1] < 1_000_000 else []
            for kind in kinds:
                with contextlib.suppress(DataError):  # dense features are not for Terms
                    inputs, _ = kind.fit(split)
                    inputs.batch(np.arange(len(inputs)))
        else:
            texts = list(split)
            rows = len(texts)
            assert all(isinstance(text, str) for text in texts)
            terms = Terms({"min_df": 1, "max_ngram": 2, "char_ngrams": (2, 3)})
            with contextlib.suppress(DataError):  # of no words
                inputs, _ = terms.fit(split)
                assert len(inputs) == rows
    except DataError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 1000, f"no single line: {message!r}"
        assert error.path in (str(path), str(options.get("labels"))) or error.path.startswith(str(path)), message
        return
    assert len(split.labels) == rows, f"{len(split.labels)} rows of labels for {rows} rows"
    assert rows_there is None or rows == rows_there, f"{rows} of {rows_there} rows were read"
    assert "\n" not in split.summary()
    vocabulary = LabelVocabulary.from_rows(split.labels)
    assert vocabulary.encode(split.labels).shape == (rows, len(vocabulary))


def _written(folder: Path, name: str, content: bytes, rng: random.Random) -> Path:
    path = folder / name
    if rng.random() < 0.1:
        content = gzip.compress(content, mtime=0)
        if rng.random() < 0.5:
            content = mutated(content, rng)
    path.write_bytes(content)
    return path


def _plain(path: Path) -> bytes | None:
    """The bytes of a file, None where they are compressed (and perhaps damaged)."""
    content = path.read_bytes()
    return None if content[:2] == b"\x1f\x8b" else content


def json_lines(rng: random.Random, folder: Path) -> None:
    records = list(RECORDS)
    if rng.random() < 0.5:
        i = rng.randrange(len(records))
        records[i] = changed(records[i], rng)
    content = _lines(records)
    if rng.random() < 0.7:
        content = mutated(content, rng)
    path = _written(folder, rng.choice(("a.jsonl", "a.json", "a")), content, rng)
    plain = _plain(path)
    whole = plain is not None and path.suffix != "" and plain.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    there = sum(bool(line.strip()) for line in plain.split(b"\n")) if plain is not None and whole else None
    use(path, there, need_labels=rng.random() < 0.7)


def json_list(rng: random.Random, folder: Path) -> None:
    document = changed(RECORDS, rng) if rng.random() < 0.6 else RECORDS
    content = json.dumps(document, indent=rng.choice((None, 1))).encode()
    use(_written(folder, "a.json", mutated(content, rng) if rng.random() < 0.7 else content, rng))


def table(rng: random.Random, folder: Path) -> None:
    delimiter = rng.choice(",;\t|")
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(csv.reader(io.StringIO(TABLE)))
    path = _written(folder, rng.choice(("a.csv", "a.tsv", "a")), mutated(buffer.getvalue().encode(), rng), rng)
    use(path, need_labels=rng.random() < 0.7)


def one_file(rng: random.Random, folder: Path) -> None:
    path = _written(folder, "a.txt", mutated(ONE_FILE.encode(), rng), rng)
    plain = _plain(path) or b""
    head = plain.removeprefix(b"\xef\xbb\xbf").split(b"\n")[0].split()
    header = len(head) == 3 and all(number.isdigit() and len(number) < 19 for number in head)
    use(path, int(head[0]) if header else None, need_labels=rng.random() < 0.7)


def two_files(rng: random.Random, folder: Path) -> None:
    x, y = PAIRS.encode(), rng.choice(LABELS).encode()
    if rng.random() < 0.5:
        x = mutated(x, rng)
    if rng.random() < 0.7:
        y = mutated(y, rng)
    labels = _written(folder, "y.txt", y, rng)
    use(_written(folder, "x.txt", x, rng), labels=labels)


def svmlight(rng: random.Random, folder: Path) -> None:
    use(
        _written(folder, rng.choice(("a.svm", "a.txt")), mutated(SVM.encode(), rng), rng),
        need_labels=rng.random() < 0.7,
    )


def texts_and_labels(rng: random.Random, folder: Path) -> None:
    x, y = TEXTS.encode(), rng.choice(LABELS).encode()
    if rng.random() < 0.5:
        x = mutated(x, rng)
    labels = _written(folder, "y.txt", mutated(y, rng), rng)
    path = _written(folder, "x.txt", x, rng)
    plain = _plain(path)
    there = None if plain is None else len(plain.split(b"\n")) - (plain[-1:] in (b"\n", b""))
    features = plain is not None and b":" in plain
    use(path, None if features else there, labels=labels)


def _npz(rng: random.Random) -> bytes:
    matrix = sp.random(5, 6, 0.4, format=rng.choice(("csr", "csc", "coo")), random_state=rng.randrange(1000))
    buffer = io.BytesIO()
    sp.save_npz(buffer, matrix)
    parts = dict(np.load(io.BytesIO(buffer.getvalue())))
    if rng.random() < 0.7:
        name = rng.choice(list(parts))
        array = np.atleast_1d(parts[name]).copy()
        action = rng.randrange(5)
        if action == 0 and array.dtype.kind in "iuf" and array.size:
            value = rng.choice((-1, 6, 7, 2**31 - 1, 10**6, -(10**6), float("nan"), float("inf")))
            with np.errstate(all="ignore"), contextlib.suppress(ValueError, OverflowError):
                array.reshape(-1)[rng.randrange(array.size)] = value
        elif action == 1:
            array = array[: rng.randrange(len(array) + 1)]
        elif action == 2:
            with contextlib.suppress(ValueError):  # letters are no numbers
                array = array.astype(rng.choice(("f4", "i1", "u8", "c8", "S3", "?", "f2")))
        elif action == 3:
            array = np.concatenate([array, array])
        else:
            array = array.reshape(1, -1)
        parts[name] = array
        if rng.random() < 0.1:
            del parts[name]
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    return buffer.getvalue()


def arrays(rng: random.Random, folder: Path) -> None:
    """Sparse features and sparse labels."""
    with np.errstate(all="ignore"):
        for name in ("x.npz", "y.npz"):
            content = _npz(rng)
            (folder / name).write_bytes(mutated(content, rng) if rng.random() < 0.3 else content)
        use(folder / "x.npz", labels=folder / "y.npz")


def dense_arrays(rng: random.Random, folder: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(15, dtype=rng.choice(("f4", "f8", "f2", "i4", ">f4", "c8"))).reshape(5, 3))
    (folder / "x.npy").write_bytes(mutated(buffer.getvalue(), rng))
    use(folder / "x.npy", need_labels=False)


def filters(rng: random.Random, folder: Path) -> None:
    path = _written(folder, "f.txt", mutated(b"0 7\n1 a\n2 two words\n\n0 7\n", rng), rng)
    try:
        matrix = read_filter(path, 3, LabelVocabulary([7, "a", "two words"]))
        assert matrix.shape == (3, 3)
    except DataError as error:
        assert "\n" not in str(error) and error.path == str(path)


def parquet(rng: random.Random, folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [rng.choice(("one two", "", None, "naïve")) for _ in range(5)]
    columns = (
        [["a", "b"], [], None, ["c"], ["a"]],
        [[1, 2], [3], [], [-1], [2**40]],
        ["a;b", "c d", None, "", "x"],
        [1, 2, None, 3, 4],
        [[1.5], [], [], [], []],
        [[[1]], [], [], [], []],
        [True, False, None, True, False],
    )
    content = io.BytesIO()
    table = pyarrow.table({"text": texts, rng.choice(("labels", "label", "x")): rng.choice(columns)})
    if rng.random() < 0.5:
        pyarrow.parquet.write_table(table, content)
    else:
        with pyarrow.ipc.new_file(content, table.schema) as writer:
            writer.write_table(table)
    data = content.getvalue()
    if rng.random() < 0.3:
        data = data[: rng.randrange(len(data))]
    (folder / "a.parquet").write_bytes(data)
    use(folder / "a.parquet", 5 if len(data) == len(content.getvalue()) else None)


TARGETS: dict[str, Callable[[random.Random, Path], None]] = {
    "json lines": json_lines,
    "json list": json_list,
    "table": table,
    "one file": one_file,
    "two files": two_files,
    "svmlight": svmlight,
    "texts and labels": texts_and_labels,
    "arrays": arrays,
    "dense arrays": dense_arrays,
    "filters": filters,
    "parquet": parquet,
}
