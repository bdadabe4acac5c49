"""A training run in four steps: prepare, assemble, fit, publish; a killed run goes on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparse_xmc._extras import require
from sparse_xmc.app.assemble import Assembly, Prepared, assemble
from sparse_xmc.app.build import build_encoder
from sparse_xmc.app.bundle import MODEL_FOLDER, Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.device import choose_device
from sparse_xmc.app.direct.job import direct_plan, solve
from sparse_xmc.app.direct.later import solve_later
from sparse_xmc.app.direct.options import settled
from sparse_xmc.app.direct.stages import StageFolder
from sparse_xmc.app.hold_out import Split, hold_out
from sparse_xmc.app.inherited import check_inherited
from sparse_xmc.app.jobs.evaluation import calibrate_, plain, publish, score
from sparse_xmc.app.log import RunLog, draw_curves
from sparse_xmc.app.prepare import Precomputed, Terms, Tokens
from sparse_xmc.app.run_folder import CHECKPOINTS, check_removable, check_resumable, claim, clear, digest, sweep
from sparse_xmc.app.sharding import TrainingRanks, label_shards, training_ranks
from sparse_xmc.app.splits import check_effects, check_paths, open_data, prepared_split
from sparse_xmc.data import DataError
from sparse_xmc.storage.atomic import make_folder
from sparse_xmc.storage.checkpoint import CheckpointStore, read_folder
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.lock import FolderLock
from sparse_xmc.storage.tensor_file import Shards

Report = Callable[[str], None]


def train(config: TrainingConfig, *, overwrite: bool = False, report: Report = print) -> dict[str, Any]:
    """Trains, or goes on where a killed run stopped; evaluates on the test split.

    Returns:
        The test metrics (nothing where there is no test split).

    Raises:
        DataError, ArtefactError, ValueError: with one message that says what is wrong where.
    """
    if not config.train or not config.out:
        raise ValueError("a run needs train (a data file) and out (a folder)")
    with training_ranks(choose_device(config.device), config.timeout) as ranks:
        config = settled(config, ranks.ranks.size)
        ranks.check(config, overwrite)
        if not ranks.first:
            config, report = dataclasses.replace(config, progress=False), _silent
        lock = FolderLock(config.out)
        with lock if ranks.first else contextlib.nullcontext():
            return _Run(config, ranks, overwrite, report, lock).train()


def _silent(text: str) -> None:
    """Ranks other than the first report nothing."""


@dataclass
class _Data:
    """What a run reads: the training split, the validation split and rows held out, where there are any, and digests."""

    train: Prepared
    valid: Split | None
    held_out: Split | None
    digests: dict[str, str]


@dataclass
class _Run:
    """One run, on one of its ranks."""

    config: TrainingConfig
    ranks: TrainingRanks
    overwrite: bool
    report: Report
    lock: FolderLock

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.model_folder = os.path.join(self.config.out, MODEL_FOLDER)
        self.log_path = os.path.join(self.config.out, "metrics.jsonl")

    def train(self) -> dict[str, Any]:
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        with self.ranks.together():
            data = self.prepare()
        self.ranks.compare(data.digests)
        if data.train.config.solver == "direct":
            return self.publish(self.solve(data))
        assembly, shards = self.assemble(data)
        self.fit(data, assembly, shards)
        return self.publish(assembly.bundle)

    def solve(self, data: _Data) -> Bundle:
        """Solves directly, stage by stage; only once it is clear that it can be done is the folder this run's."""
        config, plan = data.train.config, direct_plan(data.train)
        self.run = self.claim(config, data)
        if os.path.isdir(self.model_folder) or os.path.isdir(f"{self.model_folder}.old"):
            self.report(f"the run is finished, model in {self.model_folder}")  # it is saved last of all
            return Bundle.load(config.out, device="cpu")
        stages = StageFolder(os.path.join(config.out, CHECKPOINTS), self.run, self.report)
        if data.train.beginning is None:
            bundle = solve(data.train, plan, stages, self.report)
        else:
            bundle = solve_later(data.train, plan, self.report)
        self.report(f"head: {bundle.model.head_bytes() / 2**20:.1f} MiB")
        if data.held_out is not None:
            calibrate_(bundle, *data.held_out)
        bundle.save(self.model_folder, run=self.run)
        if not config.keep_stages:
            stages.remove()
        self.report(f"trained in {time.monotonic() - self.began:.0f} s, model in {self.model_folder}")
        return bundle

    def prepare(self) -> _Data:
        """Reads the data; refuses a folder that holds another run."""
        config = self.config
        if config.from_ is not None and os.path.realpath(config.from_) == os.path.realpath(config.out):
            raise ValueError(f"from and out are the same folder ({config.out}): choose another --out")
        if self.overwrite:
            check_removable(config.out)
        else:
            check_resumable(config)  # before the work of reading the data
        require(*_packages(config))
        check_paths(config.test, config.test_labels, config.test_filter)
        encoder: Any = None
        base = _model_of(config) if config.from_ is not None else None
        if config.encoder == "transformer":
            encoder = build_encoder(config, 0) if base is None else base.model.encoder
            config.connections(config.width or encoder.out_features)
        preparation = _preparation(config, encoder, base)
        with self.ranks.in_turn(encoder is not None):
            texts = encoder is not None if base is None else preparation.reads_texts
            source = open_data(config, config.train, config.train_labels, texts=texts)
            check_effects(config, source)
            if base is None:
                inputs, rows = preparation.fit(source)
            elif config.solver == "direct":
                inputs, rows = preparation.extend(source)
            else:
                inputs, rows = preparation.transform(source)
        self.report(source.summary())
        if len(rows) == 0 or len(rows.ids) == 0:
            raise DataError(config.train, None, "no rows with labels to train on")
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
        if not self.overwrite:
            check_resumable(train.config, data.digests, train.num_features)
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
        model, trainer = assembly.bundle.model, assembly.trainer
        self.report(f"head: {model.head_bytes() / 2**20:.1f} MiB{ranks.suffix}")
        shards = label_shards(model, [scheduled.optimizer for scheduled in trainer.optimizers], ranks.ranks)
        store.shards = shards
        with ranks.together():
            run = self.claim(config, data) if ranks.first else None
        self.run = store.run = ranks.exchange(run)[0]
        return assembly, shards

    def claim(self, config: TrainingConfig, data: _Data) -> str:
        """Makes the folder this run's, and no other program's meanwhile."""
        make_folder(config.out)
        self.lock.acquire()
        if self.overwrite:
            clear(config.out)
        else:
            check_resumable(config, data.digests, data.train.num_features)  # a run may have come there since
        run = claim(config, data.digests, self.report)
        sweep(config.out)
        return run

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
                bundle.model.load_state_dict(_best(self.model_folder, shards, self.run))
        held_out = data.valid or data.held_out
        if held_out is not None:
            calibrate_(bundle, *held_out)
        bundle.save(self.model_folder, shards, run=self.run)
        self.report(f"trained in {time.monotonic() - self.began:.0f} s, model in {self.model_folder}")

    def publish(self, bundle: Bundle) -> dict[str, Any]:
        """Evaluates on the test split; draws the curves, where there are any."""
        config, metrics = self.config, {}
        if config.test:
            with self.ranks.together(), self.ranks.in_turn(config.encoder == "transformer"):
                inputs, rows = prepared_split(
                    config,
                    bundle.preparation,
                    config.test,
                    config.test_labels,
                    purpose="evaluate",
                    report=self.report,
                )
            if not self.ranks.alone:
                self.ranks.compare({"the test data": digest(inputs, bundle.vocabulary.encode(rows), rows.names)})
            metrics = score(bundle, inputs, rows, config.test_filter)
        if self.ranks.first and metrics:
            publish(metrics, os.path.join(config.out, "metrics.json"), self.report)
        if self.ranks.first and config.solver != "direct":
            _draw(self.log_path, os.path.join(config.out, "curves.png"), self.report)
        return metrics


