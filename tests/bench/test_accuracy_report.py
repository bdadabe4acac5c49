"""The accuracy report names a variant by what it was trained with."""

import pytest

from bench.accuracy_report import grouped, title


@pytest.mark.parametrize(
    ("variant", "overrides", "expected"),
    [
        ("K=64, intermediate 4096", {"fan_in": 42, "epochs": 4}, "K=42, intermediate 4096"),
        ("default, 512 terms, bigrams", {"lexical_fan_in": 96, "fan_in": 32}, "default, 96 terms, bigrams (fan_in=32)"),
        ("default", {"intermediate": 2048, "epochs": 8}, "default (intermediate=2048)"),
        ("dense", {}, "dense"),
    ],
)
def test_title_agrees_with_the_overrides(variant, overrides, expected) -> None:
    assert title(variant, overrides) == expected


def test_seeds_stand_together_and_epochs_apart() -> None:
    row = {"dataset": "Bibtex", "variant": "dense", "overrides": {"epochs": 4}, "epochs": 4}
    rows = [row | {"seed": 0}, row | {"seed": 1}, row | {"epochs": 6, "overrides": {}}]
    assert {key: len(part) for key, part in grouped(rows)["Bibtex"].items()} == {("dense", 4): 2, ("dense", 6): 1}
