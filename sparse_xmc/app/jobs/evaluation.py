"""Metrics of a model on a split, and their publication in its run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.calibration import Calibration, calibration_width
from sparse_xmc.app.loading import check_ranking, load_bundle
from sparse_xmc.app.reports import recorded
from sparse_xmc.app.splits import prepared_split
from sparse_xmc.data import Inputs, LabelRows, read_filter
from sparse_xmc.metrics import Truth, calibration_error, hits, ranking_metrics, threshold_metrics
from sparse_xmc.storage.atomic import write_json
from sparse_xmc.storage.errors import ArtefactError

Report = Callable[[str], None]
_RANKED = 5  # labels of a row that the metrics look at
_DECIDED = 50  # of which a threshold decides


def evaluate(
    run: str,
    test: str,
    *,
    labels: str | None = None,
    filter_path: str | None = None,
    threshold: float | None = None,
    options: dict[str, Any] | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """Evaluates the model of a run folder; prints the metrics and writes them there.

    With ``threshold`` also micro and macro precision, recall and F1 of the labels at least that probable.

    They are ``metrics.json``, or ``metrics-NAME.json`` after the test file where the run has a test split of its own and
    this is another one. Where nothing can be written, a line says so.
    """
    check_ranking(1, threshold)
    bundle = load_bundle(run, options)
    inputs, rows = prepared_split(bundle.config, bundle.preparation, test, labels, purpose="evaluate", report=report)
    metrics = score(bundle, inputs, rows, filter_path, threshold)
    name = "metrics.json"
    own = bundle.config.test
    if own is not None and os.path.realpath(own) != os.path.realpath(test):
        name = f"metrics-{os.path.basename(test).partition('.')[0]}.json"
    publish(metrics, os.path.join(run, name), report, needed=False)
    return metrics


def score(
    bundle: Bundle,
    inputs: Inputs,
    rows: LabelRows,
    filter_path: str | None = None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Metrics of a model on a split; a filter file takes pairs out of the ranking first.

    ``threshold`` decides over the 50 best labels of a row; those beyond count as not predicted.
    """
    config, vocabulary = bundle.config, bundle.vocabulary
    targets = vocabulary.encode(rows)
    excluded = read_filter(filter_path, len(rows), vocabulary) if filter_path else None
    wide_top, wide = ranking(bundle, inputs, excluded, _RANKED if threshold is None else _DECIDED)
    top, estimates = wide_top[:, :_RANKED], wide[:, :_RANKED]
    truth = Truth.from_training(
        targets, rows.counts(), bundle.frequencies, bundle.num_train, config.propensity_a, config.propensity_b
    )
    metrics = ranking_metrics(top, truth)
    metrics |= _calibration_metrics(bundle, top, estimates, targets)
    if threshold is not None:
        probabilities = wide if bundle.calibration is None else bundle.calibration(wide)
        metrics["threshold"] = threshold
        metrics |= threshold_metrics(wide_top, np.nan_to_num(probabilities, nan=-1.0), truth, threshold)
    metrics["rows without a known label"] = int((np.diff(targets.indptr) == 0).sum())
    metrics["unseen label occurrences"] = int(rows.counts().sum() - targets.nnz)
    return metrics


def _calibration_metrics(
    bundle: Bundle, top: np.ndarray, estimates: np.ndarray, targets: sp.csr_matrix
) -> dict[str, float]:
    """How far the scores are from the truth, and how far they would be without the model's calibration."""
    hit = hits(top, targets)
    kinds = {"": estimates if bundle.calibration is None else bundle.calibration(estimates)}
    if bundle.calibration is not None:
        kinds[" uncalibrated"] = estimates
    return {f"ECE@{k}{kind}": calibration_error(of[:, :k], hit[:, :k]) for kind, of in kinds.items() for k in (1, 5)}


