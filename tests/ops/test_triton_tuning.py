"""Choice of configurations: the default is a pure function, a search happens once per bucket and is remembered."""

import itertools
import json
import multiprocessing
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

import triton

from sparse_xmc.ops.triton_kernels import _tuning_store, linear, linear_gather, linear_group, tuning
from sparse_xmc.ops.triton_kernels.tuning import Shape, bucket, suitable
from tests.conftest import INTERPRETING

KERNELS = {
    f"{module.__name__.rsplit('_', 1)[1]}-{name}": getattr(module, f"{name}_kernel")
    for module in (linear_gather, linear_group)
    for name in ("forward", "backward_input", "backward_weight")
}
compiled_only = pytest.mark.skipif(INTERPRETING, reason="the interpreter never searches")


def shape(B: int = 128, L: int = 670_091, D: int = 768, K: int = 32, G: int = 1, itemsize: int = 2) -> Shape:
    return Shape.of(bucket(B, L, D), K, G, itemsize)


@pytest.mark.parametrize("name", KERNELS)
def test_every_shape_has_a_suitable_configuration(name: str) -> None:
    kernel = KERNELS[name]
    assert len({str(c) for c in kernel.configs}) == len(kernel.configs) <= 16
    for B, K, itemsize in itertools.product((1, 17, 64, 100, 129, 5000), (1, 24, 64, 512), (2, 4, 8)):
        problem = shape(B=B, K=K, itemsize=itemsize)
        first = suitable(kernel.configs, kernel.suits, problem)[0].kwargs
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
    ],
)
def test_default_configuration(name: str, problem: dict[str, int], expected: dict[str, int]) -> None:
    kernel = KERNELS[name]
    assert expected.items() <= suitable(kernel.configs, kernel.suits, shape(**problem))[0].kwargs.items()


def test_bucket_is_shared_by_batches_of_the_same_power_of_two() -> None:
    assert bucket(100, 670_091, 768) == bucket(128, 700_000, 1024) != bucket(129, 670_091, 768)
    assert Shape.of(bucket(100, 670_091, 768), 32, 1, 2) == Shape(128, 1 << 20, 1024, 32, 1, 2)


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

    def __init__(self, milliseconds: dict[int, float]):
        self.milliseconds = milliseconds
        self.launched: list[dict[str, object]] = []
        self.timed = 0

    def run(self, function: object, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
        self.launched.append(kwargs)

    def do_bench(self, call, warmup: int, rep: int, quantiles: tuple[float, ...]) -> list[float]:
        self.timed += 1
        call()
        time = self.milliseconds.get(self.launched[-1]["BLOCK_B"], 9.0)
        if time == float("inf"):
            raise triton.runtime.errors.OutOfResources(300_000, 232_448, "shared memory")
        return [time] * len(quantiles)

    def forward(self, B: int, L: int = 1000, G: int = 1) -> dict[str, object]:
        x, weight = torch.empty(B, 256, device="meta"), torch.empty(L, 32, device="meta")
        indices = torch.empty(triton.cdiv(L, G), 32, dtype=torch.uint16, device="meta")
        linear.forward(x, weight, indices, None, G)
        return self.launched[-1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("SPARSE_XMC_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SPARSE_XMC_AUTOTUNE", "quick")
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
    kernel = linear_gather.forward_kernel
    assert (
        default["BLOCK_B"]
        == suitable(kernel.configs, kernel.suits, shape(L=1000, D=256, itemsize=4))[0].kwargs["BLOCK_B"]
    )
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
    with mock.patch.object(torch.Tensor, "zero_", zeroed):
        with tuning.forced("off"):
            linear.backward_input(dy, weight, indices, 768, 1, False)
        assert zeroed.call_count == 0
        linear.backward_input(dy, weight, indices, 768, 1, False)
    assert zeroed.call_count == gpu.timed + 1, "before each run of the search and after it"
