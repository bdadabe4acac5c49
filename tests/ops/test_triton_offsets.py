"""Triton kernels of the linear layer where L * K, B * L, R * K or D * B pass 2^31."""

import pytest
import torch

from tests.conftest import INTERPRETING
from tests.far_memory import huge, last_program_only

if not INTERPRETING:
    pytest.skip("needs the interpreter", allow_module_level=True)

from sparse_xmc.ops.triton_kernels import input_gradient, linear, linear_gather, linear_group, linear_inverted

HALF = torch.float16
D, K = 40, 16
# label and weight offsets; then (two labels a group) offsets of the indices
LAYERS = [(17, 2**27 + 37, 1), (17, 2**27 + 37, 20), (1, 2**28 + 3, 2)]


@pytest.fixture
def poisoned_outputs() -> None:
    """Replaces the fixture of the whole suite, which would touch every page."""


def far_layer(L: int, G: int, features: int = D) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight, indices, the last label's dense weights): zero but for the last label."""
    R = -(-L // G)
    weight, indices = huge(L, K, dtype=HALF), huge(R, K, dtype=torch.uint16)
    weight[-1] = torch.randn(K)
    indices[-1] = (features - 1 - torch.randperm(min(features, 100))[:K]).to(torch.uint16)
    dense = torch.zeros(features).index_put((indices[-1].long(),), weight[-1].float())
    return weight, indices, dense


@pytest.mark.parametrize(("B", "L", "G"), LAYERS)
def test_many_labels(B: int, L: int, G: int) -> None:
    torch.manual_seed(0)
    weight, indices, dense = far_layer(L, G)
    x, bias, dy = torch.randn(B, D).to(HALF), huge(L, dtype=HALF), huge(B, L, dtype=HALF)
    bias[-1] = 3.0
    dy[:, -1] = torch.randn(B)
    with last_program_only(), input_gradient.forced("atomic"):
        y = linear.forward(x, weight, indices, bias, G)
        dx = linear.backward_input(dy, weight, indices, D, G, False)
        dw = linear.backward_weight(dy, x, indices, G, HALF)
    torch.testing.assert_close(y[-1, -1].float(), x[-1].float() @ dense + 3.0, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(dx[-1].float(), dy[-1, -1].float() * dense, rtol=2e-3, atol=2e-3)
    expected = dy[:, -1].float() @ x[:, indices[-1, -1].long()].float()
    torch.testing.assert_close(dw[-1, -1].float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("G", [1, 3])
def test_wide_batch_of_many_features(G: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    B, L, features = 32_769, 7, 65_536
    weight, indices, dense = far_layer(L, G, features)
    xt, dy = huge(features, B + 15, dtype=HALF), torch.zeros(B, L, dtype=HALF)
    used = indices[-1].long()
    xt[used, B - 1] = torch.randn(K).to(HALF)
    dy[-1, -1] = 1.0
    for module in (linear_gather, linear_group):
        monkeypatch.setattr(module, "feature_major", lambda x: xt)
        monkeypatch.setattr(module, "batch_major", lambda sums, *_: sums)
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: huge(*size, dtype=dtype))
    x = huge(B, features, dtype=HALF)
    with last_program_only():
        y = linear.forward(x, weight, indices, None, G)
        dxt = linear.backward_input(dy, weight, indices, features, G, False)
    expected = xt[used, B - 1].float() @ dense[used]
    torch.testing.assert_close(y[-1, -1].float(), expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(dxt[used, B - 1], dense[used], rtol=2e-3, atol=2e-3)


def test_inverted_index_of_many_connections() -> None:
    features, stride, per_row, connections = 2**27 + 1, 16, 8, 2**31 + 64
    offsets, positions = huge(features + 1, dtype=torch.int64), huge(connections, dtype=torch.int64)
    offsets[-2], offsets[-1] = connections - 5, connections
    positions[-5:] = torch.tensor([3, connections - 60, connections - 44, connections - 30, connections - 1])
    rows, weight = huge(connections // per_row + 1, stride, dtype=HALF), huge(connections, dtype=HALF)
    out = huge(features, stride, dtype=torch.float32)
    first, last, chosen = 1, connections // K - 1, [connections - 60, connections - 44, connections - 30]
    for number, position in enumerate(chosen, 1):
        rows[(position - first * K) // per_row] = number
        weight[position] = 10.0**number
    with last_program_only():
        linear_inverted.sum_connections_(offsets, positions, rows, weight, out, first, last, K, per_row)
    assert out[-1].tolist() == [3210.0] * stride


def test_sums_of_many_groups() -> None:
    L, G, B = 2**27, 8, 16
    weight, indices, _ = far_layer(L, G)
    dy, out = huge(B, L, dtype=HALF), huge(L // G * K, B, dtype=torch.float32)
    dy[:, -1] = 2.0
    with last_program_only():
        linear_group.connection_sums_(dy, weight, indices, out, D, G, 0, L // G)
    torch.testing.assert_close(out[-K:], 2.0 * weight[-1].float()[:, None].expand(K, B))
