"""The estimator keeps scikit-learn's conventions, takes what is usual and never makes a dense N x L unless asked."""

import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tests.conftest import INTERPRETING

pytest.importorskip("sklearn", minversion="1.6")
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sparse_xmc.sklearn import SparseXMCClassifier

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
SPARSE = "predict of a multi-label problem is sparse: a dense N x L does not fit for the problems that this is for"
EXPECTED = {
    "check_classifiers_multilabel_representation_invariance": SPARSE,
    "check_classifiers_multilabel_output_format_predict": SPARSE,
}


@parametrize_with_checks([SparseXMCClassifier(random_state=0)], expected_failed_checks=lambda estimator: EXPECTED)
def test_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_fails_for_being_sparse_holds_for_dense_output(name):
    from sklearn.utils import estimator_checks

    estimator = SparseXMCClassifier(random_state=0, sparse_output=False)
    getattr(estimator_checks, name)("SparseXMCClassifier", estimator)


def problem(rows=300, labels=8, columns=20, seed=0):
    """Rows whose labels are in their columns, as a dense matrix and as an indicator."""
    weights = np.random.default_rng(99).standard_normal((labels, columns))
    rng = np.random.default_rng(seed)
    y = (rng.random((rows, labels)) < 0.25).astype(np.int64)
    y[np.arange(rows), rng.integers(labels, size=rows)] = 1
    return (y @ weights + 0.1 * rng.standard_normal((rows, columns))).astype(np.float32), y


def texts(y):
    return [" ".join(f"word{j} filler" for j in np.flatnonzero(row)) for row in y]


def small(**options):
    return SparseXMCClassifier(random_state=0, **options)


def lists(y, names=str):
    return [[names(j) for j in np.flatnonzero(row)] for row in y]


@pytest.mark.parametrize("kind", ["dense", "sparse", "texts"])
def test_every_kind_of_input_learns(kind):
    def inputs(x, y):
        return {"dense": x, "sparse": sp.csr_matrix(y.astype(np.float32)), "texts": texts(y)}[kind]

    x, y = problem()
    options = {"embedding_dim": 16, "min_df": 1} if kind == "texts" else {}
    classifier = small(**options).fit(inputs(x, y), y)
    x, y = problem(seed=1)
    found = classifier.predict(inputs(x, y))
    assert sp.issparse(found) and found.shape == y.shape and found.dtype == np.int64
    assert (found.toarray() == y).mean() > 0.95
    assert classifier.score(inputs(x, y), y) > 0.97
    assert set(np.unique(classifier.predict_proba(inputs(x, y)) > 0.5)) == {False, True}


def test_forms_of_targets_say_the_same():
    x, y = problem()
    expected = small().fit(x, y).predict_proba(x)
    for form in (sp.csr_matrix(y), sp.csc_matrix(y), sp.coo_matrix(y.astype(bool)), y.astype(float), y.tolist()):
        np.testing.assert_array_equal(small().fit(x, form).predict_proba(x), expected)
    by_lists = small().fit(x, lists(y, int))
    np.testing.assert_array_equal(by_lists.predict_proba(x), expected)
    assert by_lists.classes_.tolist() == list(range(8))
    assert small().fit(x, [set(row) for row in lists(y)]).classes_.tolist() == list("01234567")


def test_ranked_labels_are_the_users_own():
    x, y = problem()
    names = [f"label {j}" for j in range(8)]
    classifier = small().fit(x, lists(y, lambda j: names[j]))
    labels, scores = classifier.predict_topk(x, 3)
    assert labels.shape == scores.shape == (300, 3) and (np.diff(scores, axis=1) <= 0).all()
    proba = classifier.predict_proba(x)
    assert (classifier.classes_[proba.argmax(1)] == labels[:, 0]).mean() > 0.99
    assert np.mean([label in row for label, row in zip(labels[:, 0], lists(y, lambda j: names[j]), strict=True)]) > 0.97


def test_a_class_without_rows_is_never_predicted():
    x, y = problem()
    wide = np.hstack([y, np.zeros((len(y), 2), dtype=np.int64)])
    classifier = small().fit(x, wide)
    assert classifier.predict(x).shape == (300, 10) and not classifier.predict(x)[:, 8:].nnz
    assert (classifier.predict_proba(x)[:, 8:] == 0).all() and np.isfinite(classifier.decision_function(x)).all()
    assert classifier.predict_topk(x, 99)[0].shape == (300, 8)


