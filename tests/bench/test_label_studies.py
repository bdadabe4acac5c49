"""The studies of new labels and of the estimator: what they feed their runs with, and what their reports say."""

import gzip
import json

import numpy as np
import pytest

from bench.studies import estimator, new_labels


@pytest.mark.parametrize("name", ["TIBKAT-EN", "Bibtex"])
def test_new_labels_are_taken_out_of_the_first_rows_only(tmp_path, name):
    data, rows = new_labels.SETS[name], [[1, 2], [3], [2, 4], [5, 6, 7], [8, 9, 10], [1]]
    if name == "Bibtex":
        text = "6 3 11\n" + "".join(f"{','.join(map(str, row))} 0:1 2:0.5\n" for row in rows)
    else:
        text = "".join(json.dumps({"text": "words", "labels": row}) + "\n" for row in rows)
    train = tmp_path / f"train{data.ending}"
    train.write_bytes(gzip.compress(text.encode()))
    new, count = new_labels.split_files(data, train, 0.3, 0, tmp_path)
    assert len(new) == 3 and new <= {str(label) for row in rows for label in row}
    base = (tmp_path / f"base{data.ending.removesuffix('.gz')}").read_text().splitlines()
    only = (tmp_path / f"only{data.ending.removesuffix('.gz')}").read_text().splitlines()
    strings = [[str(label) for label in row] for row in rows]
    assert [data.labels(line) for line in base] == [
        row for row in ([v for v in r if v not in new] for r in strings) if row
    ]
    assert [data.labels(line) for line in only] == [row for row in strings if new & {*row}] and count == len(only)


def test_the_report_sets_every_training_against_the_one_anew():
    figures = {"P@1": 90.0, "P@3": 80.0, "P@5": 70.0, "R@5 of new labels": 60.0, "wall_s": 9.0}
    about = {"data": "X", "split": "dev", "seed": 0, "new labels": 7, "options": "", **figures}
    rows = [{**about, "run": "from it, all rows", "cpu_s": 10.0}, {**about, "run": "anew, all rows", "cpu_s": 80.0}]
    text = new_labels.report(rows)
    assert "## X, dev split: 7 new labels" in text and "| from it, all rows | 10.0 | 12 % | 90.00 |" in text


def test_rows_of_the_estimator_study_tell_their_labels():
    x, y = estimator.synthetic(300, 20, 200, 1)
    again = estimator.synthetic(300, 20, 200, 1)
    assert (x != again[0]).nnz == 0 and (y != again[1]).nnz == 0
    assert x.shape == (300, 200) and y.shape == (300, 20) and set(np.diff(y.indptr)) <= {1, 2}
    own = np.random.default_rng(0).integers(0, 200, (20, estimator.OWN))
    for row in range(20):
        for label in y.indices[y.indptr[row] : y.indptr[row + 1]]:
            features = x.indices[x.indptr[row] : x.indptr[row + 1]]
            assert np.isin(own[label], features).sum() >= min(estimator.SHOWN, len(set(own[label])) - 2)
    row = {"rows": 10, "labels": 5, "nonzeros": 99, "cpu_s": 1.0, "data_mib": 1, "peak_mib": 2, "P@1": 50.0}
    rest = {**row, "name": "OneVsRestClassifier(LinearSVC)"}
    large = {**row, "name": "SparseXMCClassifier", "rows": 10_000, "labels": 3600}
    assert "would take it about 200 hours" in estimator.report([large, rest])
