"""The training loop: resume is exact from any point, accumulation and early stopping do what they say."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc.app.log import RunLog, draw_curves, read_log
from sparse_xmc.app.trainer import ScheduledOptimizer, Trainer
from sparse_xmc.data import SparseInputs
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.encoders import BagOfWordsEncoder, intermediate_layer
from sparse_xmc.models.head_tail import DenseLinear
from sparse_xmc.models.sparse_input import SparseInputLinear
from sparse_xmc.optim.learning_rate import rate_factor
from sparse_xmc.optim.row_sparse import RowSparseAdagrad
from sparse_xmc.storage.checkpoint import CheckpointError, CheckpointStore

N, V, L = 60, 40, 12


def problem():
    rng = np.random.default_rng(0)
    x = sp.random(N, V, 0.2, format="csr", random_state=0, dtype=np.float32)
    y = sp.csr_matrix((rng.random((N, L)) < 0.2).astype(np.float32))
    return SparseInputs(x), y


def make(tmp_path, name, *, epochs=3, hook=None, validate=None, dropout=0.3, **options):
    torch.manual_seed(0)
    inputs, targets = problem()
    model = XMCClassifier(
        BagOfWordsEncoder(V, 8, dropout=dropout),
        DenseLinear(16, L, seed=1),
        penultimate=intermediate_layer(8, 16, dropout=dropout),
        lexical=SparseInputLinear(V, L, 5, dropout=dropout, seed=2),
    )
    dense = [*model.penultimate.parameters(), model.encoder.bias, *model.head.parameters()]
    optimizers = [
        ScheduledOptimizer(RowSparseAdagrad([model.encoder.weight], 0.1), "cosine", 0.1),
        ScheduledOptimizer(torch.optim.Adam(dense, 1e-2), "linear"),
        ScheduledOptimizer(torch.optim.Adagrad(model.lexical.parameters(), 0.1), "constant"),
    ]
    (tmp_path / name).mkdir(exist_ok=True)
    options.setdefault("batch_size", 16)
    trainer = Trainer(
        model,
        inputs,
        targets,
        optimizers,
        epochs=epochs,
        rewire=hook,
        validate=validate,
        store=CheckpointStore(tmp_path / name / "checkpoints"),
        checkpoint_seconds=0,
        log_every=3,
        **options,
    )
    resumed = trainer.resume()
    trainer.log = RunLog(tmp_path / name / "metrics.jsonl", last_step=trainer.progress.step)
    return trainer, resumed


class Killed(BaseException):
    pass


def test_resume_after_any_step_is_exact(tmp_path):
    whole, resumed = make(tmp_path, "whole")
    assert not resumed
    whole.fit()
    curve = read_log(tmp_path / "whole" / "metrics.jsonl")
    assert whole.total == 12
    assert curve[-1]["loss"] < curve[0]["loss"]
    for stop in (1, 5, 8, 11):

        def kill(step, stop=stop):
            if step == stop:
                raise Killed

        name = f"killed{stop}"
        trainer, _ = make(tmp_path, name, hook=kill)
        with pytest.raises(Killed):
            trainer.fit()
        (tmp_path / name / "metrics.jsonl").open("a").write('{"kind": "train", "st')
        trainer, resumed = make(tmp_path, name)
        assert resumed
        assert trainer.progress.step == stop - 1
        trainer.fit()
        for key, value in whole.model.state_dict().items():
            assert trainer.model.state_dict()[key].equal(value), key
        assert read_log(tmp_path / name / "metrics.jsonl") == curve


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    losses = {}
    for pieces in (1, 3):
        trainer, _ = make(tmp_path, f"a{pieces}", dropout=0.0, accumulate=pieces)
        losses[pieces] = [trainer.train_step(step).item() for step in range(4)]
    assert losses[3] == pytest.approx(losses[1], rel=1e-5)


def set_scale(trainer, scale):
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": scale})


def test_fp16_loss_is_scaled_and_an_overflow_changes_nothing(tmp_path):
    trainer, _ = make(tmp_path, "half", amp="fp16", dropout=0.0)
    exact, _ = make(tmp_path, "float", dropout=0.0)
    set_scale(trainer, 2.0**120)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train_step(0)
    assert trainer.scaler.get_scale() == 2.0**119
    for key, value in trainer.model.state_dict().items():
        if "lexical" not in key:  # computes in float32, and each optimizer steps on gradients of its own
            assert value.equal(before[key]), key
    trainer, _ = make(tmp_path, "again", amp="fp16", dropout=0.0)
    set_scale(trainer, 1024.0)
    losses = [[t.train_step(step).item() for step in range(8)] for t in (trainer, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    assert trainer.scaler.get_scale() == 1024.0


def test_fp16_resumes_with_its_scale(tmp_path):
    trainer, _ = make(tmp_path, "scale", amp="fp16")
    set_scale(trainer, 4096.0)
    trainer.train_step(0)
    trainer.save()
    resumed, found = make(tmp_path, "scale", amp="fp16")
    assert found
    assert resumed.scaler.get_scale() == 4096.0


def test_early_stopping_keeps_the_best(tmp_path):
    scores = iter([10.0, 30.0, 20.0, 25.0, 99.0])
    best = []
    trainer, _ = make(
        tmp_path, "v", epochs=5, patience=2, validate=lambda: {"P@1": next(scores)}, on_best=lambda: best.append(1)
    )
    progress = trainer.fit()
    assert (progress.best_score, progress.best_step, progress.stopped) == (30.0, 8, True)
    assert len(best) == 2
    assert [e["P@1"] for e in read_log(tmp_path / "v" / "metrics.jsonl") if e["kind"] == "valid"] == [10, 30, 20, 25]
    again, _ = make(tmp_path, "v", epochs=5)
    assert again.fit().step == progress.step


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer, _ = make(tmp_path, "nan")
    with torch.no_grad():
        trainer.model.head.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step-0000000000 is not written: head.bias holds NaN or infinity"):
        trainer.fit()
    trainer.store = None
    with pytest.raises(FloatingPointError, match="the loss is nan at step 3"):
        trainer.fit()


def test_rates():
    assert [rate_factor("linear", s, 10, 0.2) for s in (0, 1, 2, 6)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5])
    assert rate_factor("cosine", 6, 10, 0.2) == pytest.approx(0.5)
    assert rate_factor("constant", 9, 10, 0.0) == 1
    with pytest.raises(ValueError, match="kind must be"):
        rate_factor("step", 0, 1, 0.0)


def test_row_sparse_adagrad_equals_the_formula():
    weight = torch.nn.Parameter(torch.ones(5, 3))
    optimizer = RowSparseAdagrad([weight], 0.5, eps=0.1)
    dense, total = torch.ones(5, 3), torch.zeros(5)
    for seed in range(3):
        rows = [torch.tensor([0, 1]), torch.tensor([1, 3]), torch.tensor([3, 1, 3])][seed]
        values = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(seed))
        weight.grad = torch.sparse_coo_tensor(rows[None], values, (5, 3))
        optimizer.step()
        gradient = torch.zeros(5, 3).index_add_(0, rows, values)
        total += gradient.square().mean(1)
        dense -= 0.5 * gradient / (total.sqrt() + 0.1)[:, None]
    torch.testing.assert_close(weight.detach(), dense)
    assert weight[[2, 4]].detach().eq(1).all()
    weight.grad = torch.ones(5, 3)
    with pytest.raises(TypeError, match="takes sparse gradients"):
        optimizer.step()


def test_a_checkpoint_of_another_model_is_explained(tmp_path):
    trainer, _ = make(tmp_path, "a")
    trainer.save()
    trainer.model.head = DenseLinear(16, L + 1)
    with pytest.raises(
        CheckpointError, match=r"the checkpoint of step 0 does not fit this model: .*head.weight"
    ) as error:
        trainer.resume()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", [b"3", b"[]", b"null", b'{"kind": "train"}', b'{"step": 1}', b'"\xff"'])
def test_a_line_that_is_no_entry_is_named(tmp_path, line):
    (tmp_path / "m.jsonl").write_bytes(b'{"kind": "train", "step": 1, "loss": 2}\n' + line + b"\n")
    with pytest.raises(CheckpointError, match=r"m.jsonl:2: no entry of a log"):
        RunLog(tmp_path / "m.jsonl", last_step=1)


def test_curves_are_drawn(tmp_path):
    log = RunLog(tmp_path / "m.jsonl")
    log.write("train", 1, loss=2.0)
    log.write("valid", 1, **{"P@1": 1.0, "P@3": 1.0, "P@5": 1.0})
    draw_curves(tmp_path / "m.jsonl", tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
