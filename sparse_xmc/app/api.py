"""What a program of one's own calls: ``sparse_xmc.train`` and ``sparse_xmc.load``."""

from __future__ import annotations

from typing import Any

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.inherited import with_model_options
from sparse_xmc.app.jobs import train as run_training
from sparse_xmc.app.model import Model, load
from sparse_xmc.app.options import entries

__all__ = ["Model", "load", "train"]


def train(*, overwrite: bool = False, report: Any = print, **options: Any) -> dict[str, Any]:
    """Trains a model, or goes on where a killed run stopped; the options are those of ``sparse-xmc train``.

    Args:
        overwrite: begin anew in a folder that holds a run.
        report: called with each line of the report; ``lambda line: None`` for silence.
        options: fields of ``sparse_xmc.app.config.TrainingConfig``; ``from_="runs/a"`` is ``--from runs/a``.

    Returns:
        The metrics of the test split, nothing where there is none.

    Raises:
        TypeError: there is no such option.
        ValueError: an option has the wrong type or value, has no effect, or a file cannot be read.

    Examples:
        >>> import sparse_xmc
        >>> with open("train.csv", "w") as file:
        ...     print("text,labels\\n" + "bread and salt,food\\njudge and court,law\\n" * 20, file=file)
        >>> metrics = sparse_xmc.train(train="train.csv", out="runs/a", report=lambda line: None, progress=False)
        >>> model = sparse_xmc.load("runs/a")
    """
    known = {entry.name for entry in entries(TrainingConfig)}
    for name in options:
        if name not in known:
            raise TypeError(f"train has no option {name!r}")
    config = TrainingConfig(**with_model_options(options))
    return run_training(config, overwrite=overwrite, report=report)
