"""Choice of configurations: the default is a pure function, a search happens once per bucket and is remembered."""

import itertools
import json
import multiprocessing
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

import triton

from sparse_xmc.ops._contract import Layer, Objective, Positives, Rewiring, Scaling
from sparse_xmc.ops.triton_kernels import (
    _tuning_store,
    head_plan,
    head_search,
    head_tiling,
    input_gradient,
    linear,
    linear_gather,
    linear_group,
    loss,
    prune_regrow,
    topk,
    topk_by_tiles,
    tuning,
)
from sparse_xmc.ops.triton_kernels.tuning import Shape, suitable
from sparse_xmc.ops.update import Update
from tests.conftest import INTERPRETING

KERNELS = {
    f"{module.__name__.rsplit('_', 1)[1]}-{name.lower()}": getattr(module, name)
    for module in (linear_gather, linear_group)
    for name in ("FORWARD", "BACKWARD_INPUT", "BACKWARD_WEIGHT")
} | {"topk-maxima": topk_by_tiles.TILE_MAXIMA}
compiled_only = pytest.mark.skipif(INTERPRETING, reason="the interpreter never searches")


def shape(B: int = 128, L: int = 670_091, D: int = 768, K: int = 32, G: int = 1, itemsize: int = 2) -> Shape:
    return Shape.of(B, L, D, K, G, itemsize)


@pytest.mark.parametrize("name", KERNELS)
def test_every_shape_has_a_suitable_configuration(name: str) -> None:
    kernel = KERNELS[name]
    assert len({str(c) for c in kernel.configs}) == len(kernel.configs) <= 24
    for B, K, itemsize in itertools.product((1, 17, 64, 100, 129, 5000), (1, 24, 64, 512), (2, 4, 8)):
        problem = shape(B=B, K=K, itemsize=itemsize)
        first = suitable(kernel.configs, kernel.suits, problem)[0]
        assert kernel.suits(first, problem), f"none suits {problem}"
        assert first["BLOCK_B"] <= problem.B, f"a tile wider than the batch of {problem}"


@pytest.mark.parametrize(
    ("name", "problem", "expected"),
    [
        ("gather-forward", {}, {"BLOCK_L": 32, "BLOCK_B": 64}),
        ("gather-forward", {"D": 256}, {"BLOCK_L": 32, "BLOCK_B": 128}),
        ("gather-forward", {"D": 4096}, {"BLOCK_L": 64, "BLOCK_B": 32}),
        ("gather-forward", {"B": 1}, {"BLOCK_L": 64, "BLOCK_B": 16}),
        ("gather-backward_weight", {}, {"BLOCK_L": 32, "BLOCK_B": 64}),
        ("group-forward", {"K": 64, "G": 32}, {"BLOCK_B": 128, "BLOCK_K": 64}),
        ("group-forward", {"K": 64, "G": 32, "itemsize": 4}, {"BLOCK_B": 64, "BLOCK_K": 32}),
        ("group-backward_input", {"B": 64, "K": 64, "G": 32}, {"BLOCK_B": 64, "BLOCK_K": 64}),
        ("topk-maxima", {"K": 64, "G": 32}, {"BLOCK_B": 128, "BLOCK_K": 64, "num_warps": 4}),
        ("topk-maxima", {"B": 17, "K": 24, "G": 32, "itemsize": 4}, {"BLOCK_B": 32, "BLOCK_K": 32}),
    ],
)
def test_default_configuration(name: str, problem: dict[str, int], expected: dict[str, int]) -> None:
    kernel = KERNELS[name]
    assert expected.items() <= suitable(kernel.configs, kernel.suits, shape(**problem))[0].items()


def test_batches_of_the_same_power_of_two_share_a_shape() -> None:
    assert shape(B=100) == shape(L=700_000, D=1024) == Shape(128, 1 << 20, 1024, 32, 1, 2) != shape(B=129)


def test_head_tries_its_first_guess_first_and_what_fits() -> None:
    for K, G, dtype in itertools.product((1, 32, 64, 300), (1, 32), (torch.bfloat16, torch.float32)):
        for B in (1, 64, 1000):
            first = head_tiling.tiling(B, 10_000, K, G, dtype)
            tried = head_tiling.alternatives(first)
            assert tried[0] == first and len(set(tried)) == len(tried) <= tuning.QUICK_CONFIGS
            assert all(tiles.block_b <= 2 * first.block_b for tiles in tried)


