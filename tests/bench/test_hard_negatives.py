"""The study of losses over a sample of the labels: its estimate, its hard labels, its report."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from bench import hard_negatives_report
from bench.environment import REPOSITORY
from bench.studies import hard_negatives
from sparse_xmc.data import to_torch_csr
from sparse_xmc.models import FixedFanInLinear


def problem(labels=60, rows=6):
    torch.manual_seed(0)
    head = FixedFanInLinear(16, labels, fan_in=5, seed=0)
    y = sp.csr_matrix(np.random.default_rng(0).random((rows, labels)) < 0.05, dtype=np.float32)
    return head, torch.randn(rows, 16), y


def test_with_all_labels_read_or_drawn_the_loss_is_the_exact_one():
    head, x, y = problem()
    targets, sampled = to_torch_csr(y), hard_negatives.SampledHead(head)
    exact = head.loss(x, targets)
    hard = torch.arange(60).reshape(6, 10)
    torch.testing.assert_close(sampled.loss(x, targets, hard, 0), exact)
    torch.testing.assert_close(sampled.loss(x, targets, hard[:2], 2000), exact)  # 2000 draws hold every label
    assert sampled.loss(x, targets, hard[:2], 0) < exact


def test_the_estimate_is_right_in_the_mean():
    head, x, y = problem()
    targets, sampled = to_torch_csr(y), hard_negatives.SampledHead(head)
    with torch.no_grad():
        exact = float(head.loss(x, targets))
        found = np.array([float(sampled.loss(x, targets, None, 10)) for _ in range(400)])
    assert found.std() > 0.01 * exact  # it is an estimate
    assert abs(found.mean() - exact) < 4 * found.std() / 20


def test_hard_labels_are_the_best_wrong_ones():
    head, x, y = problem(rows=7)
    found = hard_negatives.hardest(torch.nn.Identity(), head, x, y).numpy()
    logits = head(x).detach().numpy()
    logits[y.toarray() > 0] = -np.inf
    assert np.array_equal(found, np.argsort(-logits, 1)[:, : hard_negatives.HARD])


def test_the_report_holds_the_tables_of_its_rows():
    rows = hard_negatives.ROWS.read()
    text = (REPOSITORY / "reports" / "hard_negatives.md").read_text(encoding="utf-8")
    for table in (hard_negatives_report.table_of_times, hard_negatives_report.table_of_accuracy):
        assert len(table(rows)) > 4 and "\n".join(table(rows)) in text
    assert {run.name for run in hard_negatives.runs()} >= {row["name"] for row in rows}
    assert len({row["name"] for row in rows}) == len(rows)


def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    hard_negatives_report.draw(hard_negatives.ROWS.read(), str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
