"""Accuracy of fixed fan-in heads against dense ones on real text: runs, rows, figures and the report.

    python -m bench.studies.accuracy run --data ../shared/data --only Bibtex        # appends to reports/accuracy/rows.jsonl
    python -m bench.studies.accuracy report                                         # reports/accuracy/*.png and accuracy.md

A row that is there already is not run again; a run that was interrupted goes on from its checkpoint (``--work``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import sys
import time
from typing import Any

import numpy as np
import torch

from bench import environment
from bench.rows import RowFile
from sparse_xmc.app.assemble import Prepared, assemble
from sparse_xmc.app.build import initialise_embeddings_
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.jobs.evaluation import score
from sparse_xmc.app.prepare import Terms
from sparse_xmc.data import open_split
from sparse_xmc.storage.checkpoint import CheckpointStore

ROWS = RowFile(environment.REPOSITORY / "reports" / "accuracy")
TARGETS = {"Bibtex": (64.17, 38.77, 27.98), "EURLEX57K": (91.65, 82.02, 68.93), "TIBKAT-EN": (44.17, 28.34, 20.87)}
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Bibtex": ("train.txt.gz", "test.txt.gz", {}),
    "EURLEX57K": (
        "train.jsonl.gz",
        "test.jsonl.gz",
        {"text_fields": ["title", "header", "recitals", "main_body"], "label_field": "concepts"},
    ),
    "TIBKAT-EN": ("train.jsonl.gz", "test.jsonl.gz", {"text_fields": ["text"], "label_field": "labels"}),
}
DENSE_ON_TERMS = "dense on terms"  # bench.studies.dense_terms
HIDDEN: dict[str, Any] = {"lexical_fan_in": 0}
REWIRED = {"rewire_fraction": 0.2, "rewire_interval": 50}
HEADS: dict[str, dict[str, Any]] = {
    "dense": {"head": "dense"},
    **{f"K={k}": {"fan_in": k} for k in (16, 32, 64, 128)},
    **{f"K={k}, rewired": {"fan_in": k, **REWIRED} for k in (64, 128, 256)},
    "K=32, random": {"fan_in": 32, "topology": "random"},
    "K=64, random": {"topology": "random"},
    "K=64, random, rewired": {"topology": "random", **REWIRED},
    "K=64, auxiliary": {"auxiliary_weight": 0.4},
    "K=64, random, auxiliary": {"topology": "random", "auxiliary_weight": 0.4},
    **{
        f"K=64, G={g}, {kind}": {"group_size": g, "grouping": kind}
        for g in (16, 32)
        for kind in ("random", "frequency", "clustered")
    },
    "K=64, head/tail 10 %": {"head": "head_tail"},
    "K=64, fused Adagrad": {"fused": True},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"default, {k} terms": {"lexical_fan_in": k} for k in (64, 128, 256, 512)},
    "default, 512 terms, bigrams": {"lexical_fan_in": 512, "max_ngram": 2, "min_df": 4, "max_features": 300_000},
    **{f"terms only K={k}": {"embedding_dim": 0, "fan_in": k, "loss": "squared_hinge"} for k in (16, 32, 64, 128, 256)},
    **{name: {**HIDDEN, **options} for name, options in HEADS.items()},
    **{f"K=64, intermediate {h}": {**HIDDEN, "intermediate": h} for h in (512, 1024, 4096)},
    **{f"{name}, intermediate 2048": {**HIDDEN, **options, "intermediate": 2048} for name, options in HEADS.items()},
}


def features_name(name: str, config: TrainingConfig) -> str:
    return f"{name}-{config.max_ngram}-{config.min_df}-{config.max_features}"


def prepared_rows(name: str, config: TrainingConfig, data: str, work: str) -> tuple[Any, Any, Any, Any, Terms]:
    """Inputs and labels of both splits, from a cache where they have been made before."""
    path = os.path.join(work, f"{features_name(name, config)}.pickle")
    if not os.path.exists(path):
        train, test, options = FILES[name]
        terms = Terms({"max_features": config.max_features, "min_df": config.min_df, "max_ngram": config.max_ngram})
        parts = (
            *terms.fit(open_split(os.path.join(data, name, train), **options)),
            *terms.transform(open_split(os.path.join(data, name, test), **options)),
        )
        os.makedirs(work, exist_ok=True)
        with open(path, "wb") as file:
            pickle.dump((*parts, terms), file)
    with open(path, "rb") as file:
        return pickle.load(file)


def set_embeddings(prepared: Prepared, name: str, work: str) -> None:
    """Embeddings from the truncated SVD, which is the same for all variants and seeds of a set."""
    config, encoder = prepared.config, prepared.encoder
    if config.embedding_dim and config.svd_init:
        path = os.path.join(work, f"{features_name(name, config)}-{config.embedding_dim}.npy")
        if not os.path.exists(path):
            initialise_embeddings_(dataclasses.replace(config, seed=0), encoder, prepared.inputs)
            np.save(path, encoder.weight.detach().numpy())
        encoder.weight.data.copy_(torch.from_numpy(np.load(path)))


def run_one(name: str, variant: str, seed: int, overrides: dict[str, Any], data: str, work: str) -> dict[str, Any]:
    config = TrainingConfig(**{**VARIANTS[variant], **overrides, "seed": seed, "progress": False})
    inputs, rows, test_inputs, test_rows, terms = prepared_rows(name, config, data, work)
    prepared = Prepared.from_rows(config, terms, inputs, rows)
    config = prepared.config
    set_embeddings(prepared, name, work)
    tag = "".join(c if c.isalnum() else "-" for c in f"{name}-{variant}-{seed}-{sorted(overrides.items())}")
    store = CheckpointStore(os.path.join(work, "checkpoints", tag), keep=1)
    assembly = assemble(
        prepared,
        torch.device("cpu"),
        initialise=not store.steps(),
        embed=False,
        store=store if len(inputs) > 10_000 else None,
        checkpoint_seconds=25,
    )
    bundle, trainer = assembly.bundle, assembly.trainer
    torch.manual_seed(seed)
    trainer.resume()
    first = trainer.progress.step
    began, cpu = time.monotonic(), time.process_time()
    trainer.fit()
    epochs = max(trainer.progress.step - first, 1) / trainer.steps_per_epoch
    seconds, cpu_seconds = (time.monotonic() - began) / epochs, (time.process_time() - cpu) / epochs
    metrics = score(bundle, test_inputs, test_rows)
    width = bundle.model.encoder.out_features if config.reads_terms else config.intermediate or config.embedding_dim
    return {
        "dataset": name,
        "variant": variant,
        "seed": seed,
        "overrides": overrides,
        **{k: v for k, v in metrics.items() if isinstance(v, (int, float))},
        "bins": metrics["bins"],
        "head_bytes": bundle.model.head_bytes(),
        "dense_head_bytes": len(bundle.vocabulary) * (width + 1) * 4,
        "seconds_per_epoch": seconds,
        "cpu_seconds_per_epoch": cpu_seconds,
        "epochs": config.epochs,
        "commit": environment.commit()[:7],
        "threads": torch.get_num_threads(),
    }


def key(row: dict[str, Any]) -> tuple[str, str, int, str]:
    return row["dataset"], row["variant"], row["seed"], json.dumps(row["overrides"], sort_keys=True)


def run(options: argparse.Namespace) -> None:
    overrides = json.loads(options.overrides)
    done = {key(row) for row in ROWS.read()}
    for name in options.only:
        for seed in options.seeds:
            for variant in options.variants or VARIANTS:
                if (name, variant, seed, json.dumps(overrides, sort_keys=True)) in done:
                    continue
                row = run_one(name, variant, seed, overrides, options.data, options.work)
                ROWS.append(row)
                print(f"{name} {variant} seed {seed}: " + "  ".join(f"{m} {row[m]:.2f}" for m in ("P@1", "P@3", "P@5")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--data", default=os.environ.get("SPARSE_XMC_DATA", "../shared/data"))
    runs.add_argument("--work", default="cache/accuracy", help="folder of prepared data and checkpoints")
    runs.add_argument("--only", nargs="+", default=list(FILES), choices=list(FILES))
    runs.add_argument("--variants", nargs="+", choices=list(VARIANTS))
    runs.add_argument("--seeds", nargs="+", type=int, default=[0])
    runs.add_argument("--overrides", default="{}", help="options on top of each variant, as JSON")
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "run":
        run(options)
    else:
        from bench.accuracy_report import write_report

        order = {name: place for place, name in enumerate((*FILES, DENSE_ON_TERMS, *VARIANTS))}
        write_report(sorted(ROWS.read(), key=lambda row: (order[row["dataset"]], order[row["variant"]])), TARGETS)


if __name__ == "__main__":
    sys.exit(main())
