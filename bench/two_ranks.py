"""A head whose labels lie on several GPUs beside the whole head on one: the same numbers, steps that wait for no GPU, times.

Each rank is a process of its own with a GPU of its own, and NCCL between them; without GPUs they are processes that send
through gloo, to try the command.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench import environment
from bench.rows import RowFile
from sparse_xmc.distributed import LabelShardedLinear, checkpoint
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim import FusedSGD

_TOLERANCE = 1e-4  # of the largest number: sums are taken in another order
_SECONDS = 80  # that the ranks may take
_CHECKED = {"in_features": 96, "out_features": 1003, "fan_in": 8}
_TIMED = {"in_features": 768, "out_features": 670_091, "fan_in": 64, "group_size": 32, "dtype": torch.bfloat16}
_ROWS, _POSITIVES = 24, 3


def measure(folder: Path, device: str, *, small: bool) -> int:
    """Appends a row per check and per time; 1 where a check failed."""
    size = torch.cuda.device_count() if device == "cuda" else 2
    row: dict[str, Any] = {"kind": "two_ranks", "provider": "sparse_xmc", "device": device, "ranks": size}
    file, described = RowFile(folder), environment.describe(device)
    if size < 2:
        reason = f"{size} GPU is visible, ranks need one each"
        file.append({**row, "check": "all", "status": "not run", "reason": reason, **described})
        print(f"not run: {reason}")
        return 0
    found = _on_ranks(size, device, small)
    for name, result in found.items():
        file.append({**row, "check": name, **result, **described})
        print(f"{name}: {result['reason'] or result.get('p50_ms', 'ok')}", flush=True)
    return int(any(result["status"] == "error" for result in found.values()))


def _on_ranks(size: int, device: str, small: bool) -> dict[str, dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as shared:
        receiver, sender = context.Pipe(duplex=False)
        started = [
            context.Process(target=_rank, args=(rank, size, device, small, shared, sender), daemon=True)
            for rank in range(size)
        ]
        for process in started:
            process.start()
        sender.close()
        try:
            if receiver.poll(_SECONDS):
                return receiver.recv()
            reason = f"the ranks took longer than {_SECONDS} s"
        except EOFError:
            reason = "the ranks ended without a result"
        finally:
            for process in started:
                process.join(10)
                process.kill()
        return {"all": {"status": "error", "reason": reason}}


def _rank(rank: int, size: int, device: str, small: bool, shared: str, results: Any) -> None:
    place = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{shared}/store", rank=rank, world_size=size)
    found: dict[str, dict[str, Any]] = {}
    try:
        for sharing in ("own", "shared"):
            for loss in ("bce", "cross_entropy"):
                found[f"{sharing} rows, {loss}"] = _checked(_step_like_one, place, sharing, loss)
        found["fused updates, no wait for the device"] = _checked(_fused_without_wait, place)
        found["top-k and rewiring"] = _checked(_topk_and_rewiring, place)
        found["checkpoint"] = _checked(_checkpoint, place, shared)
        found["time of a step"] = _checked(_time, place, small)
    finally:
        if rank == 0:
            results.send(found)
        dist.destroy_process_group()


def _checked(check: Any, *arguments: Any) -> dict[str, Any]:
    """What a check found on the first rank; the others' failures count too."""
    result: dict[str, Any] = {}
    reason = ""
    try:
        result = check(*arguments) or {}
    except Exception:
        reason = traceback.format_exc(limit=-2).strip().replace("\n", " ")[-400:]
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, reason)
    failed = next((f"rank {rank}: {text}" for rank, text in enumerate(said) if text), None)
    return {"status": "error" if failed else "ok", "reason": failed, **result}


def _same(found: Tensor, expected: Tensor, what: str) -> None:
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    if not error <= _TOLERANCE:
        raise AssertionError(f"{what} differs by {float(error):.1e} of its largest number")


def _batch(place: torch.device, labels: int, features: int, rows: int = _ROWS) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, CSR targets, classes of the rows of all ranks: the same on each."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, features, generator=generator).to(place)
    columns = torch.stack([torch.randperm(labels, generator=generator)[:_POSITIVES] for _ in range(rows)])
    offsets = torch.arange(rows + 1) * _POSITIVES
    values = torch.ones(columns.numel())
    targets = torch.sparse_csr_tensor(
        offsets, columns.sort().values.flatten(), values, (rows, labels), check_invariants=False
    )
    return x, targets.to(place), torch.randint(0, labels, (rows,), generator=generator).to(place)


def _own(tensor: Tensor, sharing: str) -> Tensor:
    """This rank's part of the rows, or all of them."""
    if sharing == "shared":
        return tensor
    share = len(tensor) // dist.get_world_size()
    return tensor[dist.get_rank() * share : (dist.get_rank() + 1) * share]


def _targets(matrix: Tensor, sharing: str) -> Any:
    if sharing == "shared":
        return matrix
    crow = matrix.crow_indices()
    share = (len(crow) - 1) // dist.get_world_size()
    first = dist.get_rank() * share
    rows = slice(first * _POSITIVES, (first + share) * _POSITIVES)
    return crow[first : first + share + 1] - first * _POSITIVES, matrix.col_indices()[rows]


