"""A run by gradients in four steps: prepare, assemble, fit, publish; a killed run goes on where it stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from sparse_xmc._extras import require
from sparse_xmc.app.assemble import Assembly, Prepared, assemble
from sparse_xmc.app.beginning import model_of
from sparse_xmc.app.build import build_encoder
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.hold_out import Split, hold_out
from sparse_xmc.app.jobs.evaluation import calibrate_, plain, score
from sparse_xmc.app.log import RunLog, draw_curves
from sparse_xmc.app.prepare import Precomputed, Preparation, Terms, Tokens
from sparse_xmc.app.run import Report, Run
from sparse_xmc.app.run_folder import CHECKPOINTS, begun_early, digest
from sparse_xmc.app.sharding import TrainingRanks, label_shards
from sparse_xmc.app.splits import check_effects, open_data, prepared_split
from sparse_xmc.kernels.threads import set_num_threads
from sparse_xmc.storage.checkpoint import CheckpointStore, read_folder
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.lock import FolderLock
from sparse_xmc.storage.tensor_file import Shards


@dataclass
class _Data:
    """What a run reads: the training split, the validation split and rows held out, where there are any, and digests."""

    train: Prepared
    valid: Split | None
    held_out: Split | None
    digests: dict[str, str]


class GradientRun(Run):
    """One run, on one of its ranks."""

    def __init__(
        self, config: TrainingConfig, overwrite: bool, report: Report, lock: FolderLock, ranks: TrainingRanks
    ) -> None:
        super().__init__(config, overwrite, report, lock)
        self.ranks = ranks
        self.log_path = os.path.join(config.out, "metrics.jsonl")

    def train(self) -> dict[str, Any]:
        if self.config.threads:
            set_num_threads(self.config.threads)
        with self.ranks.together():
            data = self.prepare()
        self.ranks.compare(data.digests)
        assembly, shards = self.assemble(data)
        self.fit(data, assembly, shards)
        return self.judge(assembly.bundle)

    def prepare(self) -> _Data:
        """Reads the data; refuses a folder that holds another run."""
        config = self.config
        self.check_folder()
        require(*_packages(config))
        encoder: Any = None
        base = model_of(config) if config.from_ is not None else None
        if config.encoder == "transformer":
            encoder = build_encoder(config, 0) if base is None else base.module.encoder
            config.connections(config.width or encoder.out_features)
        early = not self.overwrite and begun_early(config.out)
        preparation = _preparation(config, encoder, base, early)
        with self.ranks.in_turn(encoder is not None):
            texts = encoder is not None if base is None else preparation.reads_texts
            source = open_data(config, config.train, config.train_labels, texts=texts)
            check_effects(config, source)
            inputs, rows = preparation.fit(source) if base is None else preparation.transform(source)
        self.report(source.summary())
        self.check_rows(rows)
        held_out = None
        if config.calibration_share:
            (inputs, rows), held_out = hold_out(inputs, rows, config.calibration_share, config.seed)
        if base is None:
            train = Prepared.from_rows(config, preparation, inputs, rows, encoder)
        else:
            train = Prepared.from_model(config, base, preparation, inputs, rows)
        self.report(f"{len(inputs):,} rows, {len(train.vocabulary):,} labels, {train.num_features:,} features")
        data = _Data(train, None, held_out, {"training data": _digest(train)})
        if train.beginning is not None:
            self.report(train.beginning.summary())
            data.digests["content of from"] = train.beginning.bundle.digest
        if config.valid:
            with self.ranks.in_turn(encoder is not None):
                inputs, rows = prepared_split(
                    config,
                    preparation,
                    config.valid,
                    config.valid_labels,
                    purpose="validate on",
                    report=self.report,
                )
            data.valid = inputs, rows
            data.digests["validation data"] = digest(inputs, train.vocabulary.encode(rows), rows.names)
        self.check_data(train.config, data.digests, train.num_features)
        return data

    def assemble(self, data: _Data) -> tuple[Assembly, Shards]:
        """Makes the model and its trainer; only then is the folder this run's."""
        config, ranks, valid = data.train.config, self.ranks, data.valid
        store = CheckpointStore(os.path.join(config.out, CHECKPOINTS), keep=config.keep_checkpoints)
        begun = any(self.ranks.exchange(bool(store.steps())))
        assembly: Assembly
        shards: Shards
        assembly = assemble(
            data.train,
            ranks.ranks.device,
            initialise=self.overwrite or not begun,
            ranks=ranks.ranks,
            validate=None if valid is None else lambda: plain(score(assembly.bundle, *valid)),
            patience=config.patience if valid is not None else 0,
            on_best=lambda: assembly.bundle.save(self.model_folder, shards, run=store.run),
            store=store,
            checkpoint_seconds=config.checkpoint_seconds,
            agree=ranks.agree,
            log_every=config.log_every,
        )
        model, trainer = assembly.bundle.module, assembly.trainer
        self.report(f"head: {model.head_bytes() / 2**20:.1f} MiB{ranks.suffix}")
        shards = label_shards(model, [scheduled.optimizer for scheduled in trainer.optimizers], ranks.ranks)
        store.shards = shards
        with ranks.together():
            run = self.claim(config, data.digests, data.train.num_features) if ranks.first else None
        self.run = store.run = ranks.exchange(run)[0]
        return assembly, shards

    def fit(self, data: _Data, assembly: Assembly, shards: Shards) -> None:
        """Trains to the end; the model is then the best one."""
        bundle, trainer = assembly.bundle, assembly.trainer
        torch.manual_seed(bundle.config.seed)
        with self.ranks.together():
            if trainer.resume(self.report):
                self.report(f"resumed at step {trainer.progress.step} of {trainer.total}")
            if self.ranks.first:
                trainer.log = RunLog(self.log_path, last_step=trainer.progress.step)
        progress = trainer.fit()
        if progress.best_score is not None:
            self.report(f"best validation P@1 {progress.best_score:.2f} at step {progress.best_step}")
            with self.ranks.together():
                bundle.module.load_state_dict(_best(self.model_folder, shards, self.run))
        held_out = data.valid or data.held_out
        if held_out is not None:
            calibrate_(bundle, *held_out)
        bundle.save(self.model_folder, shards, run=self.run)
        self.said_trained()

    def judge(self, bundle: Bundle) -> dict[str, Any]:
        """Evaluates on the test split; draws the curves."""
        metrics: dict[str, Any] = {}
        if self.config.test:
            with self.ranks.together(), self.ranks.in_turn(self.config.encoder == "transformer"):
                inputs, rows = self.test_split(bundle)
            if not self.ranks.alone:
                self.ranks.compare({"the test data": digest(inputs, bundle.vocabulary.encode(rows), rows.names)})
            metrics = self.evaluate(bundle, inputs, rows)
        if self.ranks.first:
            self.publish(metrics)
            _draw(self.log_path, os.path.join(self.config.out, "curves.png"), self.report)
        return metrics


