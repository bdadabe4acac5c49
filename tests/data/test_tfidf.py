"""tf-idf features against scikit-learn's vectorisers, which define them."""

import random
import re
import sys
import unicodedata

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer

from sparse_xmc.data import TfidfFeatures
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="runs Numba kernels only")

ALPHABETS = ("abcde", "ABÄÖß", "aéıİǅſ", "αβγΣς", "абвЖ", "0٣²½_", "हिन्दी", "한국어", "\U0001d49c\U00010400")
GAPS = (" ", "\n\t", ", ", "\u00a0", "\u2028", "-", "\0", "'", "\u0301", "\ud800", "\U0001f600", "~")


def some_texts(seed: int, count: int = 300) -> list[str]:
    """Short words of many scripts, Zipf-like, with every kind of gap; some texts are empty or one long word."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(rng.choice(ALPHABETS), k=rng.choice((1, 2, 2, 3, 7, 8, 9, 17)))) for _ in range(150)]
    texts = ["", "x" * 3000, " ", *("".join(map(chr, range(low, low + 3000))) for low in (0, 0x1C80))]
    for _ in range(count):
        chosen = (words[min(int(rng.paretovariate(0.7)), len(words)) - 1] for _ in range(rng.randrange(60)))
        texts.append("".join(word + rng.choice(GAPS) for word in chosen))
    return texts


def expect(got, wanted):
    wanted = wanted.tocsr()
    wanted.sort_indices()
    np.testing.assert_array_equal(got.indptr, wanted.indptr)
    np.testing.assert_array_equal(got.indices, wanted.indices)
    np.testing.assert_allclose(got.data, wanted.data, rtol=2e-7)
    assert got.dtype == np.float32 and got.shape == wanted.shape


@pytest.mark.parametrize("max_ngram", [1, 2, 4])
@pytest.mark.parametrize(("max_features", "min_df"), [(100_000, 1), (100_000, 3), (70, 2)])
def test_words_are_those_of_scikit_learn(max_ngram, max_features, min_df):
    texts, others = some_texts(1), some_texts(2)
    theirs = TfidfVectorizer(
        sublinear_tf=True, dtype=np.float32, ngram_range=(1, max_ngram), max_features=max_features, min_df=min_df
    )
    ours = TfidfFeatures(max_ngram=max_ngram, max_features=max_features, min_df=min_df, scripts=False)
    expect(ours.fit_transform(iter(texts)), theirs.fit_transform(texts))
    assert ours.state()[0] == theirs.get_feature_names_out().tolist()
    np.testing.assert_array_equal(ours.state()[1], theirs.idf_)
    expect(ours.transform(iter(others)), theirs.transform(others))


@pytest.mark.parametrize("span", [(1, 1), (2, 4), (3, 3), (5, 9)])
@pytest.mark.parametrize("max_ngram", [0, 2])
def test_characters_are_those_of_scikit_learn(span, max_ngram):
    words = CountVectorizer(ngram_range=(1, max(max_ngram, 1))).build_analyzer()
    characters = CountVectorizer(analyzer="char_wb", ngram_range=span).build_analyzer()

    def both(text):
        return (words(text) if max_ngram else []) + ["~" + run for run in characters(text)]

    texts, others = some_texts(3, 100), some_texts(4, 100)
    theirs = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, analyzer=both, min_df=2)
    ours = TfidfFeatures(max_ngram=max_ngram, char_ngrams=span, scripts=False)
    expect(ours.fit_transform(texts), theirs.fit_transform(texts))
    assert ours.state()[0] == theirs.get_feature_names_out().tolist()
    expect(ours.transform(others), theirs.transform(others))


@pytest.mark.parametrize("min_df", [1, 3])
@pytest.mark.parametrize("columns", [1, 97, 4096])
def test_hashes_are_those_of_scikit_learn(columns, min_df):
    """Columns that too few training texts have are empty, as unknown words are."""
    texts, others = ([t.replace("\ud800", " ") for t in some_texts(seed, 150)] for seed in (5, 6))
    hashing = HashingVectorizer(n_features=columns, alternate_sign=False, norm=None, dtype=np.float32)
    fitted = hashing.transform(texts)
    frequent = np.bincount(fitted.indices, minlength=columns) >= min_df

    def kept(counts):
        counts = counts.multiply(frequent[None, :]).tocsr()
        counts.eliminate_zeros()
        return counts.astype(np.float32)

    weights = TfidfTransformer(sublinear_tf=True)
    ours = TfidfFeatures(max_features=columns, min_df=min_df, hashed=True, scripts=False)
    expect(ours.fit_transform(texts), weights.fit_transform(kept(fitted)))
    expect(ours.transform(others), weights.transform(kept(hashing.transform(others))))
    restored = TfidfFeatures.from_state(ours.options, *ours.state())
    np.testing.assert_array_equal(restored.transform(others).data, ours.transform(others).data)


def test_hashed_columns_that_are_all_rare():
    with pytest.raises(ValueError, match="give no tf-idf terms: none of 50 terms occurs in 9 texts"):
        TfidfFeatures(max_features=50, min_df=9, hashed=True).fit_transform(["some words"])


@pytest.mark.parametrize(
    "options", [{}, {"max_ngram": 2, "char_ngrams": (2, 3)}, {"hashed": True, "max_features": 500}]
)
def test_any_number_of_threads_gives_the_same(options, monkeypatch):
    """Chunks of a few texts, so that threads interleave."""
    monkeypatch.setattr("sparse_xmc.data.term_counts._CHUNK", 300)
    texts, results = some_texts(7), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            features = TfidfFeatures(**{"min_df": 1, **options})
            results.append((features.fit_transform(texts), features.transform(texts), *features.state()))
    finally:
        torch.set_num_threads(before)
    for fitted, transformed, terms, idf in results:
        assert terms == results[0][2]
        np.testing.assert_array_equal(idf, results[0][3])
        for matrix in (fitted, transformed):
            for name in ("indptr", "indices", "data"):
                np.testing.assert_array_equal(getattr(matrix, name), getattr(results[0][0], name))


SCRIPTS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\U00020000-\U0002a6df]+"
)


def cut(text: str) -> list[str]:
    """Words, and runs of one to three characters of scripts without spaces: written once more, in Python."""
    terms = []
    text = text.lower()
    kinds = [
        ("script" if c.isalnum() or unicodedata.category(c)[0] == "M" else "gap")
        if SCRIPTS.match(c)
        else ("word" if re.match(r"\w", c) else "gap")
        for c in text
    ]
    i = 0
    while i < len(text):
        j = i
        while j < len(text) and kinds[j] == kinds[i]:
            j += 1
        if kinds[i] == "word" and j - i > 1:
            terms.append(text[i:j])
        elif kinds[i] == "script":
            terms += [text[a : a + n] for n in (1, 2, 3) for a in range(i, j - n + 1)]
        i = j
    return terms


CHINESE = ["機器學習是人工智慧的分支", "深度學習 deep learning 模型", "ab學c習de,中文。"]
JAPANESE = ["機械学習は人工知能の分野です", "カタカナとひらがな・ー"]
THAI = ["การเรียนรู้ของเครื่อง", "ภาษาไทย thai"]


@pytest.mark.parametrize("texts", [CHINESE, JAPANESE, THAI], ids=["Chinese", "Japanese", "Thai"])
def test_scripts_without_spaces_give_runs_of_characters(texts):
    ours = TfidfFeatures(min_df=1)
    theirs = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, analyzer=cut)
    expect(ours.fit_transform(texts), theirs.fit_transform(texts))
    assert ours.state()[0] == theirs.get_feature_names_out().tolist()
    shared = ours.transform([texts[0][1:4]])
    assert shared.nnz > 1


def test_models_of_earlier_versions_keep_their_terms():
    options = {"max_features": 10, "min_df": 1, "max_ngram": 1}
    features = TfidfFeatures.from_state(options, ["深度學習", "deep"], np.ones(2, np.float32))
    assert features.transform(["深度學習 deep"]).nnz == 2


def test_long_texts_and_many_terms():
    """More terms than the first table holds, in one text and over many."""
    rng = random.Random(0)
    words = [f"{rng.getrandbits(64):x}" for _ in range(60_000)]
    texts = [" ".join(words), *words, " ".join(words[:9] * 5000)]
    theirs = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, ngram_range=(1, 2))
    expect(TfidfFeatures(min_df=1, max_ngram=2).fit_transform(texts), theirs.fit_transform(texts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_features": 0}, "max_features and min_df must be at least 1"),
        ({"min_df": 0}, "max_features and min_df must be at least 1"),
        ({"char_ngrams": (3, 2)}, r"char_ngrams must be 1 <= shortest <= longest <= 32, or \(0, 0\), got \(3, 2\)"),
        ({"char_ngrams": (0, 2)}, "char_ngrams must be"),
        ({"max_ngram": 0}, "leave no terms"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TfidfFeatures(**options)


def test_texts_of_another_kind():
    features = TfidfFeatures(min_df=1)
    features.fit_transform(["some words"])
    for wrong, message in (
        ("some words", "got one string"),
        ([b"some"], "must be strings, got bytes"),
        ([None], "NoneType"),
    ):
        for method in (features.fit_transform, features.transform):
            with pytest.raises(TypeError, match=message):
                method(wrong)


def test_states_that_do_not_fit():
    options = TfidfFeatures().options
    for terms, idf in (
        (["a"], np.ones(2)),
        (["a", "a"], np.ones(2)),
        (["a", 1], np.ones(2)),
        (["a"], np.array([np.nan])),
    ):
        with pytest.raises(ValueError, match="idf must be|terms must be"):
            TfidfFeatures.from_state(options, terms, idf)


def test_classes_of_characters_are_pythons():
    from sparse_xmc.data.term_table import SCRIPT, SPACE, WORD, character_classes

    plain, scripts = character_classes(False), character_classes(True)
    for code in random.Random(0).sample(range(sys.maxunicode + 1), 20_000):
        character = chr(code)
        assert bool(plain[code] & WORD) == bool(re.match(r"\w", character))
        assert bool(plain[code] & SPACE) == character.isspace()
        assert not plain[code] & SCRIPT
        assert scripts[code] == plain[code] or scripts[code] == WORD | SCRIPT


@pytest.mark.parametrize("room", [0, 7, 10_000])
def test_terms_of_further_texts_come_behind_those_there_are(room):
    first, further = some_texts(0), some_texts(1)
    features = TfidfFeatures(min_df=3)
    features.fit_transform(first)
    terms, idf = features.state()
    features.options["max_features"] = len(terms) + room
    got = features.extend_transform(further)
    found, weights = features.state()
    assert found[: len(terms)] == terms and np.array_equal(weights[: len(idf)], idf)
    alone = TfidfFeatures(min_df=3)
    alone.fit_transform(further)
    fresh = [term for term in alone.state()[0] if term not in set(terms)]
    assert len(found) - len(terms) == min(room, len(fresh)) and set(found[len(terms) :]) <= set(fresh)
    if room > len(fresh):
        own = dict(zip(*alone.state(), strict=True))
        assert found[len(terms) :] == fresh and [own[term] for term in fresh] == weights[len(terms) :].tolist()
    expect(got, features.transform(further))  # which counts known terms only
    expect(TfidfFeatures.from_state(features.options, found, weights).transform(further), got)


def test_hashed_columns_and_known_texts_bring_no_new_terms():
    texts = some_texts(0)
    hashed = TfidfFeatures(hashed=True, max_features=64)
    expect(hashed.fit_transform(texts), hashed.extend_transform(texts))
    same = TfidfFeatures()
    expect(same.fit_transform(texts), same.extend_transform(texts))
    with pytest.raises(ValueError, match="state needs fitted features"):
        TfidfFeatures().extend_transform(texts)
