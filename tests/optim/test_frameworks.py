"""Fused optimizers where training loops are somebody else's: closures, schedulers, scalers, one optimizer for all."""

import copy
import pickle

import pytest
import torch
from torch.optim import lr_scheduler

from sparse_xmc.optim import ChainedOptimizer, FusedAdagrad, FusedAdam, FusedSGD, RowSparseAdagrad
from tests.optim.test_fused import D, batches, make_head

MAKERS = {
    "sgd": lambda **o: FusedSGD(0.1, **o),
    "adagrad": lambda **o: FusedAdagrad(0.1, **o),
    "adam": lambda **o: FusedAdam(0.1, **o),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def fused(optimizer, **options):
    head = make_head(**options)
    head.fuse_optimizer(optimizer)
    return head


def schedule(kind, optimizer):
    if kind == "one_cycle":
        return lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=12)
    return lr_scheduler.CyclicLR(optimizer, 0.01, 0.2, step_size_up=3, cycle_momentum=True)


@pytest.mark.parametrize("kind", ["one_cycle", "cyclic"])
def test_scheduled_momentum_is_torchs(kind):
    head = make_head()
    plain = copy.deepcopy(head)
    optimizer, unfused = FusedSGD(0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    head.fuse_optimizer(optimizer)
    schedules = [schedule(kind, o) for o in (optimizer, unfused)]
    for x, targets in batches(10):
        unfused.zero_grad()
        plain.loss(x, targets).backward()
        unfused.step()
        head.loss(x, targets).backward()
        optimizer.step()
        for one in schedules:
            one.step()
    assert optimizer.param_groups[0]["momentum"] == unfused.param_groups[0]["momentum"] > 0
    torch.testing.assert_close(head.weight, plain.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.bias, plain.bias, rtol=1e-4, atol=1e-5)


def test_hyperparameters_changed_later_take_effect():
    """A momentum that comes, goes and comes back, as in torch, whose buffer rests meanwhile; decay and rate too."""
    head = make_head()
    plain = copy.deepcopy(head)
    optimizer = FusedSGD(0.1)
    head.fuse_optimizer(optimizer)
    unfused = torch.optim.SGD([{"params": [plain.weight]}, {"params": [plain.bias]}], lr=0.1)
    for number, (x, targets) in enumerate(batches(8)):
        momentum, decay, rate = (0.0, 0.9, 0.0, 0.5)[number // 2], 0.05 * (number > 3), 0.1 / (1 + number)
        optimizer.param_groups[0].update(momentum=momentum, weight_decay=decay, lr=rate)
        for group in unfused.param_groups:
            group.update(momentum=momentum, lr=rate)
        unfused.param_groups[0]["weight_decay"] = decay
        unfused.zero_grad()
        plain.loss(x, targets).backward()
        unfused.step()
        head.step(x, targets)
    torch.testing.assert_close(head.weight, plain.weight, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_own_checkpoints_load_whenever_they_were_written(make):
    """Before and after a scheduler or a user turns momentum on, twice, and into a copy; training goes on alike."""
    data = list(batches(6))
    head = fused(make())
    optimizer = head._optimizer
    scheduler = schedule("one_cycle", optimizer)
    for number, (x, targets) in enumerate(data):
        head.loss(x, targets).backward()
        optimizer.step()
        scheduler.step()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.load_state_dict(optimizer.state_dict())
        other = copy.deepcopy(head)
        other._optimizer.load_state_dict(pickle.loads(pickle.dumps(saved)))
        following = data[(number + 1) % len(data)]
        twin = copy.deepcopy(head)
        for layer in (other, twin):
            layer.step(*following)
        assert torch.equal(other.weight, twin.weight)
    fresh = fused(make(momentum=0.9))  # has a buffer, the saved one of before the scheduler has none
    fresh._optimizer.load_state_dict(fused(make())._optimizer.state_dict())
    assert "momentum_buffer" not in fresh._optimizer.state[fresh.weight]


def test_state_that_never_had_a_scheduled_momentum_loads():
    """As runs wrote it whose momentum was scheduled, when buffers were only made at the start."""
    head = fused(FusedSGD(0.1))
    saved = head._optimizer.state_dict()
    saved["param_groups"][0]["momentum"] = 0.9
    head._optimizer.load_state_dict(saved)
    (x, targets), *_ = batches(1)
    head.step(x, targets)
    assert head._optimizer.state[head.weight]["momentum_buffer"].any()


@every_optimizer
def test_a_closure_runs_once_and_its_value_comes_back(make):
    (x, targets), *_ = batches(1)
    head, other = fused(make()), fused(make())
    calls = []

    def closure():
        head._optimizer.zero_grad()
        loss = head.loss(x, targets)
        loss.backward()
        calls.append(loss.item())
        return loss

    with torch.no_grad():
        values = [float(head._optimizer.step(closure).detach()) for _ in range(3)]
    for _ in range(3):
        other.step(x, targets)
    assert values == calls and len(calls) == 3
    torch.testing.assert_close(head.weight, other.weight)
    assert head._optimizer.step(lambda: None) is None  # manual optimization passes a closure that does nothing


@every_optimizer
def test_capturable_counters_live_in_tensors(make):
    """The same training; a scheduler writes into the tensor that a recorded step reads; checkpoints go both ways."""
    heads = [fused(make(capturable=capturable), dtype=torch.bfloat16) for capturable in (False, True)]
    schedules = [lr_scheduler.StepLR(head._optimizer, 1, 0.5) for head in heads]
    group = heads[1]._optimizer.param_groups[0]
    lr, updates = group["lr"], group["updates"]
    for number, (x, targets) in enumerate(batches(4, torch.bfloat16)):
        for head, one in zip(heads, schedules, strict=True):
            head.loss(x, targets).backward()
            head._optimizer.step()
            one.step()
        assert group["lr"] is lr and group["updates"] is updates and int(updates) == number + 1
        assert float(lr) == pytest.approx(0.1 * 0.5 ** (number + 1))
        assert torch.equal(heads[0].weight, heads[1].weight)
    saved = [copy.deepcopy(head._optimizer.state_dict()) for head in heads]
    for head, state in zip(heads, reversed(saved), strict=True):
        head._optimizer.load_state_dict(state)
        head.step(x, targets)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert isinstance(heads[0]._optimizer.param_groups[0]["updates"], int)
    assert heads[1]._optimizer.param_groups[0]["updates"].device == heads[1].weight.device


@every_optimizer
def test_further_parameters_are_refused(make):
    head = fused(make())
    with pytest.raises(ValueError, match="takes no further parameters"):
        head._optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))]})
    assert len(head._optimizer.param_groups) == 1


