"""The training loop: deterministic order, separate optimizers, rewiring, atomic checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.optim import Optimizer

from sparse_xmc._progress import Meter
from sparse_xmc.app.log import RunLog
from sparse_xmc.data import Inputs, sorted_targets, to_torch_csr
from sparse_xmc.distributed.layout import Layout
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.optim.learning_rate import rate_factor
from sparse_xmc.storage.checkpoint import (
    CheckpointStore,
    flatten_tensors,
    random_state,
    restore_tensors,
    set_random_state,
)
from sparse_xmc.storage.errors import ArtefactError

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch (tensor or dictionary of tensors) on a device."""
    if isinstance(batch, dict):
        return {name: value.to(device) for name, value in batch.items()}
    return batch.to(device)


@dataclass
class ScheduledOptimizer:
    """An optimizer and how its learning rates move; each group's initial ``lr`` is its base rate."""

    optimizer: Optimizer
    schedule: str = "linear"
    warmup: float = 0.0
    base: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = [group["lr"] for group in self.optimizer.param_groups]

    def set_rate(self, step: int, total: int) -> None:
        factor = rate_factor(self.schedule, step, total, self.warmup)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_score: float | None = None
    best_step: int = 0
    bad_epochs: int = 0
    stopped: bool = False


class Trainer:
    """Trains an ``XMCClassifier``.

    The order of the rows is a function of seed and epoch, learning rates of the step, everything else random comes
    from torch's generators, which are part of a checkpoint: on a CPU a run that was killed and resumed ends with the
    same bits as one that was not.

    Args:
        model: on its device, in training mode or not.
        inputs, targets: rows to train on and their binary CSR targets ``[N, L]``.
        optimizers: each steps once per batch, after gradients are complete.
        epochs, batch_size, accumulate, amp, seed: as in ``TrainingConfig``.
        rewire: called after each step as ``rewire(step)``, which is 1 at first; may change the head's topology.
        validate: called after each epoch; returns metrics, of which ``score`` ("P@1") decides about stopping.
        patience: epochs without a better score before training stops; 0: never.
        on_best: called when a validation is the best so far.
        store, log: where checkpoints and log entries go; None: nowhere.
    """

    def __init__(
        self,
        model: XMCClassifier,
        inputs: Inputs,
        targets: sp.csr_matrix,
        optimizers: Sequence[ScheduledOptimizer],
        *,
        epochs: int,
        batch_size: int = 128,
        accumulate: int = 1,
        amp: str = "off",
        seed: int = 0,
        rewire: Callable[[int], None] | None = None,
        validate: Callable[[], dict[str, Any]] | None = None,
        score: str = "P@1",
        patience: int = 0,
        on_best: Callable[[], None] | None = None,
        store: CheckpointStore | None = None,
        checkpoint_seconds: float = math.inf,
        agree: Callable[[bool], bool] = bool,
        log: RunLog | None = None,
        log_every: int = 50,
        progress: bool = False,
    ) -> None:
        if len(inputs) != targets.shape[0]:
            raise ValueError(f"inputs have {len(inputs)} rows, targets {targets.shape[0]}")
        if len(inputs) == 0:
            raise ValueError("there is nothing to train on: the training split has no rows")
        self.model, self.inputs, self.targets, self.optimizers = model, inputs, targets, list(optimizers)
        self.epochs, self.batch_size, self.accumulate = epochs, batch_size, accumulate
        self.amp, self.seed, self.rewire, self.validate, self.score = amp, seed, rewire, validate, score
        self.patience, self.on_best, self.store, self.log = patience, on_best, store, log
        self.checkpoint_seconds, self.log_every, self.show_progress = checkpoint_seconds, log_every, progress
        self.agree = agree
        self.progress = Progress()
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.prepare_targets = sorted_targets if getattr(model, "takes_sorted_targets", False) else to_torch_csr
        self.steps_per_epoch = math.ceil(len(inputs) / batch_size)
        self.total = self.steps_per_epoch * epochs

    def rows_of_step(self, step: int) -> np.ndarray:
        """Rows of the batch of a step, from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if getattr(self, "_order_epoch", None) != epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.inputs))
            self._order_epoch = epoch
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

    def train_step(self, step: int) -> Tensor:
        """One optimizer step; returns its loss (0-dim, on the device)."""
        rows = self.rows_of_step(step)
        for scheduled in self.optimizers:
            scheduled.set_rate(step, self.total)
            scheduled.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for piece in np.array_split(rows, min(self.accumulate, len(rows))):
            inputs = to_device(self.inputs.batch(piece), self.device)
            targets = self.prepare_targets(self.targets[piece]).to(self.device)
            with torch.autocast(self.device.type, dtype=_AMP.get(self.amp), enabled=self.amp != "off"):
                loss = self.model.loss(inputs, targets, progress=step / self.total)
            loss = loss * (len(piece) / len(rows))
            self.scaler.scale(loss).backward()
            total += loss.detach()
        for scheduled in self.optimizers:
            self.scaler.step(scheduled.optimizer)
        self.scaler.update()
        return total

    def fit(self) -> Progress:
        """Trains from where the run stands to its end."""
        state, last_saved = self.progress, time.monotonic()
        running = torch.tensor(state.loss_sum, dtype=torch.float64, device=self.device)
        bar = Meter("training", "steps", self.total, done=state.step, shown=self.show_progress)
        self.model.train()
        if self.store is not None and not self.store.steps():
            self.save()  # what the initialisation cost is not lost either
        while state.step < self.total and not state.stopped:
            running += self.train_step(state.step)
            state.step += 1
            state.loss_count += 1
            if self.rewire is not None:
                self.rewire(state.step)
            epoch_ends = state.step % self.steps_per_epoch == 0
            if state.step % self.log_every == 0 or epoch_ends:
                self._log_loss(float(running), bar)
                running.zero_()
            if epoch_ends and self.validate is not None:
                self._validation()
            late = time.monotonic() - last_saved > self.checkpoint_seconds
            if self.store is not None and (epoch_ends or self.agree(late)):
                state.loss_sum = float(running)
                self.save()
                last_saved = time.monotonic()
            bar.update()
        bar.close()
        return state

    def _log_loss(self, loss_sum: float, bar: Meter) -> None:
        state = self.progress
        mean = loss_sum / state.loss_count
        state.loss_count = 0
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} at step {state.step}: lower the learning rate (head_lr, encoder_lr), or amp='off'"
            )
        if self.log is not None:
            self.log.write("train", state.step, epoch=state.step / self.steps_per_epoch, loss=mean)
        bar.note(f"loss {mean:.4g}")

    def _validation(self) -> None:
        state = self.progress
        assert self.validate is not None
        self.model.eval()
        metrics = self.validate()
        self.model.train()
        if self.log is not None:
            self.log.write("valid", state.step, epoch=state.step / self.steps_per_epoch, **metrics)
        value = metrics[self.score]
        if state.best_score is None or value > state.best_score:
            state.best_score, state.best_step, state.bad_epochs = value, state.step, 0
            if self.on_best is not None:
                self.on_best()
        else:
            state.bad_epochs += 1
            state.stopped = 0 < self.patience <= state.bad_epochs

    def save(self) -> None:
        """Writes a checkpoint of the present state, and has the log up to here on disk before."""
        assert self.store is not None
        if self.log is not None:
            self.log.flush()
        optimizers = [scheduled.optimizer.state_dict() for scheduled in self.optimizers]
        dynamic = {"optimizers": optimizers, "random": random_state(), "scaler": self.scaler.state_dict()}
        structure, tensors = flatten_tensors(dynamic, "state")
        self.store.save(
            self.progress.step,
            {"model": Layout(self.model).whole_state(), "state": tensors},
            {"structure": structure, "progress": vars(self.progress)},
        )

    def resume(self, report: Callable[[str], None] = print) -> bool:
        """Goes back to the newest intact checkpoint; False where there is none.

        Raises:
            ArtefactError: there are checkpoints and every one is damaged, or the newest intact one is of another
                model or other optimizers.
        """
        loaded = self.store.load_latest(report) if self.store is not None else None
        if loaded is None:
            return False
        step, tensors, documents = loaded
        try:
            dynamic = restore_tensors(documents["structure"], tensors["state"])
            progress = Progress(**documents["progress"])
            if type(progress.step) is not int or not 0 <= progress.step <= self.total:
                raise ValueError(f"it is of step {progress.step!r:.40} of {self.total}")
            self.model.load_state_dict(tensors["model"])
            for scheduled, state in zip(self.optimizers, dynamic["optimizers"], strict=True):
                scheduled.optimizer.load_state_dict(state)
            self.scaler.load_state_dict(dynamic["scaler"])
            set_random_state(dynamic["random"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ArtefactError(f"the checkpoint of step {step} does not fit this model: {reason}") from error
        self.progress = progress
        return True
