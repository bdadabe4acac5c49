"""Every option that belongs to a run's identity changes its result or is refused, in every kind of run."""

import copy
import hashlib

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparse_xmc.app.build import build, build_encoder, build_optimizers, build_rewiring, label_order
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.options import entries
from sparse_xmc.app.trainer import Trainer
from sparse_xmc.data import DenseInputs, SparseInputs
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
ROWS, TERMS, LABELS = 48, 40, 12
BASE = {"batch_size": 16, "epochs": 2, "fan_in": 4, "amp": "off", "seed": 3}
BOW = {**BASE, "embedding_dim": 8, "lexical_fan_in": 4}
RUNS = {
    "bow": BOW,
    "one head": {**BOW, "lexical_fan_in": 0},
    "terms": {**BASE, "embedding_dim": 0},
    "dense": {**BOW, "fan_in": None, "head": "dense"},
    "dense alone": {**BOW, "fan_in": None, "head": "dense", "lexical_fan_in": 0},
    "head and tail": {**BOW, "head": "head_tail", "head_share": 0.3},
    "much": {
        **BOW,
        "intermediate": 8,
        "group_size": 4,
        "rewire_fraction": 0.5,
        "rewire_interval": 1,
        "rewire_until": 0.5,
        "auxiliary_weight": 0.5,
        "auxiliary_clusters": 3,
        "auxiliary_cutoff": 0.4,
    },
    "fused": {**BOW, "fused": True, "lexical_fan_in": 0},
    "features": {**BASE, "encoder": "features"},
    "features, intermediate": {**BASE, "encoder": "features", "intermediate": 8},
}
OTHER = {
    "max_features": 30, "min_df": 3, "max_ngram": 2, "char_ngrams": "3-4", "hashed": True,
    "embedding_dim": 16, "svd_init": False, "transformer": "x",
    "pooling": "cls", "max_length": 64, "gradient_checkpointing": True, "lexical_fan_in": 3, "lexical_loss": "bce",
    "input_dropout": 0.5, "dropout": 0.5, "fan_in": 3, "group_size": 2, "grouping": "clustered", "topology": "random",
    "head_share": 0.6, "intermediate": 16, "auxiliary_weight": 0.2, "auxiliary_cutoff": 0.9, "auxiliary_clusters": 6,
    "loss": "squared_hinge", "epochs": 3, "batch_size": 24, "accumulate": 3, "head_lr": 0.11, "lexical_lr": 0.3,
    "encoder_lr": 0.02, "embedding_lr": 0.02, "encoder_weight_decay": 0.3, "head_schedule": "constant",
    "encoder_schedule": "constant", "warmup": 0.5, "rewire_fraction": 0.9, "rewire_interval": 2, "rewire_until": 0.9,
    "fused": True, "amp": "bf16", "seed": 4, "patience": 1,
}  # fmt: skip
OF_TEXTS = {
    "max_features",
    "min_df",
    "max_ngram",
    "char_ngrams",
    "hashed",
}  # in a run on texts, which test_command_line has
OF_ORDER = {"grouping"}  # without groups it moves labels, which a digest sees and nobody else
TOGETHER = {"rewire_fraction": {"rewire_interval": 1}}  # as these runs are shorter than an interval
OF_FILES = {
    "calibration_share",
    "train",
    "from_",
    "drop_labels",
    "valid",
    "train_labels",
    "valid_labels",
    "text_field",
    "label_field",
    "label_separator",
    "encoder",
    "device",
    "head",
    "solver",
    "effort",
    "held_out",
    "tail",
    "head_memory",
}


def data(encoder):
    rng = np.random.default_rng(0)
    y = (rng.random((ROWS, LABELS)) < np.linspace(0.5, 0.1, LABELS)).astype(np.float32)
    y[np.arange(LABELS), np.arange(LABELS)] = 1
    x = (y @ rng.random((LABELS, TERMS)) * (rng.random((ROWS, TERMS)) < 0.4)).astype(np.float32)
    inputs = DenseInputs(x) if encoder == "features" else SparseInputs(sp.csr_matrix(x))
    return inputs, sp.csr_matrix(y)


def completed(options):
    config = TrainingConfig(**options)
    return config.completed(data(config.encoder)[1], TERMS)


def result(config):
    """A digest of everything that a run has learned."""
    inputs, targets = data(config.encoder)
    order = label_order(config, inputs, targets)
    targets = targets[:, order].tocsr()
    model = build(config, build_encoder(config, TERMS), inputs, targets, torch.device("cpu"))
    optimizers = build_optimizers(config, model)
    rewire = build_rewiring(config, model, optimizers, -(-ROWS // config.batch_size) * config.epochs)
    names = ("epochs", "batch_size", "accumulate", "amp", "seed")
    trainer = Trainer(model, inputs, targets, optimizers, rewire=rewire, **{n: getattr(config, n) for n in names})
    torch.manual_seed(config.seed)
    trainer.fit()
    digest = hashlib.sha256(str(order.tolist()).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("auxiliary."):
            digest.update(f"{name} {tensor.shape}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_every_option_of_the_identity_is_tried():
    names = {entry.name for entry in entries(TrainingConfig) if entry.option.identity != "never"}
    assert names == OTHER.keys() | OF_FILES


@pytest.mark.parametrize("run", RUNS)
def test_changes_the_result_or_is_refused(run):
    before, silent, refusals = result(completed(RUNS[run])), [], 0
    for name, value in OTHER.items():
        if value == RUNS[run].get(name):
            continue
        try:
            config = completed({**RUNS[run], **TOGETHER.get(name, {}), name: value})
        except ValueError as error:
            assert name in str(error)
            refusals += 1
            continue
        if name not in OF_TEXTS and result(config) == before:
            silent.append(name)
    assert not silent and refusals


@pytest.mark.parametrize("run", RUNS)
def test_what_is_refused_would_not_change_the_result(run):
    """Otherwise a wish would be refused that could be met."""
    config = completed(RUNS[run])
    before = result(config)
    refused = [entry for entry in entries(config) if entry.option.only_if and entry.option.only_if.blamed(config)]
    for name in ({entry.name for entry in refused} & OTHER.keys()) - OF_ORDER:
        changed = copy.copy(config)
        setattr(changed, name, OTHER[name])
        assert result(changed) == before, name
