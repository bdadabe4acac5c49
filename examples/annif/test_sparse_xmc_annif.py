"""The backend inside Annif, as Annif tests its own: ``pytest examples/annif`` in an environment that has Annif 1.4."""

from types import SimpleNamespace

import pytest

pytest.importorskip("annif")

import annif.backend  # noqa: E402
import sparse_xmc_annif  # noqa: E402, F401
from annif.corpus import Document, DocumentFileTSV  # noqa: E402
from annif.exception import NotInitializedException, NotSupportedException, OperationFailedException  # noqa: E402
from annif.vocab import AnnifVocabulary  # noqa: E402
from annif.vocab.subject_file import VocabFileTSV  # noqa: E402

TOPICS = {
    "archaeology": "excavation pottery grave find",
    "law": "court judge appeal act",
    "cooking": "bread salt oven dough",
}


@pytest.fixture(scope="module")
def datadir(tmp_path_factory):
    return tmp_path_factory.mktemp("annif")


@pytest.fixture(scope="module")
def corpus(datadir):
    rows = []
    for number in range(90):
        topic = sorted(TOPICS)[number % 3]
        words = TOPICS[topic].split()
        rows.append(
            f"{words[number % 4]} {words[(number + 1) % 4]} {words[(number // 4) % 4]}\t<http://example.org/{topic}>"
        )
    path = datadir / "train.tsv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def project(datadir):
    vocabulary = AnnifVocabulary("topics", str(datadir / "vocab"))
    subjects = datadir / "subjects.tsv"
    subjects.write_text("".join(f"<http://example.org/{topic}>\t{topic}\n" for topic in TOPICS))
    vocabulary.load_vocabulary(VocabFileTSV(str(subjects), "en"))

    (datadir / "project").mkdir()
    return SimpleNamespace(
        project_id="test",
        datadir=str(datadir / "project"),
        vocab=vocabulary,
        subjects=vocabulary.subjects,
        vocab_lang="en",
    )


def backend(project, **params):
    kind = annif.backend.get_backend("sparse_xmc")
    options = {"limit": 2, "epochs": 3, "min_df": 1, "embedding_dim": 8, "fan_in": 4} | params
    return kind(backend_id="sparse_xmc", config_params=options, project=project)


def documents(corpus, project):
    return DocumentFileTSV(str(corpus), project.subjects)


def test_not_trained(project):
    with pytest.raises(NotInitializedException):
        backend(project).suggest([Document(text="example")])


def test_train_and_suggest(project, corpus):
    own = backend(project)
    own.train(documents(corpus, project))
    assert own.is_trained and own.modification_time is not None
    (found,) = own.suggest([Document(text="pottery from a grave")])
    best = next(iter(found))
    assert project.subjects[best.subject_id].labels["en"] == "archaeology"
    assert 0 < best.score <= 1
    assert len(list(found)) <= 2


def test_a_trained_model_is_found_again(project, corpus):
    (found,) = backend(project).suggest([Document(text="the judge of the court")])
    assert project.subjects[next(iter(found)).subject_id].labels["en"] == "law"


def test_train_on_cached_documents(project):
    own = backend(project)
    own.train("cached")
    assert own.is_trained


def test_limit_as_a_parameter_of_the_call(project):
    (found,) = backend(project).suggest([Document(text="salt and dough")], {"limit": 1})
    assert len(list(found)) == 1


def test_no_documents(project, datadir):
    empty = datadir / "empty.tsv"
    empty.write_text("")
    with pytest.raises(NotSupportedException):
        backend(project).train(documents(empty, project))


def test_an_option_out_of_range_is_named(project):
    with pytest.raises(OperationFailedException, match="fan_in"):
        backend(project, fan_in=0).train("cached")


def test_documents_without_words(project):
    (found,) = backend(project).suggest([Document(text="")])
    assert len(list(found)) <= 2
