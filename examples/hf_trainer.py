"""A Hugging Face encoder with ``Trainer`` and a fixed fan-in head: multi-label classification with many labels.

The encoder is a small BERT with random weights and the documents are generated, so that the program runs offline; put
``AutoModel.from_pretrained(...)`` and your own dataset in their place.

    python examples/hf_trainer.py --labels 5000 --steps 300
    torchrun --nproc-per-node 2 examples/hf_trainer.py --out /tmp/model
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, EvalPrediction, Trainer, TrainingArguments

from sparse_xmc.models import FixedFanInLinear

NO_LABEL = -1


class WideClassifier(nn.Module):
    """Encoder and head; returns the loss and, in place of logits, the best labels."""

    def __init__(self, encoder: BertModel, num_labels: int, fan_in: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.wide = nn.Sequential(nn.Linear(encoder.config.hidden_size, 256), nn.ReLU())
        self.head = FixedFanInLinear(256, num_labels, fan_in, seed=0)
        nn.init.constant_(self.head.bias, -6.0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``labels [B, P]``: the labels of every document, padded with -1."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        x = self.wide(hidden.mean(1))
        given = labels != NO_LABEL
        crow = torch.cat([given.new_zeros(1, dtype=torch.int64), given.sum(1).cumsum(0)])
        size = (len(labels), self.head.out_features)
        targets = torch.sparse_csr_tensor(crow, labels[given], torch.ones_like(labels[given]), size)
        output = {"loss": self.head.loss(x, targets)}
        if not self.training:
            output["best"] = self.head.topk(x, 5)[1]
        return output


class Documents(torch.utils.data.Dataset):
    """Documents whose words come from the vocabulary of their two topics; a topic's labels are its neighbours."""

    def __init__(self, count: int, num_labels: int, vocabulary: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        topics = generator.integers(0, vocabulary // 8, (count, 2))
        self.words = topics[:, generator.integers(0, 2, 24)] * 8 + generator.integers(0, 8, (count, 24))
        self.labels = topics * (num_labels // (vocabulary // 8))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.words[i], "attention_mask": np.ones(24, np.int64), "labels": self.labels[i]}


def precision(prediction: EvalPrediction) -> dict[str, float]:
    truth, best = prediction.label_ids, prediction.predictions
    return {"P@1": float((best[:, :1] == truth).any(1).mean())}


def check_saved(model: WideClassifier, folder: str, encoder: BertModel, options: argparse.Namespace) -> None:
    """Loads what the trainer saved into a new model, which must be the same."""
    again = WideClassifier(encoder, options.labels, options.fan_in)
    again.load_state_dict(load_file(f"{folder}/model.safetensors"))
    trained = model.state_dict()
    assert all(torch.equal(value, trained[name].cpu()) for name, value in again.state_dict().items())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=5000)
    parser.add_argument("--fan-in", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", help="folder of the checkpoints (default: a temporary one)")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    vocabulary = 256
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    model = WideClassifier(BertModel(config, add_pooling_layer=False), options.labels, options.fan_in)
    with tempfile.TemporaryDirectory() as temporary:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=options.out or temporary,
                max_steps=options.steps,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                learning_rate=3e-3,
                logging_steps=50,
                save_strategy="no",
                report_to="none",
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
            ),
            train_dataset=Documents(2000, options.labels, vocabulary, seed=1),
            eval_dataset=Documents(256, options.labels, vocabulary, seed=2),
            compute_metrics=precision,
        )
        trainer.train()
        metrics = trainer.evaluate()
        if options.out:
            trainer.save_model(options.out)
            if trainer.is_world_process_zero():
                check_saved(model, options.out, BertModel(config, add_pooling_layer=False), options)
    print({name: round(value, 4) for name, value in metrics.items()})
    return metrics


if __name__ == "__main__":
    main()
