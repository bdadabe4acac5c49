"""Which terms a run has, from the command to the prediction: words, characters, hashes, and scripts without spaces."""

import json
import random

import pytest

import sparse_xmc
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.cli import main
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="solves with the CPU kernels")
TOPICS = {
    "Chinese": {"天气": "今天天气很好我们出去散步吧", "经济": "股票市场昨日大幅下跌投资者担心",
        "体育": "足球比赛以二比一结束球迷欢呼"},
    "Japanese": {"天気": "今日はとても天気が良いです", "経済": "株式市場は昨日大きく下落した",
        "料理": "美味しいラーメンを食べました"},
    "Thai": {"อากาศ": "วันนี้อากาศดีมากและแดดออก", "เศรษฐกิจ": "ตลาดหุ้นร่วงลงอย่างหนักเมื่อวานนี้",
        "กีฬา": "ทีมฟุตบอลชนะการแข่งขันเมื่อคืน"},
}  # fmt: skip


@pytest.mark.parametrize("language", TOPICS)
@pytest.mark.parametrize("solver", ["direct", "gradient"])
def test_texts_without_spaces_are_learned_and_predicted(tmp_path, language, solver):
    """Every text is a sentence of its own that no other row has: as a whole it would be a term that tells nothing."""
    rng = random.Random(0)
    with open(tmp_path / "train.jsonl", "w", encoding="utf-8") as file:
        for _ in range(240):
            label = rng.choice(list(TOPICS[language]))
            file.write(json.dumps({"text": piece(rng, TOPICS[language][label]), "labels": [label]}) + "\n")
    options = {} if solver == "direct" else {"epochs": 4, "embedding_dim": 16, "lexical_fan_in": 16, "fan_in": 8}
    run = str(tmp_path / "run")
    sparse_xmc.train(train=str(tmp_path / "train.jsonl"), out=run, progress=False, report=lambda line: None, **options)
    model, rng = sparse_xmc.load(run), random.Random(1)
    for label, sentence in TOPICS[language].items():
        (found,) = model.predict([piece(rng, sentence)], k=1)
        assert found[0][0] == label


def piece(rng, sentence):
    start = rng.randrange(len(sentence) - 7)
    return sentence[start : start + 7] + "".join(chr(0x3400 + rng.randrange(4000)) for _ in range(4))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Words that are told by their stems, each with an ending that no other text has."""
    path, rng = tmp_path_factory.mktemp("words"), random.Random(0)
    with open(path / "train.csv", "w", encoding="utf-8") as file:
        file.write("text,labels\n")
        for _ in range(300):
            stem = rng.choice(["rain", "stock", "ball"])
            file.write(f"{stem}{rng.randrange(10**9)} {rng.choice(['the', 'a'])},{stem}\n")
    return path


@pytest.mark.parametrize(
    "options", [["--char-ngrams", "3-4"], ["--char-ngrams", "4-4", "--max-ngram", "0", "--hashed"]]
)
def test_runs_of_characters_find_what_whole_words_do_not(words, tmp_path, options):
    run, out = str(tmp_path / "run"), tmp_path / "out.jsonl"
    assert main(["train", "--train", str(words / "train.csv"), "--out", run, "--no-progress", *options]) == 0
    (tmp_path / "in.csv").write_text("text\nrainy the\nstockpile\n")
    assert (
        main(["predict", run, "--input", str(tmp_path / "in.csv"), "--out", str(out), "--k", "1", "--no-progress"]) == 0
    )
    assert [json.loads(line)["labels"] for line in out.read_text().splitlines()] == [["rain"], ["stock"]]
    document = Bundle.load(run).preparation.state()[0]
    assert document["options"]["hashed"] == ("--hashed" in options)
    if "--hashed" in options:
        assert document["terms"] == [] and Bundle.load(run).num_features == 200_000
    else:
        assert "~rain" in document["terms"] and "the" in document["terms"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--char-ngrams", "3"], "char_ngrams must be LOW-HIGH, such as 3-5"),
        (["--char-ngrams", "5-3"], "char_ngrams must be 1 <= LOW <= HIGH <= 32, got '5-3'"),
        (["--char-ngrams", "3-99"], "char_ngrams must be 1 <= LOW <= HIGH <= 32, got '3-99'"),
        (["--max-ngram", "0"], "max_ngram=0 leaves no terms: set char_ngrams"),
        (["--encoder", "features", "--hashed"], "hashed=True has no effect with encoder='features'"),
    ],
)
def test_terms_that_cannot_be_are_refused(words, tmp_path, options, message, capsys):
    command = ["train", "--train", str(words / "train.csv"), "--out", str(tmp_path / "run"), "--no-progress", *options]
    assert main(command) == 1
    assert message in capsys.readouterr().err