def test_mode_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_XMC_AUTOTUNE", "sometimes")
    if not INTERPRETING:
        with pytest.raises(ValueError, match="SPARSE_XMC_AUTOTUNE.*'sometimes'"):
            tuning.mode()
    with pytest.raises(ValueError, match="fastest"), tuning.forced("fastest"):
        pass


@pytest.mark.skipif(not INTERPRETING, reason="needs the interpreter")
def test_interpreter_never_searches() -> None:
    with tuning.forced("full"):
        assert tuning.mode() == "off"


class Gpu:
    """A GPU that runs nothing: launches are noted, times are invented."""

    def __init__(self, milliseconds: dict[object, float], by: str = "BLOCK_B"):
        self.milliseconds, self.by = milliseconds, by
        self.launched: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
        self.timed = 0

    def run(self, kernel: object, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
        self.launched.append((kernel.__name__, args, kwargs))

    def do_bench(self, call, warmup: int, rep: int, quantiles: tuple[float, ...]) -> float:
        self.timed += 1
        before = len(self.launched)
        call()
        values = [kwargs[self.by] for _, _, kwargs in self.launched[before:] if self.by in kwargs]
        time = self.milliseconds.get(values[-1], 9.0)
        if time == float("inf"):
            raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        return time

    def last(self, kernel: str) -> dict[str, object]:
        return next(kwargs for name, _, kwargs in reversed(self.launched) if name == kernel)

    def forward(self, B: int, L: int = 1000, G: int = 1) -> dict[str, object]:
        x, weight = torch.empty(B, 256, device="meta"), torch.empty(L, 32, device="meta")
        indices = torch.empty(triton.cdiv(L, G), 32, dtype=torch.uint16, device="meta")
        linear.forward(x, weight, indices, None, G)
        return self.last("forward_kernel")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("SPARSE_XMC_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("SPARSE_XMC_AUTOTUNE", "quick")
    monkeypatch.setattr(_tuning_store, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU/1")
    fake = Gpu({128: 3.0, 64: 1.0, 32: 2.0})
    monkeypatch.setattr(triton.testing, "do_bench", fake.do_bench)
    tuning.forget()
    with mock.patch.object(triton.runtime.JITFunction, "run", lambda self, *a, **k: fake.run(self, *a, **k)):
        yield fake
    tuning.forget()


@compiled_only
def test_search_happens_once_per_bucket_and_survives_the_process(gpu: Gpu) -> None:
    assert gpu.forward(128)["BLOCK_B"] == 64
    searched = gpu.timed
    assert 1 < searched <= tuning.QUICK_CONFIGS
    assert gpu.forward(128)["BLOCK_B"] == gpu.forward(100)["BLOCK_B"] == 64
    assert gpu.timed == searched, "a batch of the same bucket searched again"
    gpu.forward(300)
    assert gpu.timed > searched, "another bucket did not search"

    searched = gpu.timed
    tuning.forget()  # as a new process would be
    assert gpu.forward(128)["BLOCK_B"] == 64
    assert gpu.timed == searched
    entries = json.loads(_tuning_store.path("Test GPU/1").read_text())
    assert {entry["mode"] for entry in entries.values()} == {"quick"}
    assert all(triton.__version__ in key and "linear_gather.forward_kernel" in key for key in entries)


@compiled_only
@pytest.mark.parametrize("G", [1, 32])
def test_label_counts_of_a_bucket_share_a_winner_on_disk(gpu: Gpu, G: int) -> None:
    gpu.forward(128, L=1000, G=G)
    searched = gpu.timed
    tuning.forget()  # as a new process would be
    gpu.forward(128, L=960, G=G)
    assert gpu.timed == searched > 1


@compiled_only
def test_off_takes_the_default_and_full_searches_again(gpu: Gpu) -> None:
    gpu.forward(128)
    searched = gpu.timed
    with tuning.forced("off"):
        default = gpu.forward(128)
    kernel = linear_gather.FORWARD
    assert default["BLOCK_B"] == suitable(kernel.configs, kernel.suits, shape(L=1000, D=256, itemsize=4))[0]["BLOCK_B"]
    assert gpu.timed == searched
    with tuning.forced("full"):
        gpu.forward(128)
    assert gpu.timed >= 2 * searched
    assert gpu.forward(128)["BLOCK_B"] == 64


@compiled_only
def test_configuration_that_does_not_fit_is_passed_over(gpu: Gpu) -> None:
    gpu.milliseconds = {64: float("inf"), 32: 2.0, 128: 3.0}
    assert gpu.forward(128)["BLOCK_B"] == 32


@compiled_only
def test_broken_or_read_only_cache_costs_no_run(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    _tuning_store.directory().mkdir()
    _tuning_store.path("Test GPU/1").write_text("{broken")
    assert gpu.forward(128)["BLOCK_B"] == 64
    monkeypatch.setenv("SPARSE_XMC_CACHE_DIR", str(_tuning_store.path("Test GPU/1") / "a file is no folder"))
    tuning.forget()
    assert gpu.forward(128)["BLOCK_B"] == 64


def _write_entries(folder: str, writer: int) -> None:
    with mock.patch.dict("os.environ", {"SPARSE_XMC_CACHE_DIR": folder}):
        for number in range(20):
            _tuning_store.write("Test GPU", f"{writer}-{number}", {"ms": number})


def test_concurrent_writers_lose_nothing(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_entries, args=(str(tmp_path), n)) for n in range(3)]
    try:
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0, 0, 0], "None: it hangs"
    finally:
        for writer in writers:
            if writer.pid is not None:
                writer.kill()
    entries = json.loads((tmp_path / "Test_GPU.json").read_text())
    assert len(entries) == 60


def test_failed_write_leaves_no_file_behind(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_XMC_CACHE_DIR", str(tmp_path))
    with mock.patch("os.replace", side_effect=OSError("no space left on device")):
        _tuning_store.write("Test GPU", "key", {"ms": 1.0})
    assert [file.name for file in tmp_path.iterdir()] == ["Test_GPU.lock"]
    _tuning_store.read.cache_clear()


@compiled_only
def test_scratch_is_zeroed_by_a_search_only(gpu: Gpu) -> None:
    dy, weight = torch.empty(128, 1000, device="meta"), torch.empty(1000, 32, device="meta")
    indices = torch.empty(1000, 32, dtype=torch.uint16, device="meta")
    zeroed = mock.Mock()
    with mock.patch.object(torch.Tensor, "zero_", zeroed), input_gradient.forced("atomic"):
        with tuning.forced("off"):
            linear.backward_input(dy, weight, indices, 768, 1, False)
        assert zeroed.call_count == 0
        linear.backward_input(dy, weight, indices, 768, 1, False)
    assert zeroed.call_count == gpu.timed + 1, "before each run of the search and after it"


@compiled_only
def test_shipped_winners_count_where_nothing_was_searched(gpu: Gpu) -> None:
    """A table that ``bench tune`` wrote on one machine is what another one starts from; its own searches come before it."""
    assert gpu.forward(128)["BLOCK_B"] == 64
    _tuning_store.SHIPPED.mkdir()
    _tuning_store.path("Test GPU/1").rename(_tuning_store.SHIPPED / _tuning_store.file_name("Test GPU/1"))
    gpu.milliseconds, searched = {32: 1.0}, gpu.timed
    tuning.forget()  # as a new process would be
    assert gpu.forward(128)["BLOCK_B"] == 64 and gpu.timed == searched
    with tuning.forced("full"):  # the table's entry is of a quick search
        assert gpu.forward(128)["BLOCK_B"] == 32 and gpu.timed > searched
    assert gpu.forward(128)["BLOCK_B"] == 32


@compiled_only
def test_a_winner_that_is_no_candidate_any_more_is_searched_anew(gpu: Gpu) -> None:
    gpu.forward(128)
    file = _tuning_store.path("Test GPU/1")
    entries = json.loads(file.read_text())
    for entry in entries.values():
        entry["config"]["BLOCK_B"] = 4096
    file.write_text(json.dumps(entries))
    searched = gpu.timed
    tuning.forget()
    assert gpu.forward(128)["BLOCK_B"] == 64 and gpu.timed > searched


def head_problem(L: int = 5000, K: int = 32, G: int = 32):
    x = torch.empty(128, 256, dtype=torch.bfloat16, device="meta")
    weight, bias = torch.empty(L, K, dtype=x.dtype, device="meta"), torch.empty(L, dtype=x.dtype, device="meta")
    indices = torch.empty(-(-L // G), K, dtype=torch.uint16, device="meta")
    positives = (torch.empty(640, dtype=d, device="meta") for d in (torch.int64, torch.int32))
    return x, Layer(weight, indices, bias, G), Positives(*positives, 128, L)


def head_step(problem, update: Update = Update(lr=0.1)) -> None:  # noqa: B008
    loss.loss_step_(*problem, Objective(), Scaling(), update, need_loss=True, need_x=True)


@compiled_only
def test_the_head_is_searched_on_copies(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither parameters nor state of the call are touched by a search; what is chosen then runs on them once."""
    monkeypatch.setattr(head_search, "LABELS", 1024)
    problem = head_problem()
    weight, bias = problem[1].weight, problem[1].bias
    update = Update(torch.empty_like(weight), torch.empty(5000, device="meta"), torch.empty_like(bias), None, lr=0.1)
    head_step(problem, update)
    heads = [args for name, args, _ in gpu.launched if name == "fused_head"]
    assert len(heads) == gpu.timed + 1 > 3
    live = {id(tensor) for tensor in (weight, bias, update.momentum_buffer, update.second_moment)}
    assert not any(id(argument) in live for args in heads[:-1] for argument in args)
    assert {id(argument) for argument in heads[-1]} >= live
    assert all(args[1].shape[0] == 1024 for args in heads[:-1])
    assert gpu.last("fused_head")["BLOCK_B"] == 64

    searched = gpu.timed
    head_step(problem, update)
    tuning.forget()  # as a new process would be
    head_step(problem, update)
    assert gpu.timed == searched and "head_kernel.fused_head" in next(iter(_tuning_store.read("Test GPU/1")))


@compiled_only
@pytest.mark.parametrize(("fast", "way"), [("atomic", "atomic"), ("dense", "dense")])
def test_the_way_of_the_input_gradient_is_searched_too(gpu: Gpu, fast: str, way: str) -> None:
    gpu.by, gpu.milliseconds = "DX", {fast: 1.0}
    head_step(head_problem(G=1))
    assert gpu.last("fused_head")["DX"] == way


@compiled_only
def test_nothing_is_searched_while_a_graph_is_captured(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first guess is taken, and the next call outside searches."""
    candidates = [{"BLOCK_B": 128}, {"BLOCK_B": 64}]
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    def attempt(config):
        return lambda: gpu.launched.append(("kernel", (), config))

    assert tuning.fastest(cuda, lambda: "key", candidates, attempt) == (candidates[0], False)
    assert gpu.timed == 0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning.fastest(cuda, lambda: "key", candidates, attempt) == (candidates[1], True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuning.fastest(cuda, lambda: "key", candidates, attempt) == (candidates[1], True), (
        "what is known needs no search"
    )


@compiled_only
def test_rewiring_is_searched_on_copies(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_regrow, "SEARCHED_ROWS", 100)
    gpu.by, gpu.milliseconds = "num_warps", {8: 1.0}
    weight, state = torch.empty(1000, 32, device="meta"), torch.empty(1000, 32, device="meta")
    indices = torch.empty(500, 32, dtype=torch.uint16, device="meta")
    prune_regrow.rewire_(weight, indices, [state], [], Rewiring(256, 2, False, 1, fixed=3))
    launched = [args for name, args, _ in gpu.launched if name == "rewire_kernel"]
    assert len(launched) == gpu.timed + 1 > 2
    assert all(args[2] is not weight and args[2].shape[0] == 200 and args[3].shape[0] == 100 for args in launched[:-1])
    assert all(args[0][0] is not state for args in launched[:-1])
    assert launched[-1][2] is weight and launched[-1][0][0] is state and gpu.last("rewire_kernel")["num_warps"] == 8


@compiled_only
@pytest.mark.parametrize(("G", "kernel"), [(1, "_topk"), (32, "tile_maxima_kernel")])
def test_top_k_is_searched(gpu: Gpu, G: int, kernel: str) -> None:
    gpu.by, gpu.milliseconds = "num_warps", {8: 1.0}
    x, layer, _ = head_problem(G=G)
    arguments = (x, *layer[:3], 5, G, None, None)
    topk.topk(*arguments)
    assert gpu.timed > 2 and gpu.last(kernel)["num_warps"] == 8
    searched = gpu.timed
    topk.topk(*arguments)
    assert gpu.timed == searched


@compiled_only
def test_no_part_of_the_labels_has_more_programs_than_tiles() -> None:
    """A program without a tile would look for positives behind the last bucket."""
    x, layer, positives = head_problem(L=670_091, G=1)
    call = head_plan.Call(x, layer, positives, Objective(), Scaling(), head_plan.Wanted(loss=True, x=True), Update())
    for way in ("atomic", "rows", "dense", "private"):
        plan = head_plan.make(call, way, head_plan.first_tiling(call, way))
        assert all(part.launch.grid[0] <= part.tiles[1] - part.tiles[0] for part in plan.parts), way
        assert [part.first for part in plan.parts[1:]] == [part.last for part in plan.parts[:-1]]
        assert plan.parts[-1].last == 670_091 and (len(plan.parts) > 1) == (way in ("rows", "dense"))