@every_optimizer
def test_a_head_whose_loss_goes_another_way_is_named_at_the_first_step(make):
    (x, targets), *_ = batches(1)
    with pytest.raises(RuntimeError, match="belongs to no head"):
        make().step()
    head = fused(make())
    head(x).sum().backward()
    with pytest.raises(RuntimeError, match="has a gradient"):
        head._optimizer.step()
    head._optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="no loss of the head went that way"):
        head._optimizer.step()
    head.loss(x, targets).backward()
    head._optimizer.step()
    head._optimizer.step()  # an empty step later on, as at the end of an epoch, is nobody's mistake


def test_state_before_the_head_is_named():
    saved = fused(FusedSGD(0.1, 0.9))._optimizer.state_dict()
    with pytest.raises(ValueError, match="call head.fuse_optimizer before load_state_dict"):
        FusedSGD(0.1, 0.9).load_state_dict(saved)


class Model(torch.nn.Module):
    """An encoder, a head, and the loss of both."""

    def __init__(self, head_optimizer):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = torch.nn.Linear(D, D), make_head()
        if head_optimizer is not None:
            self.head.fuse_optimizer(head_optimizer)

    def forward(self, x, targets):
        return self.head.loss(self.encoder(x), targets)


def chained():
    model = Model(FusedSGD(0.1, 0.9))
    return model, ChainedOptimizer(torch.optim.SGD(model.encoder.parameters(), lr=0.1), model.head._optimizer)


def closure_of(model, optimizer, x, targets):
    def closure():
        optimizer.zero_grad()
        loss = model(x, targets)
        loss.backward()
        return loss

    return closure


def test_a_chain_trains_encoder_and_head_as_one_optimizer_would():
    """By closures, under one scheduler, saved and loaded half-way."""
    plain = Model(None)
    unfused = torch.optim.SGD([{"params": plain.encoder.parameters()}, {"params": plain.head.parameters()}], lr=0.1)
    unfused.param_groups[1]["momentum"] = 0.9
    model, optimizer = chained()
    for number, (x, targets) in enumerate(batches(6)):
        if number == 3:
            saved = pickle.loads(pickle.dumps((model.state_dict()["encoder.weight"], optimizer.state_dict())))
            weights = model.state_dict()
            model, optimizer = chained()
            model.load_state_dict(weights)
            optimizer.load_state_dict(saved[1])
        for one in (optimizer, unfused):
            for group in one.param_groups:
                group["lr"] = 0.1 / (1 + number)
        optimizer.step(closure_of(model, optimizer, x, targets))
        unfused.zero_grad()
        plain(x, targets).backward()
        unfused.step()
    torch.testing.assert_close(model.encoder.weight, plain.encoder.weight)
    torch.testing.assert_close(model.head.weight, plain.head.weight, rtol=1e-5, atol=1e-6)
    assert "momentum_buffer" in optimizer.state[model.head.weight]


