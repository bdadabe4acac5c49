"""Options out of range, of the wrong type or without effect are refused; those of the reports are not."""

import dataclasses
import math

import pytest

from sparse_xmc.app.config import TrainingConfig, load_toml, to_toml

NUMBERS = [e.name for e in dataclasses.fields(TrainingConfig) if str(e.type).startswith(("int", "float"))]
AT_LEAST_ONE = ["epochs", "batch_size", "accumulate", "fan_in", "group_size", "max_features", "min_df", "max_ngram"]
AT_LEAST_ONE += ["max_length", "log_every", "auxiliary_clusters", "rewire_interval", "keep_checkpoints"]


def refused(name, value):
    with pytest.raises(ValueError, match=name) as failure:
        TrainingConfig(**{name: value})
    assert str(value) in str(failure.value)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, math.nan, -math.inf, "3", True])
def test_no_number_takes_these(name, value):
    refused(name, value)


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "checkpoint_seconds"])
def test_infinity_is_a_checkpoint_interval_only(name):
    refused(name, math.inf)
    assert TrainingConfig(checkpoint_seconds=math.inf).checkpoint_seconds == math.inf


@pytest.mark.parametrize("name", AT_LEAST_ONE)
def test_at_least_one(name):
    refused(name, 0)
    refused(name, 2.5)
    TrainingConfig(**{name: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [("head_share", 0), ("head_share", 1), ("propensity_a", 0), ("propensity_b", 0), ("rewire_until", 1.1)]
    + [("auxiliary_cutoff", 0), ("dropout", 1), ("threads", 100_000), ("seed", 2**32), ("train", 3), ("fused", 1)]
    + [("text_field", ["a", 1]), ("device", "foo"), ("device", "cuda:"), ("encoder_lr", -1e-5)],
)
def test_ends_of_ranges(name, value):
    refused(name, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0, "fused": True}, "fused=True has no effect with encoder='bow' and embedding_dim=0"),
        ({"embedding_dim": 0, "intermediate": 16}, "intermediate=16 has no effect"),
        ({"embedding_dim": 0, "lexical_fan_in": 16}, "lexical_fan_in=16 has no effect"),
        ({"encoder": "features", "lexical_fan_in": 16}, "lexical_fan_in=16 has no effect with encoder='features'"),
        ({"encoder": "transformer", "transformer": "x", "lexical_fan_in": 1}, "lexical_fan_in=1 has no effect"),
        ({"head": "dense", "rewire_fraction": 0.1}, "rewire_fraction=0.1 has no effect with head='dense'"),
        ({"head": "dense", "fan_in": 32}, "fan_in=32 has no effect with head='dense'"),
        ({"head": "dense", "lexical_fan_in": 0, "group_size": 4}, "group_size=4 has no effect"),
        ({"head": "dense", "encoder": "features", "group_size": 4}, "group_size=4 has no effect"),
    ],
)
def test_options_without_effect(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def test_options_of_the_reports():
    study = pytest.importorskip("bench.studies.accuracy")
    for options in study.VARIANTS.values():
        TrainingConfig(**options)
    for encoder in ("bow", "features", "transformer"):
        TrainingConfig(encoder=encoder, transformer="x", intermediate=1024, lexical_fan_in=0)
    TrainingConfig(head="dense", group_size=4)  # of the head on terms


def test_toml_of_what_json_writes_otherwise(tmp_path):
    config = TrainingConfig(train='ä"\\\n\t\x7f\x01', out="runs/😀", text_field=["😀"], checkpoint_seconds=math.inf)
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    assert TrainingConfig(**load_toml(tmp_path / "c.toml")) == config
