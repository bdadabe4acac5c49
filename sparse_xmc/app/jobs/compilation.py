"""Compiles what runs use, ahead of them."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from sparse_xmc._progress import Meter
from sparse_xmc.app.assemble import Prepared, assemble
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.device import choose_device
from sparse_xmc.app.first_use import announcing_compilation
from sparse_xmc.app.jobs.prediction import predict
from sparse_xmc.app.jobs.training import train
from sparse_xmc.app.prepare import Precomputed, Preparation, Terms
from sparse_xmc.data import Features, LabelRows
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.plan import plan_for

_ROWS, _FEATURES, _LABELS = 64, 96, 80
_SOLVED = 160  # rows of a direct run, of which enough are held out for a choice
_RUNS: list[dict[str, Any]] = [
    {"lexical_fan_in": 8},
    {"lexical_fan_in": 8, "loss": "squared_hinge", "lexical_loss": "bce"},
    {"embedding_dim": 0, "fan_in": 8},
    {"embedding_dim": 0, "fan_in": 8, "loss": "squared_hinge"},
    {"lexical_fan_in": 8, "group_size": 16, "rewire_fraction": 0.5, "rewire_interval": 1},
    {"lexical_fan_in": 0, "fused": True},
    {"lexical_fan_in": 0, "fused": True, "group_size": 16, "loss": "squared_hinge"},
    {"lexical_fan_in": 0, "head": "head_tail"},
    {"encoder": "features", "topology": "random"},
    {"encoder": "features", "amp": "bf16", "intermediate": 32},
]


def warmup(device: str = "auto", *, progress: bool = True, report: Callable[[str], None] = print) -> int:
    """Trains and predicts for a moment with every kind of head; returns the number of CPU kernels that were compiled."""
    compiled, began = 0, time.monotonic()

    def count() -> None:
        nonlocal compiled
        compiled += 1
        meter.note(f"{compiled} kernels compiled")

    meter = Meter("compiling", "kinds of run", len(_RUNS), shown=progress)
    with announcing_compilation(count):
        for options in meter.over(_RUNS):
            _run(_configured(options), choose_device(device))
        _run_on_texts(device)
        _solve_with_shortlists()
    report(f"kernels ready in {time.monotonic() - began:.0f} s, {compiled} of them compiled now")
    return compiled


def _solve_with_shortlists() -> None:
    """What a direct run does with more rows and labels than can all be told apart by all rows."""
    rng = np.random.default_rng(0)
    x = sp.random(_SOLVED, _FEATURES, 0.1, format="csr", dtype=np.float32, random_state=rng)
    y = sp.csr_matrix(rng.random((_SOLVED, _LABELS // 4)) < 0.2, dtype=np.float32)
    fit(x, y, plan_for("normal", np.bincount(y.indices, minlength=y.shape[1]), _FEATURES))


def _run_on_texts(device: str) -> None:
    """What the command does with a small file of texts."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data, run = os.path.join(folder, "texts.jsonl"), os.path.join(folder, "run")
        with open(data, "w", encoding="utf-8") as file:
            for _ in range(_SOLVED):
                words = rng.integers(_LABELS // 4, size=4).tolist()
                file.write(json.dumps({"text": " ".join(f"word{i}" for i in words), "labels": words[:2]}) + "\n")
        options: dict[str, Any] = {"train": data, "out": run, "device": device, "progress": False, "min_df": 1}
        train(TrainingConfig(**options), report=lambda line: None)
        predict(run, data, os.path.join(folder, "out.jsonl"), options={"progress": False}, report=lambda line: None)


def _configured(options: dict[str, Any]) -> TrainingConfig:
    width = {} if options.get("encoder") == "features" else {"embedding_dim": 32}
    return TrainingConfig(**{"batch_size": 32, "epochs": 1, "fan_in": 8, "progress": False, **width, **options})


def _run(config: TrainingConfig, device: torch.device) -> None:
    """One epoch of two steps and a prediction, on random rows."""
    rng = np.random.default_rng(0)
    rows = LabelRows()
    for i in range(_ROWS):
        rows.append([i % _LABELS, *rng.integers(_LABELS, size=3).tolist(), *([_LABELS - 1] if i == 0 else [])])
    dense = rng.random((_ROWS, _FEATURES)).astype(np.float32)
    matrix = dense if config.encoder == "features" else sp.csr_matrix(np.where(dense < 0.2, dense, 0))
    preparation: Preparation = Precomputed() if config.encoder == "features" else Terms({})
    inputs, rows = preparation.fit(Features(matrix, rows))
    assembly = assemble(Prepared.from_rows(config, preparation, inputs, rows), device)
    assembly.trainer.fit()
    for _ in assembly.bundle.predict(inputs, 5):
        pass