def _heads(place: torch.device, **options: Any) -> tuple[FixedFanInLinear, LabelShardedLinear]:
    whole = FixedFanInLinear(**_CHECKED, device=place, seed=3)
    return whole, LabelShardedLinear.from_layer(whole, average_gradients=False, **options)


def _step_like_one(place: torch.device, sharing: str, loss: str) -> None:
    """Loss, gradient of the embeddings and updated weights of two steps."""
    whole, head = _heads(place, rows=sharing)
    x, matrix, classes = _batch(place, whole.out_features, whole.in_features)
    for layer, cut in ((whole, "shared"), (head, sharing)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
        own = _own(x, cut).clone().requires_grad_()
        targets = _own(classes, cut) if loss == "cross_entropy" else _targets(matrix, cut)
        for _ in range(2):
            optimizer.zero_grad()
            value = layer.loss(own, targets, loss=loss)
            value.backward()
            optimizer.step()
        layer.shown = (value.detach(), own.grad)  # type: ignore[assignment]
    for what, found, expected in zip(("loss", "dx"), head.shown, whole.shown, strict=True):  # type: ignore[arg-type]
        _same(found, _own(expected, sharing) if expected.ndim else expected, what)
    for name, tensor in head.to_layer().state_dict().items():
        if name == "indices":
            assert torch.equal(tensor, whole.indices), "indices differ"
        else:
            _same(tensor, whole.state_dict()[name], name)


@contextlib.contextmanager
def _no_wait(place: torch.device) -> Iterator[None]:
    """CUDA raises where the host waits for it."""
    if place.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _fused_without_wait(place: torch.device) -> None:
    for sharing in ("own", "shared"):
        _, head = _heads(place, rows=sharing)
        x, matrix, _ = _batch(place, head.out_features, head.in_features)
        own, targets = _own(x, sharing).requires_grad_(), _targets(matrix, sharing)
        optimizer = FusedSGD(0.1)
        head.shard.fuse_optimizer(optimizer)
        for number in range(3):
            with contextlib.nullcontext() if number == 0 else _no_wait(place):  # the first compares what ranks hold
                head.loss(own, targets).backward()
                optimizer.step()
        assert torch.isfinite(head.shard.weight).all(), "weights are not finite"


def _topk_and_rewiring(place: torch.device) -> None:
    whole, head = _heads(place, rows="own")
    x, _, _ = _batch(place, whole.out_features, whole.in_features)
    scores, labels = head.topk(_own(x, "own"), 5)
    expected, best = whole.topk(x, 5)
    _same(scores, _own(expected, "own"), "top-k scores")
    assert torch.equal(labels, _own(best, "own")), "top-k labels differ"
    assert int(head.rewire_(fraction=0.25, seed=5)) == int(whole.rewire_(fraction=0.25, seed=5)), "other slots rewired"
    assert torch.equal(head.to_layer().indices, whole.indices), "indices differ after rewiring"


def _checkpoint(place: torch.device, folder: str) -> None:
    _, head = _heads(place)
    optimizers = {"all": torch.optim.AdamW(head.parameters())}
    head.shard.weight.grad = torch.ones_like(head.shard.weight)
    optimizers["all"].step()
    checkpoint.save(f"{folder}/checkpoint", head, optimizers, {"step": 1})
    other = LabelShardedLinear(**_CHECKED, device=place, seed=9)
    restored = {"all": torch.optim.AdamW(other.parameters())}
    assert checkpoint.load(f"{folder}/checkpoint", other, restored)["step"] == 1
    for name, tensor in head.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), f"{name} differs after loading"
    moments = [o["all"].state[h.shard.weight]["exp_avg"] for o, h in ((optimizers, head), (restored, other))]
    assert torch.equal(*moments), "momentum differs after loading"


def _time(place: torch.device, small: bool) -> dict[str, Any]:
    """Milliseconds of a fused step, of the first rank and of the whole head on its device alone."""
    sizes: dict[str, Any] = _CHECKED if small else _TIMED
    rows = _ROWS if small else 128
    x, matrix, _ = _batch(place, sizes["out_features"], sizes["in_features"], rows)
    x = x.to(sizes.get("dtype", torch.float32)).requires_grad_()
    found: dict[str, Any] = {"L": sizes["out_features"], "K": sizes["fan_in"], "B": rows}
    for name, made in (("p50_ms", LabelShardedLinear), ("alone_ms", FixedFanInLinear)):
        options = {"rows": "shared"} if made is LabelShardedLinear else {}
        layer: nn.Module = made(**sizes, **options, device=place, seed=0)  # type: ignore[arg-type]
        optimizer = FusedSGD(0.1)
        getattr(layer, "shard", layer).fuse_optimizer(optimizer)
        times = []
        for _ in range(5 if small else 30):
            _wait(place)
            dist.barrier()
            began = time.perf_counter()
            layer.loss(x, matrix).backward()  # type: ignore[operator]
            optimizer.step()
            _wait(place)
            times.append(1e3 * (time.perf_counter() - began))
        found[name] = statistics.median(times)
    return found


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)