def test_class_vectors():
    x, y = problem(labels=4)
    first = y.argmax(1)
    names = np.array(["a", "b", "c", "d"])[first]
    classifier = small().fit(x, names)
    assert set(classifier.predict(x)) <= set("abcd") and classifier.score(x, names) > 0.6
    np.testing.assert_allclose(classifier.predict_proba(x).sum(1), 1)
    two = small().fit(x, first > 1)
    assert ((two.decision_function(x) > 0) == two.predict(x)).all()


@pytest.mark.parametrize("copied", [lambda c: pickle.loads(pickle.dumps(c)), lambda c: clone(c).fit(*problem())])
def test_copies_predict_alike(copied):
    x, y = problem()
    classifier = small(group_size=4).fit(x, y)
    np.testing.assert_array_equal(copied(classifier).predict_proba(x), classifier.predict_proba(x))


def test_a_pickled_classifier_goes_on_learning():
    x, y = problem()
    classifier = small().partial_fit(x, y)
    copy = pickle.loads(pickle.dumps(classifier))
    for one in (classifier, copy):
        one.partial_fit(x, y)
    np.testing.assert_array_equal(copy.predict_proba(x), classifier.predict_proba(x))


def test_partial_fit_learns_from_pieces():
    x, y = problem(rows=1000)
    classifier = small(batch_size=32)
    for _ in range(4):
        for start in range(0, 1000, 250):
            classifier.partial_fit(x[start : start + 250], lists(y[start : start + 250], int), classes=range(8))
    test_x, test_y = problem(seed=1)
    assert classifier.score(test_x, lists(test_y, int)) > 0.97
    with pytest.raises(ValueError, match=r"labels that classes lack: \[8\]"):
        classifier.partial_fit(x[:1], [[8]])
    with pytest.raises(ValueError, match="classes differ"):
        classifier.partial_fit(x, lists(y, int), classes=range(9))


def test_partial_fit_after_fit_knows_the_classes_of_fit():
    x, y = problem()
    y[:, 7] = 0
    classifier = small().fit(x, y)
    assert classifier.partial_fit(x, y).score(x, y) > 0.9
    y[0, 7] = 1
    with pytest.raises(ValueError, match=r"classes without a row in fit: \[7\]"):
        classifier.partial_fit(x, y)


def test_pipelines_and_grid_search():
    x, y = problem()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), small(epochs=20)), {"sparsexmcclassifier__fan_in": [1, 20]}, cv=2
    ).fit(x, y)
    assert search.best_params_ == {"sparsexmcclassifier__fan_in": 20}
    assert cross_val_score(small(epochs=20), x, y, cv=2, scoring="f1_micro").mean() > 0.9


def test_the_callers_random_numbers_stay():
    x, y = problem()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small().fit(x, y).predict(x)
    assert torch.equal(torch.rand(3), expected)


def test_seeds_decide():
    x, y = problem()
    one, same, other = (small().set_params(random_state=s, dropout=0.3).fit(x, y).predict_proba(x) for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_what_is_wide_stays_sparse():
    """20,000 rows x 5,000 labels would be 400 MB as float32."""
    labels, rows = 5_000, 20_000
    rng = np.random.default_rng(0)
    own = rng.integers(labels, size=rows)
    y = sp.csr_matrix((np.ones(rows), (np.arange(rows), own)), shape=(rows, labels))
    classifier = small(epochs=1, batch_size=512, fan_in=8)
    tracemalloc.start()
    found = classifier.fit(y.astype(np.float32), y).predict(y.astype(np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sp.issparse(found) and found.shape == (rows, labels) and peak < 150e6


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({"fan_in": 21}, None, "fan_in=21 is more than the 20 features .* at most 20"),
        ({"min_df": 1}, None, "min_df=1 has no effect with encoder='features'"),
        ({"threshold": 1.5}, None, "threshold must lie in"),
        ({"head": "wide"}, None, "head must be one of"),
        ({}, np.zeros((300, 8)), "y has no label at all"),
        ({}, np.full((300, 8), 2), "indicator matrix holds 0 and 1"),
        ({}, [[1.5]] * 300, "Unknown label type"),
        ({}, [["a"]] * 299, "inconsistent numbers of samples: X has 300, y 299"),
    ],
)
def test_what_cannot_be_is_refused(options, y, message):
    x, given = problem()
    with pytest.raises(ValueError, match=message):
        small(**options).fit(x, given if y is None else y)


def test_texts_and_matrices_are_not_mixed():
    x, y = problem()
    with pytest.raises(ValueError, match="X must be a matrix of 20 features, as in fit, got texts"):
        small().fit(x, y).predict(["a text"])
    with pytest.raises(ValueError, match="X must be a list of texts, as in fit, got a matrix"):
        small(embedding_dim=8).fit(texts(y), y).predict(x)
