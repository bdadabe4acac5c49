"""The command line: ``python -m sparse_xmc {train,evaluate,predict,memory}``."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from sparse_xmc.app.config import TrainingConfig, load_toml
from sparse_xmc.app.options import entries

_DESCRIPTION = "Train and use multi-label classifiers with very wide fixed fan-in heads."
SHARED = ("device", "threads", "progress")  # options that evaluate and predict take too
_RESUME = "; the same command resumes from the last checkpoint"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_options(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Flags for the options of a training run, or for those of these names; what isn't given isn't set."""
    for entry in entries(TrainingConfig):
        if names is not None and entry.name not in names:
            continue
        shown = "" if entry.default in (None, "", []) else f" (default: {entry.default})"
        about: dict[str, Any] = {"dest": entry.name, "default": argparse.SUPPRESS}
        about["help"] = (entry.option.help + shown).replace("%", "%%")
        if entry.kind == "bool":
            parser.add_argument(_flag(entry.name), action=argparse.BooleanOptionalAction, **about)
            continue
        if entry.kind == "list[str]":
            about["type"] = lambda text: [part for part in text.split(",") if part]
            about["action"] = "extend"  # given twice, it adds up
        else:
            about["type"] = {"str": str, "int": int, "float": float}[entry.kind]
        parser.add_argument(_flag(entry.name), choices=entry.option.choices, **about)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sparse_xmc", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser(
        "train",
        help="train a model (or go on with a run that was interrupted)",
        description="Train a model. Running the same command again resumes an interrupted run.",
        epilog="Options on the command line override those of --config.",
    )
    train.add_argument("--config", help="TOML file with any of the options below")
    train.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds a run")
    _add_options(train)

    evaluate = commands.add_parser("evaluate", help="evaluate a trained model", description="Evaluate a trained model.")
    evaluate.add_argument("run", help="folder of the run")
    evaluate.add_argument("--test", required=True, help="data file with labels")
    evaluate.add_argument("--test-labels", help="labels where they are in a file of their own")
    evaluate.add_argument("--test-filter", help="file of 'row label' pairs to leave out")

    predict = commands.add_parser("predict", help="predict labels of texts", description="Predict labels of texts.")
    predict.add_argument("run", help="folder of the run")
    predict.add_argument("--input", required=True, help="data file; labels are not needed")
    predict.add_argument("--k", type=int, default=5, help="labels per row (default: 5)")
    predict.add_argument("--out", required=True, help="JSON-lines file to write")

    for command in (evaluate, predict):
        _add_options(command, SHARED)

    memory = commands.add_parser("memory", help="bytes that a head needs", description="Bytes that a head needs.")
    memory.add_argument("--labels", type=int, required=True, help="L, number of labels")
    memory.add_argument("--in-features", type=int, default=768, help="D, input size of the head (default: 768)")
    _add_options(memory, ("fan_in", "group_size", "batch_size"))
    memory.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights")
    memory.add_argument(
        "--optimizer", default="sgd", choices=("sgd", "momentum", "adagrad", "adam"), help="of the head"
    )
    return parser


def _train(options: argparse.Namespace) -> None:
    from sparse_xmc.app import jobs

    given = vars(options)
    values = load_toml(options.config) if options.config else {}
    values |= {name: value for name, value in given.items() if name not in ("command", "config", "overwrite")}
    jobs.train(TrainingConfig(**values), overwrite=options.overwrite)


def _memory(options: argparse.Namespace) -> None:
    import torch

    from sparse_xmc.models import memory_report

    given = {name: getattr(options, name) for name in ("fan_in", "group_size", "batch_size") if hasattr(options, name)}
    config = TrainingConfig(**given)
    report = memory_report(
        options.labels,
        options.in_features,
        config.connections(options.in_features),
        group_size=config.group_size,
        batch_size=config.batch_size,
        dtype=getattr(torch, options.dtype),
        optimizer=options.optimizer,
    )
    print(report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; expected failures end with one line on stderr and status 1."""
    options = make_parser().parse_args(arguments)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    from sparse_xmc.distributed import RankFailure
    from sparse_xmc.storage.checkpoint import CheckpointError

    shared = {name: getattr(options, name) for name in SHARED if hasattr(options, name)}
    try:
        if options.command == "train":
            _train(options)
        elif options.command == "evaluate":
            from sparse_xmc.app import jobs

            jobs.evaluate(
                options.run, options.test, labels=options.test_labels, filter_path=options.test_filter, options=shared
            )
        elif options.command == "predict":
            from sparse_xmc.app import jobs

            jobs.predict(options.run, options.input, options.out, k=options.k, options=shared)
        else:
            _memory(options)
    except (ValueError, CheckpointError, RankFailure, FloatingPointError, ModuleNotFoundError, OSError) as error:
        print(f"sparse_xmc: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no more to be had"])[0]
        print(f"sparse_xmc: out of memory ({reason}){_RESUME * (options.command == 'train')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sparse_xmc: interrupted{_RESUME * (options.command == 'train')}", file=sys.stderr)
        return 130
    return 0


def _out_of_memory(error: BaseException) -> bool:
    """Also of torch, which says so of a CPU by a bare RuntimeError."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
