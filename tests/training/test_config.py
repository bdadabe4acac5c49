"""What a configuration leaves open is decided by the training split."""

import scipy.sparse as sp

from sparse_xmc.training.config import TrainingConfig


def targets(rows_per_label: int, num_labels: int = 10) -> sp.csr_matrix:
    return sp.csr_matrix([[1.0] * num_labels] * rows_per_label)


def decided(config: TrainingConfig, rows_per_label: int, num_features: int) -> tuple[int | None, int | None]:
    done = config.completed(targets(rows_per_label), num_features)
    return done.intermediate, done.lexical_fan_in


def test_rare_labels_get_no_intermediate_layer_and_few_terms():
    assert decided(TrainingConfig(), 19, 50_000) == (0, 64)


def test_frequent_labels_get_both():
    assert decided(TrainingConfig(), 20, 50_000) == (2048, 256)
    assert decided(TrainingConfig(), 20, 1_600) == (2048, 100)
    assert decided(TrainingConfig(), 20, 100) == (2048, 64)


def test_what_is_given_stays():
    assert decided(TrainingConfig(intermediate=0, lexical_fan_in=0), 20, 50_000) == (0, 0)
    assert decided(TrainingConfig(intermediate=512, lexical_fan_in=7), 1, 50_000) == (512, 7)


def test_open_options_are_no_part_of_the_identity():
    identity = TrainingConfig(intermediate=512).identity()
    assert "lexical_fan_in" not in identity and identity["intermediate"] == 512
    done = TrainingConfig().completed(targets(1), 50).identity()
    assert (done["intermediate"], done["lexical_fan_in"]) == (0, 64)
