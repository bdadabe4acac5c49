"""Names of former releases work and say what they are called now."""

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.models import BagOfWordsEncoder


def test_a_loss_that_updates():
    layer = (torch.ones(4, 2), ops.init_indices(4, 3, 2, seed=0, device="cpu"), None)
    with (
        pytest.warns(DeprecationWarning, match="updating_loss is called updating_loss_ now"),
        pytest.raises(ValueError, match="weight must require a gradient"),
    ):
        ops.updating_loss(torch.ones(1, 3), *layer, [[0]], None)


def test_a_table_of_embeddings():
    encoder = BagOfWordsEncoder(4, 2)
    with pytest.warns(DeprecationWarning, match="initialise is called initialise_ now"):
        encoder.initialise(torch.full((4, 2), 3.0))
    assert torch.equal(encoder.weight, torch.full((4, 2), 3.0))
