"""tf-idf state round trip, the token cache, and batches."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc.data import DataError, DenseInputs, SparseInputs, TfidfFeatures, TokenCache, TokenInputs, open_split

TEXTS = ["the cat sat on the mat", "the dog sat", "", "a cat and a dog and a bird"]


def test_tfidf_survives_its_state():
    features = TfidfFeatures(max_features=50, min_df=1, max_ngram=2)
    fitted = features.fit_transform(iter(TEXTS))
    assert fitted.dtype == np.float32
    assert fitted[2].nnz == 0
    assert np.sqrt(fitted.multiply(fitted).sum(1)).A1[[0, 1, 3]] == pytest.approx([1, 1, 1])
    restored = TfidfFeatures.from_state(features.options, *features.state())
    again = restored.transform(iter([*TEXTS, "words never seen"]))
    np.testing.assert_array_equal(again[:4].toarray(), features.transform(TEXTS).toarray())
    assert again[4].nnz == 0


def test_tfidf_of_nothing_says_so():
    with pytest.raises(ValueError, match="the training texts give no tf-idf terms"):
        TfidfFeatures(min_df=5).fit_transform(TEXTS)
    with pytest.raises(ValueError, match="needs fitted features"):
        TfidfFeatures().transform(TEXTS)


def test_tfidf_of_no_texts_has_no_rows():
    features = TfidfFeatures(min_df=1)
    width = features.fit_transform(TEXTS).shape[1]
    nothing = features.transform(iter([]))
    assert (nothing.shape, nothing.dtype, nothing.format) == ((0, width), np.float32, "csr")


def test_tfidf_passes_errors_of_the_texts_on(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "labels": []}\n{"text"\n')
    with pytest.raises(DataError, match=r"^[^:]*a.jsonl:2: not valid JSON"):
        TfidfFeatures(min_df=1).fit_transform(open_split(tmp_path / "a.jsonl"))


def tokenize(texts):
    return [[len(word) for word in text.split()] for text in texts]


@pytest.mark.parametrize(("size", "dtype"), [(100, np.uint16), (100_000, np.uint32)])
def test_token_cache(tmp_path, size, dtype):
    cache = TokenCache.build(tmp_path / "c", (f"{'w' * (i % 7)} x" for i in range(3000)), tokenize, size)
    assert len(cache) == 3000
    assert cache.ids.dtype == dtype
    assert cache[2].tolist() == [2, 1]
    batch = TokenInputs(TokenCache(tmp_path / "c"), pad_id=9).batch(np.array([0, 3]))
    assert batch["input_ids"].tolist() == [[1, 9], [3, 1]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_interrupted_cache_leaves_nothing(tmp_path):
    def texts():
        yield "a b"
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        TokenCache.build(tmp_path / "c", texts(), tokenize, 10)
    assert not any(tmp_path.iterdir())


def test_truncated_cache_is_refused(tmp_path):
    TokenCache.build(tmp_path / "c", TEXTS, tokenize, 10)
    ids = tmp_path / "c" / "ids.bin"
    ids.write_bytes(ids.read_bytes()[:-2])
    with pytest.raises(ValueError, match="holds no complete token cache: ids.bin has another checksum"):
        TokenCache(tmp_path / "c")


def test_every_flipped_bit_of_a_cache_is_noticed(tmp_path):
    built = TokenCache.build(tmp_path / "c", TEXTS, tokenize, 10)
    expected = [built[i].tolist() for i in range(len(built))]
    for name in os.listdir(tmp_path / "c"):
        path = tmp_path / "c" / name
        content = path.read_bytes()
        for place in range(len(content)):
            for bit in range(8):
                path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
                with contextlib.suppress(ValueError):
                    cache = TokenCache(tmp_path / "c")
                    assert [cache[i].tolist() for i in range(len(cache))] == expected
        path.write_bytes(content)


def test_remains_of_dead_processes_are_swept(tmp_path):
    """Those of a living one are locked and stay."""
    (tmp_path / "a.partial-1").mkdir()
    (tmp_path / "a.partial-1" / "ids.bin").write_bytes(b"123")
    (tmp_path / "b.partial-2").mkdir()
    script = (
        "import sys\nfrom sparse_xmc.storage.lock import FolderLock\n"
        "with FolderLock(sys.argv[1]):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "b.partial-2")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        TokenCache.build(tmp_path / "c", TEXTS, tokenize, 10)
        assert sorted(os.listdir(tmp_path)) == ["b.partial-2", "c"]
        process.stdin.close()
    TokenCache.build(tmp_path / "d", TEXTS, tokenize, 10)
    assert sorted(os.listdir(tmp_path)) == ["c", "d"]


def test_batches_of_features():
    matrix = sp.random(5, 7, 0.5, format="csr", random_state=0)
    rows = np.array([4, 0])
    sparse = SparseInputs(matrix).batch(rows)
    assert sparse.layout == torch.sparse_csr
    np.testing.assert_allclose(sparse.to_dense(), matrix[rows].toarray(), rtol=1e-6)
    for features in (matrix, matrix.toarray()):
        inputs = DenseInputs(features)
        assert len(inputs) == 5
        dense = inputs.batch(rows)
        assert dense.dtype == torch.float32
        np.testing.assert_allclose(dense, matrix[rows].toarray(), rtol=1e-6)
