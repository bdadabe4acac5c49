"""A wide head on a Sentence Transformers encoder, trained together, saved and loaded.

Put ``SentenceTransformer("your model")`` and your texts in the place of the tiny model and the generated ones.

    python examples/sentence_head.py --out /tmp/tagger
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from sparse_xmc import FixedFanInLinear
from sparse_xmc.optim import parameter_groups

WORDS, LABELS = 40, 1000


def tiny_encoder(folder: str) -> SentenceTransformer:
    words = {"[PAD]": 0, "[UNK]": 1, **{f"word{i}": 2 + i for i in range(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "model_max_length": 16}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(folder), Pooling(64)], device="cpu")


class Tagger(nn.Module):
    def __init__(self, encoder: SentenceTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = FixedFanInLinear(encoder.get_sentence_embedding_dimension(), LABELS, fan_in=32, prior=1)

    def features(self, texts: list[str]) -> torch.Tensor:
        return self.encoder(self.encoder.tokenize(texts))["sentence_embedding"]

    @torch.no_grad()
    def tags(self, texts: list[str], k: int = 1) -> torch.Tensor:
        return self.head.topk(self.features(texts), k)[1]


def save(model: Tagger, folder: str) -> None:
    model.encoder.save(f"{folder}/encoder")
    torch.save(model.head.state_dict(), f"{folder}/head.pt")


def load(folder: str) -> Tagger:
    model = Tagger(SentenceTransformer(f"{folder}/encoder", device="cpu"))
    model.head.load_state_dict(torch.load(f"{folder}/head.pt"))
    return model.eval()


def main(arguments: Sequence[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", help="folder of the model (default: a temporary one)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or temporary
        model = Tagger(tiny_encoder(f"{temporary}/start"))
        optimizer = torch.optim.AdamW(parameter_groups(model, lr=3e-3))
        model.train()
        for _ in range(options.steps):
            topics = torch.randint(WORDS, (32,)).tolist()
            texts = [f"word{topic} word{(7 * topic) % WORDS}" for topic in topics]
            loss = model.head.loss(model.features(texts), [[25 * topic] for topic in topics])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        Path(folder).mkdir(parents=True, exist_ok=True)
        save(model.eval(), folder)
        loaded = load(folder)
        texts = [f"word{topic} word{(7 * topic) % WORDS}" for topic in range(WORDS)]
        best = loaded.tags(texts)
        assert torch.equal(best, model.tags(texts))
    found = float((best[:, 0] == 25 * torch.arange(WORDS)).float().mean())
    print(f"P@1 {found:.4f}")
    return found


if __name__ == "__main__":
    main()
