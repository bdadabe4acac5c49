"""Options out of range, of the wrong type or without effect are refused; those of the reports are not."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse as sp

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.config_file import load_toml, to_toml
from sparse_xmc.app.options import entries, option

NUMBERS = [e.name for e in dataclasses.fields(TrainingConfig) if str(e.type).startswith(("int", "float"))]
AT_LEAST_ONE = ["epochs", "batch_size", "accumulate", "fan_in", "group_size", "max_features", "min_df", "max_ngram"]
AT_LEAST_ONE += ["max_length", "log_every", "auxiliary_clusters", "rewire_interval", "keep_checkpoints"]
MADE_EFFECTIVE = {
    "max_length": {"encoder": "transformer", "transformer": "x"},
    "auxiliary_clusters": {"auxiliary_weight": 0.4},
    "rewire_interval": {"rewire_fraction": 0.2},
}


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


@pytest.mark.parametrize("name", [entry.name for entry in entries(TrainingConfig) if entry.kind == "int"])
def test_no_integer_overflows(name):
    refused(name, 10**20)


@pytest.mark.parametrize("name", AT_LEAST_ONE)
def test_at_least_one(name):
    refused(name, 0)
    refused(name, 2.5)
    TrainingConfig(**{**MADE_EFFECTIVE.get(name, {}), name: 1})


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
        ({"grouping": "random"}, "grouping='random' has no effect with group_size=1"),
        ({"test_filter": "f"}, "test_filter='f' has no effect with test=None"),
        ({"valid_labels": "f"}, "valid_labels='f' has no effect with valid=None"),
        ({"patience": 1}, "patience=1 has no effect with valid=None"),
        ({"transformer": "x"}, "transformer='x' has no effect with encoder='bow'"),
    ],
)
def test_options_without_effect(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "dense", "fused": True}, "fused=true needs head='fixed_fan_in', got head='dense'"),
        ({"fused": True, "amp": "fp16"}, "takes neither accumulate > 1 nor amp='fp16', got amp='fp16'"),
        ({"fused": True, "accumulate": 2}, "takes neither accumulate > 1 nor amp='fp16', got accumulate=2"),
        ({"embedding_dim": 0, "head": "dense"}, "a head with dense rows on sparse terms is not supported"),
        ({"embedding_dim": 0, "head": "head_tail"}, "a head with dense rows on sparse terms is not supported"),
        ({"embedding_dim": 0, "auxiliary_weight": 0.1}, "needs an encoder that learns"),
        ({"encoder": "features", "auxiliary_weight": 0.1}, "needs an encoder that learns"),
        ({"encoder": "transformer"}, "needs transformer: a local folder or hub id"),
        ({"fan_in": 4096, "embedding_dim": 16}, "fan_in=4096 is more than the 16 features .* at most 16"),
        (
            {"fan_in": 4096, "intermediate": 100, "encoder": "features"},
            "fan_in=4096 is more than the 100 .* at most 100",
        ),
        ({"accumulate": 9, "batch_size": 8}, "accumulate=9 .* at most batch_size=8"),
    ],
)
def test_impossible_combinations(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def test_paths_and_numbers_of_numpy_are_taken(tmp_path):
    config = TrainingConfig(train=tmp_path, fan_in=np.int64(8), dropout=np.float32(0.5), text_field=("a", "b"))
    assert (config.train, config.fan_in, config.dropout, config.text_field) == (str(tmp_path), 8, 0.5, ["a", "b"])
    assert type(config.fan_in) is int and type(config.dropout) is float


def test_a_stored_configuration_may_hold_what_has_no_effect():
    old = {**dataclasses.asdict(TrainingConfig()), "pooling": "cls", "grouping": "random", "auxiliary_cutoff": 0.5}
    assert TrainingConfig.stored(old) == TrainingConfig()
    with pytest.raises(ValueError, match="unknown option 'depth'"):
        TrainingConfig.stored({"depth": 3})


def test_what_has_no_effect_does_not_hinder_going_on():
    config = TrainingConfig(solver="gradient")
    old = config.identity()
    assert config.changed_since({**old, "pooling": "cls", "fan_in": 64}) == []
    assert config.changed_since({**old, "fan_in": 65, "loss": "squared_hinge"}) == ["fan_in", "loss"]
    few = config.completed(sp.csr_matrix((10, 5)), 50)
    assert few.lexical_fan_in == 50
    assert few.changed_since({**few.identity(), "lexical_fan_in": 64}, 50) == []
    assert few.changed_since({**few.identity(), "lexical_fan_in": 40}, 50) == ["lexical_fan_in"]


def test_a_later_option_is_recorded_only_if_changed():
    @dataclasses.dataclass
    class Later(TrainingConfig):
        depth: int = option(0, "layers", range="[0, inf)", identity="if changed")

    assert Later().identity() == TrainingConfig().identity()
    assert Later().changed_since(TrainingConfig().identity()) == []
    assert Later(depth=2).changed_since(TrainingConfig().identity()) == ["depth"]
    assert Later().changed_since(Later(depth=2).identity()) == ["depth"]


def test_options_of_the_reports():
    study = pytest.importorskip("bench.studies.accuracy")
    for options in study.VARIANTS.values():
        TrainingConfig(**options)
    for encoder in ("bow", "features", "transformer"):
        name = "x" * (encoder == "transformer")
        TrainingConfig(encoder=encoder, transformer=name, intermediate=1024, lexical_fan_in=0)
    TrainingConfig(head="dense", group_size=4)  # of the head on terms


def test_toml_of_what_json_writes_otherwise(tmp_path):
    config = TrainingConfig(train='ä"\\\n\t\x7f\x01', out="runs/😀", text_field=["😀"], checkpoint_seconds=math.inf)
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    assert TrainingConfig(**load_toml(tmp_path / "c.toml")) == config
