"""The jobs behind the command line: train, evaluate, predict."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from sparse_xmc.app.build import build, build_encoder, build_optimizers, build_rewiring, input_width, label_order
from sparse_xmc.app.bundle import MODEL_FOLDER, Bundle, choose_device
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.log import RunLog, draw_curves
from sparse_xmc.app.prepare import Precomputed, Preparation, Terms, Tokens
from sparse_xmc.app.run_folder import CHECKPOINTS, check_resumable, claim, clear, complete_file, digest, write_text
from sparse_xmc.app.sharding import TrainingRanks, label_shards, training_ranks
from sparse_xmc.app.trainer import Trainer
from sparse_xmc.data import DataError, Features, Inputs, LabelRows, LabelVocabulary, TextSource, open_split, read_filter
from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.storage.checkpoint import CheckpointError, CheckpointStore, read_folder
from sparse_xmc.storage.tensor_file import Shards

Report = Callable[[str], None]
_RANKED = 5  # labels of a row that the metrics look at


def _open(
    config: TrainingConfig, path: str, labels: str | None, texts: bool, *, need_labels: bool = True
) -> TextSource | Features:
    """``texts``: whether a ``.txt`` holds texts whatever its first line looks like."""
    return open_split(
        path,
        labels=labels,
        text_fields=config.text_field or None,
        label_field=config.label_field,
        need_labels=need_labels,
        texts=texts,
        progress=config.progress,
    )


def _preparation(config: TrainingConfig, encoder: Any) -> Preparation:
    if config.encoder == "transformer":
        return Tokens(encoder, os.path.join(config.out, "tokens"))
    if config.encoder == "features":
        return Precomputed()
    return Terms({"max_features": config.max_features, "min_df": config.min_df, "max_ngram": config.max_ngram})


def score(bundle: Bundle, inputs: Inputs, rows: LabelRows, filter_path: str | None = None) -> dict[str, Any]:
    """Metrics of a model on a split; a filter file takes pairs out of the ranking first."""
    config, vocabulary = bundle.config, bundle.vocabulary
    targets = vocabulary.encode(rows)
    excluded = read_filter(filter_path, len(rows), vocabulary) if filter_path else None
    top = _ranking(bundle, inputs, excluded)
    truth = Truth.from_training(
        targets, rows.counts(), bundle.frequencies, bundle.num_train, config.propensity_a, config.propensity_b
    )
    metrics = ranking_metrics(top, truth)
    metrics["rows without a known label"] = int((np.diff(targets.indptr) == 0).sum())
    metrics["unseen label occurrences"] = int(rows.counts().sum() - targets.nnz)
    return metrics


def _score_file(bundle: Bundle, path: str, inputs: Inputs, rows: LabelRows, filter_path: str | None) -> dict[str, Any]:
    if not len(rows):
        raise DataError(path, None, "no rows to evaluate")
    return score(bundle, inputs, rows, filter_path)


def _ranking(bundle: Bundle, inputs: Inputs, excluded: sp.csr_matrix | None) -> np.ndarray:
    """The best labels of each row ``[N, 5]`` that are not excluded, -1 where there are fewer."""
    most = 0 if excluded is None else int(np.diff(excluded.indptr).max(initial=0))
    parts, done = [], 0
    for _, labels in bundle.predict(inputs, _RANKED + most, progress=bundle.config.progress):
        top = labels.numpy()
        if excluded is not None:
            top = _without(top, excluded[done : done + len(top)])
        done += len(top)
        parts.append(np.pad(top[:, :_RANKED], ((0, 0), (0, max(0, _RANKED - top.shape[1]))), constant_values=-1))
    return np.concatenate(parts)


def _without(top: np.ndarray, excluded: sp.csr_matrix) -> np.ndarray:
    """Moves excluded labels out of the ranking."""
    num_rows, num_labels = excluded.shape
    keys = np.repeat(np.arange(num_rows), np.diff(excluded.indptr)) * num_labels + excluded.indices
    bad = np.isin(np.arange(num_rows)[:, None] * num_labels + top, keys)
    order = np.argsort(bad, axis=1, kind="stable")
    return np.take_along_axis(np.where(bad, -1, top), order, axis=1)


def train(config: TrainingConfig, *, overwrite: bool = False, report: Report = print) -> dict[str, Any]:
    """Trains, or goes on where a killed run stopped; evaluates on the test split.

    Returns:
        The test metrics (those of the last validation, or nothing, where there is no test split).

    Raises:
        DataError, CheckpointError, ValueError: with one message that says what is wrong where.
    """
    if not config.train or not config.out:
        raise ValueError("a run needs train (a data file) and out (a folder)")
    with training_ranks(_checked_device(config.device)) as ranks:
        ranks.check(config)
        if ranks.first:
            return _train(config, ranks, overwrite, report)
        return _train(dataclasses.replace(config, progress=False), ranks, overwrite, _silent)


def _checked_device(name: str) -> torch.device:
    """Raises:
    ValueError: torch does not see the device.
    """
    device = choose_device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _silent(text: str) -> None:
    """Ranks other than the first report nothing."""


def _train(config: TrainingConfig, ranks: TrainingRanks, overwrite: bool, report: Report) -> dict[str, Any]:
    began = time.monotonic()
    if config.threads:
        torch.set_num_threads(config.threads)
    device = ranks.ranks.device
    if not overwrite:
        check_resumable(config)  # before the work of reading the data
    for path in (config.test, config.test_labels, config.test_filter):
        if path is not None and not os.path.exists(path):
            raise DataError(path, None, "no such file")

    encoder: Any = build_encoder(config, 0) if config.encoder == "transformer" else None
    preparation = _preparation(config, encoder)
    with ranks.in_turn(config.encoder == "transformer"):
        inputs, rows = preparation.fit(
            _open(config, config.train, config.train_labels, config.encoder == "transformer")
        )
    if len(rows) == 0 or len(rows.ids) == 0:
        raise DataError(config.train, None, "no rows with labels to train on")
    vocabulary = LabelVocabulary.from_rows(rows)
    config = config.completed(vocabulary.encode(rows), input_width(inputs))
    order = label_order(config, inputs, vocabulary.encode(rows))
    vocabulary = vocabulary.reordered(order)
    targets = vocabulary.encode(rows)
    frequencies = np.asarray(targets.sum(axis=0)).ravel().astype(np.int64)
    num_features = input_width(inputs)
    report(f"{len(inputs):,} rows, {len(vocabulary):,} labels, {num_features:,} features")
    if encoder is None:
        encoder = build_encoder(config, num_features)
    data = {"training data": digest(inputs, targets, vocabulary.names, preparation.state()[0])}
    valid: tuple[Inputs, LabelRows] | None = None
    if config.valid:
        with ranks.in_turn(config.encoder == "transformer"):
            valid = preparation.transform(_open(config, config.valid, config.valid_labels, preparation.reads_texts))
        if not len(valid[1]):
            raise DataError(config.valid, None, "no rows to validate on")
        data["validation data"] = digest(valid[0], vocabulary.encode(valid[1]), valid[1].names)
    if not overwrite:
        check_resumable(config, data, num_features)

    store = CheckpointStore(os.path.join(config.out, CHECKPOINTS), keep=config.keep_checkpoints)
    initialise = overwrite or not store.steps()
    model = build(config, encoder, inputs, targets, device, initialise=initialise, ranks=ranks.ranks)
    bundle = Bundle(config, model, preparation, vocabulary, frequencies, len(inputs), num_features)
    report(f"head: {model.head_bytes() / 2**20:.1f} MiB{ranks.suffix}")
    model_folder = os.path.join(config.out, MODEL_FOLDER)
    optimizers = build_optimizers(config, model)
    shards = store.shards = label_shards(model, [scheduled.optimizer for scheduled in optimizers], ranks.ranks)
    total_steps = -(-len(inputs) // config.batch_size) * config.epochs
    trainer = Trainer(
        model,
        inputs,
        targets,
        optimizers,
        rewire=build_rewiring(config, model, optimizers, total_steps),
        epochs=config.epochs,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        amp=config.amp,
        seed=config.seed,
        validate=None if valid is None else lambda: _plain(score(bundle, *valid)),
        patience=config.patience if valid is not None else 0,
        on_best=lambda: bundle.save(model_folder, shards),
        store=store,
        checkpoint_seconds=config.checkpoint_seconds,
        agree=ranks.agree,
        log_every=config.log_every,
        progress=config.progress,
    )
    if ranks.first:
        if overwrite:
            clear(config.out)
        claim(config, data)
    ranks.meet()
    torch.manual_seed(config.seed)
    if trainer.resume(report):
        report(f"resumed at step {trainer.progress.step} of {trainer.total}")
    log_path = os.path.join(config.out, "metrics.jsonl")
    if ranks.first:
        trainer.log = RunLog(log_path, last_step=trainer.progress.step)
    progress = trainer.fit()
    if progress.best_score is None:
        bundle.save(model_folder, shards)
    else:
        report(f"best validation P@1 {progress.best_score:.2f} at step {progress.best_step}")
        ranks.meet()
        model.load_state_dict(_best(model_folder, shards))
    if ranks.first:
        draw_curves(log_path, os.path.join(config.out, "curves.png"))
    report(f"trained in {time.monotonic() - began:.0f} s, model in {model_folder}")
    if not config.test:
        return {}
    with ranks.in_turn(config.encoder == "transformer"):
        test = preparation.transform(_open(config, config.test, config.test_labels, preparation.reads_texts))
    metrics = _score_file(bundle, config.test, *test, config.test_filter)
    if ranks.first:
        _publish(metrics, config.out, report)
    return metrics


def _best(folder: str, shards: Shards) -> dict[str, torch.Tensor]:
    """The model of the best validation, which no checkpoint holds."""
    try:
        return read_folder(folder, shards)[0]["model"]
    except CheckpointError as error:
        raise CheckpointError(
            f"the best model of this run is lost ({error}): put that folder back, or train anew with --overwrite"
        ) from error


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of one number each, for the log."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def _publish(metrics: dict[str, Any], out: str, report: Report) -> None:
    """Writes ``metrics.json`` and reports the metrics."""
    write_text(os.path.join(out, "metrics.json"), json.dumps(metrics, indent=1) + "\n")
    for name in ("P", "nDCG", "R", "PSP", "PSnDCG", "coverage"):
        report("   ".join(f"{name}@{k} {metrics[f'{name}@{k}']:6.2f}" for k in (1, 3, 5)))
    for entry in metrics["bins"]:
        recall = "   -  " if entry["R@5"] is None else f"{entry['R@5']:6.2f}"
        report(
            f"labels with {entry['training rows']:>6} training rows: {entry['labels']:7,} labels, "
            f"{entry['positives']:7,} occurrences, R@5 {recall}"
        )
    if metrics["unseen label occurrences"]:
        report(
            f"{metrics['unseen label occurrences']:,} label occurrences were never seen in training: counted as missed"
        )


def evaluate(
    run: str,
    test: str,
    *,
    labels: str | None = None,
    filter_path: str | None = None,
    options: dict[str, Any] | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """Evaluates the model of a run folder; prints the metrics and writes ``metrics.json`` there."""
    bundle = _load(run, options)
    split = bundle.preparation.transform(_open(bundle.config, test, labels, bundle.preparation.reads_texts))
    metrics = _score_file(bundle, test, *split, filter_path)
    _publish(metrics, run, report)
    return metrics


def _load(run: str, options: dict[str, Any] | None) -> Bundle:
    options = options or {}
    device = TrainingConfig(**options).device  # checks them all, before the work of reading
    _checked_device(device)
    bundle = Bundle.load(run, device=device)
    bundle.config = dataclasses.replace(bundle.config, **options)
    if bundle.config.threads:
        torch.set_num_threads(bundle.config.threads)
    return bundle


def predict(
    run: str, source: str, out: str, *, k: int = 5, options: dict[str, Any] | None = None, report: Report = print
) -> int:
    """Writes the ``k`` best labels of each row with their scores, one JSON object a line; returns the number of rows.

    ``{"labels": [...], "scores": [...]}``: labels as the training data wrote them, scores as estimates of the labels'
    probabilities (of a squared hinge these may lie beyond [0, 1]). The file appears when it is complete.

    Raises:
        DataError, CheckpointError, ValueError: with one message that says what is wrong where.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    bundle = _load(run, options)
    texts = bundle.preparation.reads_texts
    inputs, _ = bundle.preparation.transform(_open(bundle.config, source, None, texts, need_labels=False))
    count, names = 0, bundle.vocabulary.names
    with complete_file(out) as file:
        for scores, labels in bundle.predict(inputs, k, progress=bundle.config.progress):
            values = bundle.model.as_probabilities(scores)
            for row, value in zip(labels.tolist(), values.tolist(), strict=True):
                entry = {"labels": [names[i] for i in row], "scores": [round(v, 6) for v in value]}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                count += 1
    report(f"{count:,} rows written to {out}")
    return count
