"""A dense head on tf-idf terms, ``[V, L]``: what the fixed fan-in head on terms stands in for, trained the same way.

    python -m bench.studies.dense_terms --only EURLEX57K --epochs 4 --lr 0.3      # appends to reports/accuracy/rows.jsonl

It takes ``8 V L`` bytes for weights and Adagrad's state: 1.3 GB for EURLEX57K, 12 GB for TIBKAT-EN. A step touches only
the rows of the terms in its batch, which for Adagrad is exact: a gradient of zero changes neither weight nor state.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bench import environment
from bench.studies.accuracy import DENSE_ON_TERMS, FILES, ROWS, key, prepared_rows
from sparse_xmc.app.build import TERM_BIAS_DIVISOR, TERM_VALUE
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.trainer import rate_factor
from sparse_xmc.data import LabelVocabulary
from sparse_xmc.data.batches import to_torch_csr
from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.models.losses import logits_loss


class DenseOnTerms:
    """Weights ``[V, L]`` (zero), bias ``[L]`` (at the hinge's margin) and their Adagrad state."""

    def __init__(self, num_terms: int, num_labels: int, initial_state: float) -> None:
        self.weight = torch.zeros(num_terms, num_labels)
        self.state = torch.full_like(self.weight, initial_state)
        self.bias = torch.full((num_labels,), -1.0)
        self.bias_state = torch.full_like(self.bias, initial_state)

    def logits(self, rows: sp.csr_matrix) -> Tensor:
        terms, x = self._terms(rows)
        return torch.addmm(self.bias, x, self.weight[terms])

    @staticmethod
    def _terms(rows: sp.csr_matrix) -> tuple[Tensor, Tensor]:
        """The distinct terms of some rows, and the rows as a dense matrix over these."""
        terms, columns = np.unique(rows.indices, return_inverse=True)
        narrow = sp.csr_matrix((rows.data, columns, rows.indptr), (rows.shape[0], len(terms)))
        return torch.from_numpy(terms.astype(np.int64)), torch.from_numpy(narrow.toarray())

    def step(self, rows: sp.csr_matrix, targets: sp.csr_matrix, rate: float, bias_rate: float, dropout: float) -> None:
        """One step of Adagrad on the squared hinge of a batch."""
        terms, x = self._terms(rows)
        x = F.dropout(x, dropout)
        weight = self.weight[terms]
        logits = torch.addmm(self.bias, x, weight).requires_grad_()
        loss = logits_loss(logits, to_torch_csr(targets), loss="squared_hinge")
        (dz,) = torch.autograd.grad(loss, logits)
        gradient = x.T @ dz
        state = self.state[terms].addcmul_(gradient, gradient)
        self.state[terms] = state
        self.weight[terms] = weight.addcdiv_(gradient, state.sqrt_(), value=-rate)
        db = dz.sum(0)
        self.bias_state.addcmul_(db, db)
        self.bias.addcdiv_(db, self.bias_state.sqrt(), value=-bias_rate)


def run_one(name: str, epochs: int, lr: float, seed: int, data: str, work: str) -> dict[str, Any]:
    config = TrainingConfig(epochs=epochs, lexical_lr=lr, seed=seed)
    inputs, rows, test_inputs, test_rows, _ = prepared_rows(name, config, data, work)
    vocabulary = LabelVocabulary.from_rows(rows)
    targets, test_targets = vocabulary.encode(rows), vocabulary.encode(test_rows)
    (N, V), L = inputs.matrix.shape, len(vocabulary)
    torch.manual_seed(seed)
    head = DenseOnTerms(V, L, (TERM_VALUE / config.batch_size) ** 2)
    total = -(-N // config.batch_size) * epochs
    began, cpu, step = time.monotonic(), time.process_time(), 0
    bar = tqdm(total=total, unit="step", desc=name)
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(N)
        for first in range(0, N, config.batch_size):
            batch = np.sort(order[first : first + config.batch_size])
            rate = lr * rate_factor(config.head_schedule, step, total, config.warmup)
            head.step(inputs.matrix[batch], targets[batch], rate, rate / TERM_BIAS_DIVISOR, config.input_dropout)
            step += 1
            bar.update()
    bar.close()
    seconds, cpu_seconds = (time.monotonic() - began) / epochs, (time.process_time() - cpu) / epochs
    top = np.concatenate(
        [
            head.logits(test_inputs.matrix[first : first + 256]).topk(5).indices.numpy()
            for first in range(0, len(test_inputs), 256)
        ]
    )
    frequencies = np.asarray(targets.sum(axis=0)).ravel().astype(np.int64)
    truth = Truth.from_training(
        test_targets, test_rows.counts(), frequencies, N, config.propensity_a, config.propensity_b
    )
    metrics = ranking_metrics(top, truth)
    return {
        "dataset": name,
        "variant": DENSE_ON_TERMS,
        "seed": seed,
        "overrides": {"epochs": epochs, "lexical_lr": lr},
        **{k: v for k, v in metrics.items() if isinstance(v, (int, float))},
        "bins": metrics["bins"],
        "head_bytes": (V + 1) * L * 4,
        "dense_head_bytes": (V + 1) * L * 4,
        "seconds_per_epoch": seconds,
        "cpu_seconds_per_epoch": cpu_seconds,
        "epochs": epochs,
        "commit": environment.commit()[:7],
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("SPARSE_XMC_DATA", "../shared/data"))
    parser.add_argument("--work", default="cache/accuracy", help="folder of prepared data")
    parser.add_argument("--only", nargs="+", default=["Bibtex", "EURLEX57K"], choices=list(FILES))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=TrainingConfig().lexical_lr, help="Adagrad's learning rate")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    done = {key(row) for row in ROWS.read()}
    for name in options.only:
        for seed in options.seeds:
            row = {"dataset": name, "variant": DENSE_ON_TERMS, "seed": seed}
            if key({**row, "overrides": {"epochs": options.epochs, "lexical_lr": options.lr}}) in done:
                continue
            row = run_one(name, options.epochs, options.lr, seed, options.data, options.work)
            ROWS.append(row)
            print(
                f"{name} {DENSE_ON_TERMS} seed {seed}: " + "  ".join(f"{m} {row[m]:.2f}" for m in ("P@1", "P@3", "P@5"))
            )


if __name__ == "__main__":
    main()
