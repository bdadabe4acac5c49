"""A speed-up exists only between checked results of equal work; figures and tables come from rows alone."""

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from matplotlib import pyplot

from bench import plotting
from bench.plotting import plot_folder
from bench.providers import providers
from bench.report import IncomparableRows, speedup, write_table
from bench.rows import RowFile

WORK = {"forward": ["y"], "full": ["dw", "dx", "y"], "step": ["dx", "loss", "weight"]}


def _row(provider: str, milliseconds: float, mode: str = "full", L: int = 1000, **more):
    environment = {
        "commit": "c0ffee00",
        "dirty": False,
        "cpu": "a CPU",
        "cores": 2,
        "torch": "2",
        "command": "bench run",
    }
    return {
        "kind": "time", "run": "r", "provider": provider, "mode": mode, "L": L, "D": 64, "K": 8, "G": 1, "B": 8,
        "dtype": "float32", "device": "cpu", "status": "ok", "reason": None, "checked": True, "work": WORK[mode],
        "p20_ms": 0.9 * milliseconds, "p50_ms": milliseconds, "p80_ms": 1.2 * milliseconds, "samples": 5,
        "flops": 10**6, "floor_bytes": 10**5, "persistent_bytes": 10**5, **environment, **more,
    }  # fmt: skip


def test_speedup() -> None:
    assert speedup(_row("sparse_xmc", 2.0), _row("dense", 20.0)) == pytest.approx(10.0)


@pytest.mark.parametrize(
    "difference",
    [
        {"checked": False},
        {"checked": None},
        {"status": "error"},
        {"work": ["dx", "y"]},
        {"mode": "forward", "work": ["y"]},
        {"L": 999},
        {"dtype": "bfloat16"},
        {"run": "another day"},
    ],
)
def test_no_speedup_for_wrong_or_unequal_work(difference) -> None:
    with pytest.raises(IncomparableRows):
        speedup(_row("sparse_xmc", 2.0) | difference, _row("dense", 20.0))
    with pytest.raises(IncomparableRows):
        speedup(_row("sparse_xmc", 2.0), _row("dense", 20.0) | difference)


def test_no_speedup_when_both_did_less() -> None:
    lazy = {"work": ["y"]}
    with pytest.raises(IncomparableRows, match="whole work"):
        speedup(_row("sparse_xmc", 2.0) | lazy, _row("dense", 20.0) | lazy)


def test_figures_and_tables_from_rows(tmp_path) -> None:
    file = RowFile(tmp_path)
    for L in (1000, 2000, 4000):
        for provider, cost in (("sparse_xmc", 1.0), ("dense", 20.0), ("torch_csr", 5.0)):
            for mode in WORK:
                file.append(_row(provider, cost * L / 1000, mode, L))
            lost = provider == "dense" and L == 4000
            memory = {"kind": "memory", "peak_bytes": int(cost) * L * 400, "status": "oom" if lost else "ok"}
            file.append(_row(provider, 1.0, "step", L) | memory | ({"reason": "predicted: too large"} if lost else {}))
    for K in (4, 8, 16):
        file.append(_row("sparse_xmc", float(K)) | {"K": K})
    file.append(_row("roof", 1.0, "forward") | {"kind": "roof", "bandwidth": 1e10, "rate": 1e11})
    names = {path.name for path in plot_folder(tmp_path)}
    assert names == {
        "headline.png", "step_time_vs_labels.png", "peak_memory_vs_labels.png", "throughput_vs_labels.png",
        "time_vs_fan_in.png", "roofline.png",
    }  # fmt: skip
    text = write_table(tmp_path).read_text()
    assert "20.0x" in text and "oom: predicted: too large" in text and "c0ffee00" in text and "`bench run`" in text


def _roof(run: str, bandwidth: float) -> dict[str, object]:
    return _row("roof", 1.0, "forward", run=run) | {"kind": "roof", "bandwidth": bandwidth, "rate": 1e12}


def test_share_of_the_limit_is_that_of_the_same_run(tmp_path) -> None:
    file = RowFile(tmp_path)
    file.append(_roof("first", 1e8))
    file.append(_row("sparse_xmc", 2.0, run="first"))  # 1 ms at the limit
    file.append(_roof("second", 1e9))
    file.append(_row("dense", 1.0, run="second"))  # 0.1 ms at the limit
    file.append(_row("torch_csr", 1.0, run="no limits measured"))
    shares = {}
    for line in write_table(tmp_path).read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 14 and cells[1] == "1,000":
            shares[cells[7]] = cells[11]
    assert shares == {"sparse_xmc": "50 %", "nn.Linear": "10 %", "torch.sparse CSR": ""}


def test_table_shows_the_group_size_that_a_provider_has_of_its_own(tmp_path) -> None:
    RowFile(tmp_path).append(_row("sparse_xmc_group32", 2.0))
    assert "| 1,000 | 64 | 8 | 32 | 8 | float32 | sparse_xmc G=32 |" in write_table(tmp_path).read_text()


def test_every_provider_has_a_colour_of_its_own() -> None:
    assert len({plotting._style(name)["color"] for name in providers()}) == len(providers())


def test_lines_join_points_of_one_run_and_the_legend_names_every_panel() -> None:
    rows = [_row("sparse_xmc", L / 1000, "full", L) for L in (1000, 2000, 4000)]
    rows += [_row("sparse_xmc", 99.0, "full", 3000, run="other"), _row("sparse_xmc", 1.0, "forward")]
    rows += [_row(name, 1.0, "forward", L) for name, L in (("scipy_csr", 1000), ("sparse_xmc", 2000))]
    figure = plotting.throughput(plotting._frame(rows))
    forward, full = figure.axes
    line, alone = (drawn for drawn in full.lines if len(drawn.get_xdata()))
    assert list(line.get_xdata()) == [1000, 2000, 4000]
    assert list(alone.get_xdata()) == [3000] and alone.get_linestyle() == "None"
    named = {text.get_text() for text in full.get_legend().get_texts()}
    assert named == {"sparse_xmc", "SciPy CSR", "hollow: another run than the line's"}
    pyplot.close(figure)


def test_roofline_shows_one_run_under_its_own_limits() -> None:
    rows = [_roof("old", 1e9), *(_row(name, 1.0, run="old") for name in ("sparse_xmc", "dense", "torch_csr"))]
    rows += [_roof("new", 1e12), _row("sparse_xmc", 1.0, run="new")]
    figure = plotting.roofline(plotting._frame(rows))
    assert "copy 1.0 GB/s" in {text.get_text() for text in figure.axes[0].texts}
    pyplot.close(figure)