def _packages(config: TrainingConfig) -> list[str]:
    """What is imported only after the data have been read."""
    if config.encoder == "transformer":
        return ["transformers"]
    factorised = config.encoder == "bow" and config.embedding_dim and config.svd_init
    return ["sklearn"] if factorised or config.grouping == "clustered" or config.auxiliary_weight else []


def _preparation(config: TrainingConfig, encoder: Any, base: Bundle | None, early: bool) -> Preparation:
    if config.encoder == "transformer":
        return Tokens(encoder, os.path.join(config.out, "tokens"))
    if base is not None:
        return base.preparation
    if config.encoder == "features":
        return Precomputed()
    return Terms(config.term_options, early=early)


def _digest(train: Prepared) -> str:
    return digest(train.inputs, train.targets, train.vocabulary.names, train.preparation.state()[0])


def _best(folder: str, shards: Shards, run: str | None) -> dict[str, torch.Tensor]:
    """The model of the best validation, which no checkpoint holds."""
    try:
        return read_folder(folder, shards, run=run, mapped=True)[0]["model"]
    except ArtefactError as error:
        raise ArtefactError(
            f"the best model of this run is lost ({error}): put that folder back, or train anew with --overwrite"
        ) from error


def _draw(log_path: str, image_path: str, report: Report) -> None:
    """The curves of a run; nothing of a run depends on them."""
    try:
        draw_curves(log_path, image_path)
    except ImportError:
        report("no curves.png: matplotlib is not installed")
    except (OSError, ValueError, RuntimeError) as error:
        report(f"no curves.png: {image_path} could not be drawn: {error}")