def ranking(
    bundle: Bundle, inputs: Inputs, excluded: sp.csr_matrix | None = None, width: int = _RANKED
) -> tuple[np.ndarray, np.ndarray]:
    """The best labels of each row that are not excluded and the model's own estimates of their probabilities, both
    ``[N, width]``; -1 and NaN where there are fewer."""
    most = 0 if excluded is None else int(np.diff(excluded.indptr).max(initial=0))
    parts, done = [], 0
    for scores, labels in bundle.predict(inputs, width + most, progress=bundle.config.progress):
        top, estimates = labels, bundle.estimates(scores)
        if excluded is not None:
            top, estimates = _without(top, estimates, excluded[done : done + len(top)])
        done += len(top)
        missing = ((0, 0), (0, max(0, width - top.shape[1])))
        parts.append(
            (
                np.pad(top[:, :width], missing, constant_values=-1),
                np.pad(estimates[:, :width], missing, constant_values=np.nan),
            )
        )
    return np.concatenate([top for top, _ in parts]), np.concatenate([estimates for _, estimates in parts])


def _without(top: np.ndarray, estimates: np.ndarray, excluded: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Moves excluded labels out of the ranking."""
    num_rows, num_labels = excluded.shape
    keys = np.repeat(np.arange(num_rows), np.diff(excluded.indptr)) * num_labels + excluded.indices
    bad = np.isin(np.arange(num_rows)[:, None] * num_labels + top, keys)
    order = np.argsort(bad, axis=1, kind="stable")
    return (
        np.take_along_axis(np.where(bad, -1, top), order, axis=1),
        np.take_along_axis(np.where(bad, np.nan, estimates), order, axis=1),
    )


def calibrate_(bundle: Bundle, inputs: Inputs, rows: LabelRows) -> None:
    """Makes the scores of a model mean probabilities, as rows that it was not trained on tell."""
    if not len(rows):
        return
    top, estimates = ranking(bundle, inputs, width=calibration_width(len(bundle.vocabulary)))
    there = top >= 0
    hit = hits(top, bundle.vocabulary.encode(rows))
    bundle.calibration = Calibration.fit(estimates[there], hit[there])


def plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics of one number each, for the log."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def publish(metrics: dict[str, Any], path: str, report: Report, *, needed: bool = True) -> None:
    """Reports the metrics and writes them to a file; ``needed``: whether it is an error that it can't be written."""
    for line in table(metrics):
        report(line)
    try:
        with recorded(path):
            write_json(path, metrics, indent=1)
    except ArtefactError as error:
        if needed:
            raise
        report(f"metrics not kept: {error.reason}")


def table(metrics: dict[str, Any]) -> list[str]:
    """Metrics as lines to read."""
    lines = [
        "   ".join(f"{name}@{k} {metrics[f'{name}@{k}']:6.2f}" for k in (1, 3, 5))
        for name in ("P", "nDCG", "R", "PSP", "PSnDCG", "coverage")
    ]
    lines.append(f"ECE@1 {metrics['ECE@1']:6.2f}   ECE@5 {metrics['ECE@5']:6.2f}")
    if "ECE@5 uncalibrated" in metrics:
        lines[-1] += f" (uncalibrated: {metrics['ECE@1 uncalibrated']:.2f}, {metrics['ECE@5 uncalibrated']:.2f})"
    lines += ["   ".join(f"F1@{k} {metrics[f'F1@{k}']:6.2f}" for k in (1, 3, 5))] if "F1@5" in metrics else []
    if "threshold" in metrics:
        names = ("micro P", "micro R", "micro F1", "macro F1")
        lines.append(f"at {metrics['threshold']:g}: " + "   ".join(f"{name} {metrics[name]:6.2f}" for name in names))
    for entry in metrics["bins"]:
        recall = "   -  " if entry["R@5"] is None else f"{entry['R@5']:6.2f}"
        lines.append(
            f"labels with {entry['training rows']:>6} training rows: {entry['labels']:7,} labels, "
            f"{entry['positives']:7,} occurrences, R@5 {recall}"
        )
    unseen = metrics["unseen label occurrences"]
    if unseen:
        lines.append(f"{unseen:,} label occurrences were never seen in training: counted as missed")
    return lines
