"""Topology statistics against direct counts."""

import pytest
import torch

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.topology.statistics import TopologyObserver, feature_usage, magnitudes, plot_topology


@pytest.mark.parametrize("watched", [5, 1000])
def test_statistics_equal_direct_counts(watched):
    layer = FixedFanInLinear(20, 33, 6, seed=0)
    observer = TopologyObserver(layer, watched_rows=watched)
    seen = [{int(i) for i in row} for row in layer.indices[observer.rows].long()]
    rewired = 0
    for seed in range(5):
        count = layer.rewire_(fraction=0.4, seed=seed, init="uniform")
        observer.record(count)
        rewired += int(count)
        for held, row in zip(seen, layer.indices[observer.rows].long(), strict=True):
            held.update(row.tolist())
    found = observer.statistics()
    assert found.share_rewired == rewired / (33 * 6)
    assert found.exploration == pytest.approx(sum(map(len, seen)) / (len(seen) * 20))
    assert torch.equal(found.feature_usage, torch.bincount(layer.indices.long().flatten(), minlength=20))
    assert observer.statistics().share_rewired == 0


def test_blocks_do_not_matter():
    layer = FixedFanInLinear(20, 33, 6, seed=0)
    assert torch.equal(feature_usage(layer, block=7), feature_usage(layer))
    assert torch.equal(magnitudes(layer.weight, block=7), magnitudes(layer.weight))


def test_octaves():
    counts = magnitudes(torch.tensor([[0.0, 1.0, -1.5], [2.0, 1e-30, 1e30]]))
    assert counts[0] == 2 and counts[40] == 2 and counts[41] == 1 and counts[63] == 1 and counts.sum() == 6


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    observer = TopologyObserver(FixedFanInLinear(20, 33, 6, seed=0))
    plot_topology(str(tmp_path / "topology.png"), [observer.statistics().row()] * 2)
    assert (tmp_path / "topology.png").stat().st_size > 1000
