"""A model's folder as it may come from a stranger: whatever it holds, prediction ends with a result or with one line."""

import json
import os
import random
import shutil

import pytest
import torch

import sparse_xmc
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.cli import main
from sparse_xmc.storage.checkpoint import read_folder, write_folder
from sparse_xmc.storage.errors import ArtefactError
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
SMALL = ["--embedding-dim", "8", "--fan-in", "4", "--lexical-fan-in", "4", "--min-df", "1", "--epochs", "1"]
SMALL += ["--batch-size", "16", "--no-progress", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    rng = random.Random(0)
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(30):
            words = rng.sample(range(12), 4)
            file.write(json.dumps({"text": " ".join(f"w{w}" for w in words), "labels": words[:2]}) + "\n")
    assert main(["train", "--train", str(folder / "train.jsonl"), *SMALL, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def changed(run, change):
    """The model after a change of its content, with checksums that fit."""
    folder = str(run / "run" / "model")
    tensors, documents = read_folder(folder)
    change(tensors, documents)
    write_folder(folder, tensors, documents, finite=lambda stem, name: False)


def spec(**values):
    def change(tensors, documents):
        documents["spec"].update(values)

    return change


def config(**values):
    return lambda tensors, documents: documents["spec"]["config"].update(values)


def weights(**values):
    return lambda tensors, documents: tensors["model"].update({k.replace("__", "."): v for k, v in values.items()})


def document(name, value):
    return lambda tensors, documents: documents.update({name: value})


def drop(kind, *path):
    def change(tensors, documents):
        place = {"tensors": tensors, "documents": documents}[kind]
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


CHANGES = {
    "no spec": drop("documents", "spec"),
    "spec is a list": document("spec", []),
    "no config": drop("documents", "spec", "config"),
    "unknown option": config(no_option=1),
    "wrong option": config(batch_size="many"),
    "huge layer": config(intermediate=1 << 40),
    "huge embeddings": config(embedding_dim=1 << 40),
    "other encoder": config(encoder="transformer", transformer="x/y"),
    "other head": config(head="dense"),
    "huge features": spec(num_features=1 << 50),
    "negative features": spec(num_features=-1),
    "fractional rows": spec(num_train=1.5),
    "auxiliary": spec(auxiliary=True),
    "labels are text": document("labels", "abc"),
    "no labels": document("labels", []),
    "fractional labels": document("labels", [float(i) for i in range(12)]),
    "null labels": document("labels", [None] * 12),
    "labels twice": document("labels", [1] * 12),
    "few labels": document("labels", list(range(5))),
    "frequencies are few": lambda t, d: t["preparation"].update(frequencies=torch.ones(3, dtype=torch.int64)),
    "frequencies are floats": lambda t, d: t["preparation"].update(frequencies=torch.ones(12)),
    "no frequencies": drop("tensors", "preparation", "frequencies"),
    "kind": document("preparation", {"kind": "magic"}),
    "preparation is null": document("preparation", None),
    "terms are numbers": lambda t, d: d["preparation"].update(terms=5),
    "few terms": lambda t, d: d["preparation"].update(terms=["one"]),
    "terms twice": lambda t, d: d["preparation"].update(terms=["one"] * len(d["preparation"]["terms"])),
    "terms of other kinds": lambda t, d: d["preparation"].update(terms=[[]] * len(d["preparation"]["terms"])),
    "few idf": lambda t, d: t["preparation"].update(idf=torch.ones(2)),
    "idf are NaN": lambda t, d: t["preparation"]["idf"].fill_(float("nan")),
    "bias is NaN": lambda t, d: t["model"]["head.bias"].fill_(float("nan")),
    "weights are infinite": lambda t, d: t["model"]["head.weight"][0].fill_(float("inf")),
    "indices out of range": lambda t, d: t["model"]["head.indices"].view(torch.int16).fill_(-1),
    "indices twice": lambda t, d: t["model"]["head.indices"].view(torch.int16).fill_(1),
    "weights of another type": weights(head__weight=torch.zeros(12, 4, dtype=torch.float64)),
    "weights of another shape": weights(head__weight=torch.zeros(12, 5)),
    "more weights": weights(head__more=torch.zeros(3)),
    "no weights": drop("tensors", "model", "head.weight"),
    "no model": drop("tensors", "model"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_wrong_content_with_right_checksums_is_one_line(run, capsys, change):
    changed(run, change)
    out = run / "out.jsonl"
    for command in (["predict", str(run / "run"), "--input", str(run / "train.jsonl"), "--out", str(out)],
                    ["evaluate", str(run / "run"), "--test", str(run / "train.jsonl")]):  # fmt: skip
        capsys.readouterr()
        assert main([*command, "--no-progress"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(run / "run" / "model") in error, error
    assert not out.exists()


def test_options_without_a_number_in_json_come_back(run):
    changed(run, config(checkpoint_seconds="inf"))
    assert Bundle.load(run / "run").config.checkpoint_seconds == float("inf")


TRANSFORMER = ["config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def transformer_run(tmp_path_factory):
    """A run of a tiny transformer, and its data."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("transformer")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(12))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder / "tiny")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=14, max_position_embeddings=32, **sizes))
    bert.save_pretrained(folder / "tiny")
    rng = random.Random(0)
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(20):
            chosen = rng.sample(range(12), 4)
            file.write(json.dumps({"text": " ".join(f"w{w}" for w in chosen), "labels": chosen[:2]}) + "\n")
    command = ["train", "--train", str(folder / "train.jsonl"), "--encoder", "transformer", "--transformer"]
    command += [str(folder / "tiny"), "--max-length", "16", "--fan-in", "4", "--epochs", "1", "--batch-size", "16"]
    assert main([*command, "--no-progress", "--device", "cpu", "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def hostile(transformer_run, tmp_path):
    shutil.copytree(transformer_run, tmp_path / "copy")
    return tmp_path / "copy"


def predicted(folder, capsys):
    capsys.readouterr()
    command = ["predict", str(folder / "run"), "--input", str(folder / "train.jsonl")]
    status = main([*command, "--out", str(folder / "out.jsonl"), "--no-progress"])
    return status, capsys.readouterr().err


def as_bytes(content):
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


@pytest.mark.parametrize(
    "name", ["/PWNED", "../../PWNED", "./w/PWNED", "..", "evil.py", "site.pth", "pytorch_model.bin", "a\\b", ""]
)
def test_files_of_a_model_stay_in_its_folder(hostile, capsys, monkeypatch, name):
    (hostile / "w").mkdir()
    monkeypatch.chdir(hostile)
    name = f"{hostile}{name}" if name.startswith("/") else name
    changed(hostile, lambda t, d: t["preparation"].update({f"files/{name}": as_bytes(b"owned")}))
    before = sorted(str(path) for path in hostile.rglob("*"))
    status, error = predicted(hostile, capsys)
    assert status == 1 and error.count("\n") == 1 and ("plain file name" in error or "no code or pickles" in error)
    assert sorted(str(path) for path in hostile.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        ("config.json", {"_attn_implementation": "somebody/kernels"}),
        ("config.json", {"num_hidden_layers": 1 << 40}),
        ("config.json", {"hidden_size": 1 << 40}),
        ("config.json", {"vocab_size": 1 << 50}),
        ("config.json", {"model_type": "no such"}),
    ],
    ids=str,
)
def test_no_code_of_a_model_runs_and_nobody_is_asked(hostile, capsys, monkeypatch, file, entry):
    def change(tensors, documents):
        content = json.loads(tensors["preparation"][f"files/{file}"].numpy().tobytes())
        tensors["preparation"][f"files/{file}"] = as_bytes(json.dumps({**content, **entry}).encode())

    def asked(*args):
        raise AssertionError("predict asks questions")

    changed(hostile, change)
    monkeypatch.setattr("builtins.input", asked)
    status, error = predicted(hostile, capsys)
    assert status == 1 and error.count("\n") == 1, error


def test_a_transformer_that_brings_code_is_not_trained(hostile, capsys):
    path = hostile / "tiny" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil.M"}}))
    (hostile / "tiny" / "evil.py").write_text("open('PWNED', 'w')")
    command = ["train", "--train", str(hostile / "train.jsonl"), "--encoder", "transformer", "--transformer"]
    assert main([*command, str(hostile / "tiny"), "--out", str(hostile / "new")]) == 1
    assert "names code to be fetched (auto_map)" in capsys.readouterr().err
    assert not os.path.exists("PWNED")


def test_weights_as_a_pickle_are_not_read(hostile, capsys):
    weights = hostile / "tiny" / "model.safetensors"
    weights.unlink()
    torch.save({"x": torch.ones(1)}, hostile / "tiny" / "pytorch_model.bin")
    command = ["train", "--train", str(hostile / "train.jsonl"), "--encoder", "transformer", "--transformer"]
    assert main([*command, str(hostile / "tiny"), "--out", str(hostile / "new")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_names_file_and_reason(run):
    (run / "run" / "model" / "labels.json").write_text("{}")
    with pytest.raises(ArtefactError) as failure:
        Bundle.load(run / "run")
    assert failure.value.path == str(run / "run" / "model" / "labels.json")
    assert failure.value.reason.startswith("is truncated")


def test_a_loaded_model_needs_its_files_no_more(run):
    model = sparse_xmc.load(run / "run", device="cpu")
    before = model.predict(["w1 w2 w3"])
    for path in (run / "run" / "model").iterdir():
        path.write_bytes(b"")  # in place: memory that was mapped to it would be gone
    assert model.predict(["w1 w2 w3"]) == before
