"""Options of a run that begins from a model (``--from``): what makes the model is the model's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparse_xmc.app.options import Entry, entries, spelled

if TYPE_CHECKING:
    from sparse_xmc.app.config import TrainingConfig


def with_model_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, and those that the model of ``from_`` brings along.

    Raises:
        ValueError: an option that the model has was given another value.
        ArtefactError: there is no readable model.
    """
    run = given.get("from_")
    if run is None:
        return dict(given)
    model = _options_of(os.fspath(run))
    result = dict(given)
    for entry in entries(model):
        value = getattr(model, entry.name)
        if entry.option.origin == "model" and entry.name in given and given[entry.name] != value:
            raise _other_value(entry.name, given[entry.name], run, value)
        if entry.option.origin != "run":
            result.setdefault(entry.name, value)
    return result


def check_inherited(config: TrainingConfig, model: TrainingConfig) -> None:
    """Raises:
    ValueError: the options of a run are not those of the model that it begins from.
    """
    for entry in entries(config):
        value = model_option(model, entry)
        if entry.option.origin == "model" and getattr(config, entry.name) != value:
            raise _other_value(entry.name, getattr(config, entry.name), config.from_, value)


def model_option(model: TrainingConfig, entry: Entry) -> Any:
    """A value as a model has it; one that was made before there was a choice of solvers was made by gradients."""
    value = getattr(model, entry.name)
    return "gradient" if entry.name == "solver" and value == "auto" and model.encoder == "bow" else value


def _other_value(name: str, value: Any, run: Any, own: Any) -> ValueError:
    return ValueError(f"{spelled(name)}={value!r} cannot be had from {run}, whose model has {own!r}: leave it out")


def _options_of(run: str) -> TrainingConfig:
    """The options of a run's model, whose numbers of connections its weights tell."""
    import dataclasses

    from sparse_xmc.app.bundle import Bundle

    config = Bundle.load(run, device="cpu").config
    own = {entry.name: model_option(config, entry) for entry in entries(config)}
    return dataclasses.replace(config, **own)