def _packages(config: TrainingConfig) -> list[str]:
    """What is imported only after the data have been read."""
    if config.encoder == "transformer":
        return ["transformers"]
    if config.solver == "direct":
        return []
    factorised = config.encoder == "bow" and config.embedding_dim and config.svd_init
    return ["sklearn"] if factorised or config.grouping == "clustered" or config.auxiliary_weight else []


def _model_of(config: TrainingConfig) -> Bundle:
    """The model that a run begins from.

    Raises:
        ValueError: it has other options.
        ArtefactError: there is no intact one.
    """
    assert config.from_ is not None
    bundle = Bundle.load(config.from_, device="cpu")
    check_inherited(config, bundle.config)
    return bundle


def _preparation(config: TrainingConfig, encoder: Any, base: Bundle | None) -> Any:
    if config.encoder == "transformer":
        return Tokens(encoder, os.path.join(config.out, "tokens"))
    if base is not None:
        return base.preparation
    if config.encoder == "features":
        return Precomputed()
    return Terms(config.term_options)


def _digest(train: Prepared) -> str:
    return digest(train.inputs, train.targets, train.vocabulary.names, train.preparation.state()[0])


def _best(folder: str, shards: Shards, run: str | None) -> dict[str, torch.Tensor]:
    """The model of the best validation, which no checkpoint holds."""
    try:
        return read_folder(folder, shards, run=run)[0]["model"]
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
