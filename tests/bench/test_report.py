"""A speed-up exists only between checked results of equal work; figures and tables come from rows alone."""

import itertools

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from matplotlib import pyplot

from bench import figure_style as look
from bench import first_screen, plotting
from bench.plotting import plot_folder
from bench.providers import providers
from bench.report import IncomparableRows, speedup, write_table
from bench.roofline_figure import roofline
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
        for provider, cost in (("sparse_xmc_fused", 1.0), ("dense", 20.0), ("torch_csr", 5.0)):
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
        "headline.png", "providers.png", "step_time_vs_labels.png", "step_peak_memory_vs_labels.png", "roofline.png",
        "forward_time_vs_labels.png", "full_time_vs_labels.png", "full_time_vs_fan_in.png",
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
    assert len({look.style(name)["color"] for name in providers()}) == len(providers())


def _seen_without_green(colour: str) -> np.ndarray:
    """Linear RGB as a deuteranope sees it (Machado, Oliveira and Fernandes 2009, severity 1)."""
    matrix = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    return matrix @ np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2


def test_lines_of_the_headline_differ_for_the_colour_blind_too() -> None:
    names = (first_screen.OWN, *first_screen.BASELINES)
    for a, b in itertools.combinations(names, 2):
        one, two = look.style(a), look.style(b)
        assert np.abs(_seen_without_green(one["color"]) - _seen_without_green(two["color"])).max() > 0.1, (a, b)
        assert one["marker"] != two["marker"], (a, b)


def _words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_lines_join_points_of_one_run_and_are_named_beside() -> None:
    rows = [_row("sparse_xmc", L / 1000, "full", L) for L in (1000, 2000, 4000)]
    rows += [_row("sparse_xmc", 99.0, "full", 3000, run="other"), _row("torch_csr", 1.0, "full")]
    figure = plotting.along(plotting.frame(rows), "time", "full", "L")
    axes = figure.axes[0]
    line, alone = axes.lines
    assert list(line.get_xdata()) == [1000, 2000, 4000]
    assert list(alone.get_xdata()) == [3000] and alone.get_linestyle() == "None"
    assert _words(axes) == ["sparse_xmc"]  # of a single point there is no line
    pyplot.close(figure)


def test_what_does_not_fit_is_said() -> None:
    rows = [_row("dense", 1.0, "step", L) for L in (1000, 2000)]
    rows += [_row("dense", 1.0, "step", 4000) | {"status": "oom", "reason": "predicted"}]
    figure = plotting.along(plotting.frame(rows), "time", "step", "L")
    assert _words(figure.axes[0]) == ["nn.Linear, 4k: does not fit"]
    pyplot.close(figure)


def _step(provider: str, cost: float, L: int, run: str) -> list[dict[str, object]]:
    row = _row(provider, cost * L, "step", L, run=run)
    return [row, row | {"kind": "memory", "peak_bytes": int(cost * L * 1000), "persistent_bytes": 0}]


def test_the_headline_is_of_one_run_and_says_the_gain() -> None:
    rows = []
    for run, cost in (("a", 20.0), ("b", 40.0)):
        for L in (1000, 2000, 4000):
            rows += [*_step("dense", cost, L, run), *_step("sparse_xmc_fused", 1.0, L, run)]
    rows += [*_step("dense", 90.0, 4000, "c"), *_step("sparse_xmc_fused", 1.0, 4000, "c")]  # newer, of one size only
    figure = plotting.headline(plotting.frame(rows))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Memory of a training step: 40x smaller", "Time of a training step: 40x faster"]
    pyplot.close(figure)


def test_roofline_shows_one_run_under_its_own_limits() -> None:
    rows = [_roof("old", 1e9), *(_row(name, 1.0, run="old") for name in ("sparse_xmc", "dense", "torch_csr"))]
    rows += [_roof("new", 1e12), _row("sparse_xmc", 1.0, run="new")]
    figure = roofline(plotting.frame(rows))
    assert any("copying (1 GB/s)" in text.get_text() for text in figure.texts)
    words = _words(figure.axes[0])
    assert len(words) == 3 and all(word.endswith(" 10%") for word in words)  # 1e9 FLOP/s of 10 FLOP/byte * 1e9 byte/s
    pyplot.close(figure)


def test_names_beside_do_not_cover_each_other() -> None:
    places = look.spread([0.5, 0.5, 0.51, 0.9, 0.99], 0.1)
    assert np.diff(places).min() >= 0.1 - 1e-9 and places[0] >= 0 and places[-1] <= 1
    assert np.mean(places[:3]) == pytest.approx(np.mean([0.5, 0.5, 0.51]), abs=0.02)
    assert look.spread([0.2, 0.8], 0.1) == [0.2, 0.8]


def test_names_near_points_cover_no_point() -> None:
    figure, axes = look.canvas(4.0)
    points = [(x / 10, 0.5) for x in range(11)]
    axes[0, 0].plot(*zip(*points, strict=True), "o")
    look.near(axes[0, 0], [look.Named(0.5, 0.5, "here", "#000000")], points)
    (text,) = axes[0, 0].texts
    box = text.get_window_extent()
    for x, y in axes[0, 0].transData.transform(points):
        assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1)
    pyplot.close(figure)