def test_misuse_of_a_chain_is_named():
    model, optimizer = chained()
    encoder = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="at least one"):
        ChainedOptimizer()
    with pytest.raises(TypeError, match="got Linear"):
        ChainedOptimizer(model.encoder)
    with pytest.raises(ValueError, match="FusedSGD holds no parameters"):
        ChainedOptimizer(encoder, FusedSGD(0.1))
    with pytest.raises(ValueError, match="several or twice"):
        ChainedOptimizer(encoder, encoder)
    with pytest.raises(ValueError, match="takes no further parameters"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))]})
    with pytest.raises(ValueError, match=r"groups of \[2\] parameters, the optimizers' groups hold \[2, 2\]"):
        optimizer.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize("unscale", [False, True])
def test_a_scaler_and_a_chain(unscale):
    """Encoder and head move as without a scale; after an overflow the encoder rests and the loop goes on."""
    model, _ = chained()
    expected, reference = chained()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = Model(FusedSGD(0.1, 0.9, grad_scaler=scaler))
    optimizer = ChainedOptimizer(torch.optim.SGD(model.encoder.parameters(), lr=0.1), model.head._optimizer)
    for x, targets in batches(2):
        optimizer.zero_grad()
        scaler.scale(model(x, targets)).backward()
        if unscale:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.encoder.parameters(), 1e9)
        scaler.step(optimizer)
        scaler.update()
        reference.zero_grad()
        expected(x, targets).backward()
        reference.step()
    torch.testing.assert_close(model.encoder.weight, expected.encoder.weight)
    torch.testing.assert_close(model.head.weight, expected.head.weight)
    before = model.encoder.weight.detach().clone(), model.head.weight.detach().clone()
    optimizer.zero_grad()
    scaler.scale(model(x * float("inf"), targets)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.encoder.weight, before[0]) and torch.equal(model.head.weight, before[1])
    optimizer.zero_grad()
    scaler.scale(model(x, targets)).backward()
    scaler.step(optimizer)
    assert not torch.equal(model.encoder.weight, before[0])


def test_a_step_that_the_scaler_leaves_out_is_over():
    """Outside a chain too: torch's scaler doesn't call step() after an overflow elsewhere."""
    scaler = torch.amp.GradScaler("cpu")
    head = fused(FusedSGD(0.1, grad_scaler=scaler))
    (x, targets), *_ = batches(1)
    for _ in range(2):
        head._optimizer.zero_grad()
        scaler.scale(head.loss(x, targets)).backward()


def test_accelerate_trains_and_resumes_a_chain(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    data = list(batches(4))
    results = []
    for resume in (False, True):
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer = chained()
        model, wrapped = accelerator.prepare(model, optimizer)
        scheduler = accelerator.prepare(lr_scheduler.StepLR(wrapped, 1, 0.5))
        for number, (x, targets) in enumerate(data):
            if resume and number < 2:
                continue
            if resume and number == 2:
                accelerator.load_state(tmp_path / "state")
            wrapped.zero_grad()
            accelerator.backward(model(x, targets))
            wrapped.step()
            scheduler.step()
            if not resume and number == 1:
                accelerator.save_state(tmp_path / "state")
        results.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_row_sparse_state_keeps_its_dtype_and_rows():
    table = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.bfloat16))
    optimizer = RowSparseAdagrad([table], 0.1)
    table.grad = torch.sparse_coo_tensor([[1]], torch.full((1, 3), 0.3), (4, 3)).to(torch.bfloat16)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    total = optimizer.state[table]["sum"].clone()
    optimizer.load_state_dict(saved)
    assert optimizer.state[table]["sum"].dtype == torch.float32 and torch.equal(optimizer.state[table]["sum"], total)
    with pytest.raises(ValueError, match=r"does not fit a table \[4, 3\]: it holds \{'sum': \[9\]\}"):
        saved["state"][0]["sum"] = torch.zeros(9)
        optimizer.load_state_dict(saved)
