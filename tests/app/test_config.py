"""What a configuration leaves open is decided by the training split."""

import scipy.sparse as sp

from sparse_xmc.app.config import TrainingConfig


def targets(rows_per_label: int, num_labels: int = 10) -> sp.csr_matrix:
    return sp.csr_matrix([[1.0] * num_labels] * rows_per_label)


def connections(config: TrainingConfig, rows_per_label: int, num_features: int) -> int | None:
    return config.completed(targets(rows_per_label), num_features).lexical_fan_in


def test_rare_labels_get_few_terms():
    assert connections(TrainingConfig(), 19, 50_000) == 64


def test_frequent_labels_get_as_many_as_the_terms_bear():
    assert connections(TrainingConfig(), 20, 50_000) == 256
    assert connections(TrainingConfig(), 20, 1_600) == 100
    assert connections(TrainingConfig(), 20, 100) == 64


def test_what_is_given_stays():
    assert connections(TrainingConfig(lexical_fan_in=0), 20, 50_000) == 0
    assert connections(TrainingConfig(lexical_fan_in=7), 1, 50_000) == 7


def test_open_options_are_no_part_of_the_identity():
    assert "lexical_fan_in" not in TrainingConfig().identity()
    assert TrainingConfig().completed(targets(1), 50).identity()["lexical_fan_in"] == 50
