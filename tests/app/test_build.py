"""Models of very small data and of layers narrower than the options ask for."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc.app.build import build, build_encoder, num_head_labels
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.data import SparseInputs


def make(num_rows: int, num_terms: int, num_labels: int, **options):
    config = TrainingConfig(embedding_dim=4, lexical_fan_in=0, **options)
    x = sp.csr_matrix(np.ones((num_rows, num_terms), dtype=np.float32))
    y = sp.csr_matrix(np.ones((num_rows, num_labels), dtype=np.float32))
    return build(config, build_encoder(config, num_terms), SparseInputs(x), y, torch.device("cpu"))


@pytest.mark.parametrize(("rows", "terms"), [(1, 5), (5, 1), (1, 1)])
def test_one_row_or_one_term_keeps_random_embeddings(rows, terms):
    weight = make(rows, terms, 3).encoder.weight
    assert weight.shape == (terms, 4) and weight.abs().min() > 0


@pytest.mark.parametrize("head", ["fixed_fan_in", "head_tail"])
def test_fan_in_is_at_most_the_width(head):
    layer = make(6, 5, 7, head=head).head
    assert getattr(layer, "tail", layer).fan_in == 4
    with pytest.raises(ValueError, match="fan_in=5 is more than the 4 features that the head reads: at most 4"):
        make(6, 5, 7, head=head, fan_in=5)


@pytest.mark.parametrize(
    ("labels", "group", "expected"), [(100, 1, 10), (100, 8, 8), (100, 4, 8), (3, 1, 1), (8, 8, 7), (2, 64, 1)]
)
def test_labels_with_a_dense_row(labels, group, expected):
    assert num_head_labels(TrainingConfig(head="head_tail", group_size=group), labels) == expected


def test_a_single_label_has_no_tail():
    with pytest.raises(ValueError, match="head='head_tail' needs at least 2 labels, got 1"):
        make(6, 5, 1, head="head_tail")
