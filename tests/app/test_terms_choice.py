"""Terms chosen by a run: by what held-out rows of a sample say, and only where they are left open."""

import json
import random

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.terms_choice import choose_terms, is_open
from sparse_xmc.app.jobs import train
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="solves with the CPU kernels")
ROWS = 900


def texts_of(kind):
    """Texts whose label only words, pairs of words, or beginnings of words tell."""
    rng, texts, labels = random.Random(1), [], []
    for _ in range(ROWS):
        a, b = rng.randrange(4), rng.randrange(4)
        if kind == "words":
            words, label = [f"w{a}", f"v{b}"], 4 * a + b
        elif kind == "words and pairs":  # both orders of the same two words
            words, label = (
                ([f"w{a}", f"v{b}"], 4 * a + b) if rng.random() < 0.5 else ([f"v{b}", f"w{a}"], 16 + 4 * a + b)
            )
        else:
            words, label = [f"{'abcd'[a] * 4}{rng.randrange(10**6)}"], a
        texts.append(" ".join([*words, "and", f"r{rng.randrange(40)}"]))
        labels.append(label)
    return texts, labels


@pytest.mark.parametrize("kind", ["words", "words and pairs", "words and runs of 3 to 5 characters"])
def test_the_terms_that_tell_the_labels_are_chosen(kind):
    texts, labels = texts_of(kind)
    targets = sp.csr_matrix((np.ones(ROWS, np.float32), (np.arange(ROWS), labels)))
    lines = []
    config = choose_terms(TrainingConfig(effort="best", progress=False), iter(texts), targets, lines.append)
    assert lines[0].startswith(f"terms: {kind}, by 90 of 900 rows (words ")
    expected = {"words": (1, ""), "words and pairs": (2, "")}.get(kind, (1, "3-5"))
    assert (config.max_ngram, config.char_ngrams) == expected


def test_only_terms_that_are_left_open_are_chosen():
    assert is_open(TrainingConfig(effort="best"))
    assert not is_open(TrainingConfig())
    for options in ({"max_ngram": 2}, {"char_ngrams": "3-4"}, {"hashed": True}):
        assert not is_open(TrainingConfig(effort="best", **options))


def test_a_run_reads_texts_as_it_chose_to(tmp_path):
    texts, labels = texts_of("words and pairs")
    with open(tmp_path / "train.jsonl", "w", encoding="utf-8") as file:
        for text, label in zip(texts, labels, strict=True):
            file.write(json.dumps({"text": text, "labels": [f"L{label}"]}) + "\n")
    lines = []
    config = TrainingConfig(
        train=str(tmp_path / "train.jsonl"), out=str(tmp_path / "run"), effort="best", progress=False
    )
    train(config, report=lines.append)
    assert any(line.startswith("terms: words and pairs") for line in lines)
    bundle = Bundle.load(tmp_path / "run")
    assert bundle.config.max_ngram == 2 and "w1 v2" in bundle.preparation.state()[0]["terms"]
    again = []
    train(config, report=again.append)
    assert any("the run is finished" in line for line in again)
