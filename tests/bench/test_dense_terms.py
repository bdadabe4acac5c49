"""The dense baseline on terms, which updates the rows of a batch's terms alone, against torch's Adagrad on all of them."""

import scipy.sparse as sp
import torch

from bench.studies.dense_terms import DenseOnTerms
from sparse_xmc.data.batches import to_torch_csr
from sparse_xmc.models.losses import logits_loss


def test_steps_equal_adagrad_on_the_whole_matrix() -> None:
    V, L, B, state = 40, 7, 5, 1e-4
    head = DenseOnTerms(V, L, state)
    weight, bias = (torch.nn.Parameter(t.clone()) for t in (head.weight, head.bias))
    groups = [{"params": [weight], "lr": 0.3}, {"params": [bias], "lr": 0.01}]
    optimizer = torch.optim.Adagrad(groups, initial_accumulator_value=state)
    for seed in range(4):
        rows = sp.random(B, V, 0.2, format="csr", dtype="float32", random_state=seed)
        targets = sp.random(B, L, 0.4, format="csr", dtype="float32", random_state=seed + 9)
        x = torch.from_numpy(rows.toarray())
        torch.testing.assert_close(head.logits(rows), x @ weight + bias)
        head.step(rows, targets, 0.3, 0.01, dropout=0.0)
        optimizer.zero_grad()
        logits_loss(x @ weight + bias, to_torch_csr(targets), loss="squared_hinge").backward()
        optimizer.step()
        torch.testing.assert_close(head.weight, weight.detach())
        torch.testing.assert_close(head.bias, bias.detach())
