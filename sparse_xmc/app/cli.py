"""The command line: ``sparse-xmc {train,evaluate,predict,...}``, or ``python -m sparse_xmc``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from sparse_xmc import _interrupt
from sparse_xmc._extras import advice
from sparse_xmc._version import __version__
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.config_file import load_toml
from sparse_xmc.app.first_use import announcing_compilation
from sparse_xmc.app.inherited import with_model_options
from sparse_xmc.app.options import entries, spelled

_DESCRIPTION = "Train and use multi-label classifiers with very wide fixed fan-in heads."
_RESUME = "; the same command resumes from the last checkpoint"
_SHARED = ("device", "threads", "progress")  # options that evaluate and predict take too
_SHAPE = ("fan_in", "group_size", "batch_size")  # and memory
_HEAD: dict[str, Any] = {"in_features": 768, "dtype": "float32", "optimizer": "sgd"}  # of memory of a head
_SPLIT = (  # and memory of a run
    "train_labels",
    "test",
    "test_labels",
    "text_field",
    "label_field",
    "label_separator",
    "min_df",
    "max_features",
    "effort",
    "head_memory",
    "held_out",
)


def _flag(name: str) -> str:
    return "--" + spelled(name).replace("_", "-")


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


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparse-xmc", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sparse-xmc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, *, more: str = "", **about: Any) -> argparse.ArgumentParser:
        described = f"{text[0].upper()}{text[1:]}.{more}"
        return commands.add_parser(name, help=text, description=described, allow_abbrev=False, **about)

    train = command(
        "train",
        "train a model, or go on with a run that was interrupted",
        more=" The same command again resumes an interrupted run.",
        epilog="Options on the command line override those of --config.",
    )
    train.add_argument("--config", help="TOML file with any of the options below")
    train.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds a run")
    _add_options(train)

    evaluate = command("evaluate", "evaluate a trained model")
    evaluate.add_argument("run", help="folder of the run")
    evaluate.add_argument("--test", required=True, help="data file with labels")
    evaluate.add_argument("--test-labels", help="labels where they are in a file of their own")
    evaluate.add_argument("--test-filter", help="file of 'row label' pairs to leave out")
    evaluate.add_argument("--threshold", type=float, help="also F1 of the labels at least this probable, in [0, 1]")
    _add_options(evaluate, _SHARED)

    predict = command("predict", "predict labels of texts or features")
    predict.add_argument("run", help="folder of the run")
    predict.add_argument("--input", required=True, help="data file; labels are not needed")
    predict.add_argument("--k", type=int, default=5, help="labels per row, at most (default: 5)")
    predict.add_argument("--threshold", type=float, help="leave out labels less probable than this, in [0, 1]")
    predict.add_argument("--out", default="-", help="file to write (default: -, standard output)")
    predict.add_argument(
        "--format",
        choices=("jsonl", "csv"),
        default="jsonl",
        help="jsonl: an object per row; csv: a line per label: row (from 0), label, score (default: jsonl)",
    )
    _add_options(predict, _SHARED)

    inspect = command("inspect", "say what a run holds: model, bytes, labels, metrics")
    inspect.add_argument("run", help="folder of the run")

    convert = command("convert", "write a model's weights as files that NumPy and SciPy read")
    convert.add_argument("run", help="folder of the run")
    convert.add_argument("--out", required=True, help="folder to make")
    convert.add_argument(
        "--format",
        choices=("csr", "dense"),
        default="csr",
        help="of the heads: csr: scipy.sparse.load_npz; dense: numpy.load, 4 L D bytes (default: csr)",
    )

    warmup = command("warmup", "compile the kernels now, so that no run has to")
    _add_options(warmup, ("device", "progress"))

    memory = command("memory", "bytes that a head needs, or the peak of a direct run on a file")
    sizes = memory.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--labels", type=int, help="L, number of labels: of a head that is trained by gradients")
    sizes.add_argument(
        "--train", help="training split of texts in lines or of features, looked over: of a direct run on it"
    )
    absent: dict[str, Any] = {"default": argparse.SUPPRESS}
    memory.add_argument("--in-features", type=int, help="D, input size of the head (default: 768)", **absent)
    memory.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: float32)", **absent
    )
    memory.add_argument(
        "--optimizer", choices=("sgd", "momentum", "adagrad", "adam"), help="of the head (default: sgd)", **absent
    )
    _add_options(memory, (*_SHAPE, *_SPLIT))
    return parser


def _train(options: argparse.Namespace) -> None:
    values = load_toml(options.config) if options.config else {}
    from sparse_xmc.app.reports import changed

    if options.config and changed(options.config):
        print(f"{options.config} has been changed since a run wrote it", file=sys.stderr)
    values |= _given(options, [entry.name for entry in entries(TrainingConfig)])
    config = TrainingConfig(**with_model_options(values))
    from sparse_xmc.app import jobs

    jobs.train(config, overwrite=options.overwrite)


def _evaluate(options: argparse.Namespace) -> None:
    from sparse_xmc.app import jobs

    shared = _given(options, _SHARED)
    jobs.evaluate(
        options.run,
        options.test,
        labels=options.test_labels,
        filter_path=options.test_filter,
        threshold=options.threshold,
        options=shared,
    )


def _predict(options: argparse.Namespace) -> None:
    from sparse_xmc.app import jobs

    jobs.predict(
        options.run,
        options.input,
        options.out,
        k=options.k,
        threshold=options.threshold,
        form=options.format,
        options=_given(options, _SHARED),
    )


def _inspect(options: argparse.Namespace) -> None:
    from sparse_xmc.app import jobs

    jobs.inspect(options.run)


def _convert(options: argparse.Namespace) -> None:
    from sparse_xmc.app import jobs

    jobs.convert(options.run, options.out, form=options.format)


def _warmup(options: argparse.Namespace) -> None:
    config = TrainingConfig(**_given(options, ("device", "progress")))
    from sparse_xmc.app import jobs

    jobs.warmup(config.device, progress=config.progress)


def _memory(options: argparse.Namespace) -> None:
    """Of a head by gradients, or of a direct run; options of the other are refused."""
    of_head, of_run = options.labels is not None, options.train is not None
    for name in _SPLIT if of_head else tuple(_HEAD):
        if hasattr(options, name):
            raise ValueError(f"{_flag(name)} has no effect {'without' if of_head else 'with'} --train")
    if of_run:
        print(_memory_of_run(options))
        return
    config = TrainingConfig(**_given(options, _SHAPE))
    import torch

    from sparse_xmc.models import memory_report

    D, dtype, optimizer = (getattr(options, name, default) for name, default in _HEAD.items())
    report = memory_report(
        options.labels,
        D,
        config.connections(D),
        group_size=config.group_size,
        batch_size=config.batch_size,
        dtype=getattr(torch, dtype),
        optimizer=optimizer,
    )
    print(report)


def _memory_of_run(options: argparse.Namespace) -> Any:
    """The predicted memory of a direct run, as a table."""
    config = TrainingConfig(train=options.train, solver="direct", **_given(options, (*_SHAPE, *_SPLIT)))
    from sparse_xmc.app.direct.foresight import prediction, surveyed, surveyed_test
    from sparse_xmc.app.splits import check_paths, open_data

    check_paths(config.test)
    sizes, test = surveyed(config, open_data(config, config.train, config.train_labels, texts=False)), None
    if sizes is None:
        raise ValueError(f"{config.train} holds neither texts in lines nor features, of whose memory could be told")
    if config.test is not None and (test := surveyed_test(config)) is None:
        raise ValueError(f"{config.test} holds neither texts in lines nor features, of whose memory could be told")
    print(
        f"about {sizes.rows:,} rows, {sizes.labels:,} labels, {sizes.terms:,} terms, {sizes.entries:,} terms of all rows"
    )
    return prediction(config, sizes, test)


_COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "inspect": _inspect,
    "convert": _convert,
    "warmup": _warmup,
    "memory": _memory,
}


_COMPILE = ("train", "evaluate", "predict")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; expected failures end with one line on standard error and status 1."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):  # a stream of another kind takes what it takes
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    options = make_parser().parse_args(arguments)
    resume = _RESUME * (options.command == "train")
    try:
        with announcing_compilation() if options.command in _COMPILE else contextlib.nullcontext():
            _COMMANDS[options.command](options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _failed(f"interrupted{resume}", _interrupt.STATUS)
    except BrokenPipeError:  # who reads the output has seen enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if _interrupt.happened():  # what was being imported made another error of it
            return _failed(f"interrupted{resume}", _interrupt.STATUS)
        reason = _reason(error)
        if reason is None:
            raise
        return _failed(reason + resume * reason.startswith("out of memory"), 1)
    return 0


def _failed(reason: str, status: int) -> int:
    print(f"sparse_xmc: {reason}", file=sys.stderr)
    return status


def _reason(error: Exception) -> str | None:
    """An expected failure in one line; None: it is none."""
    if isinstance(error, ModuleNotFoundError):
        more = advice(error.name)
        return str(error) if more in str(error) else f"{error}: {more}"
    from sparse_xmc.storage.errors import ArtefactError

    if _out_of_memory(error):
        return f"out of memory ({(str(error).splitlines() or ['no more to be had'])[0]})"
    ranks = sys.modules.get("sparse_xmc.distributed.ranks")  # without which none can fail
    expected = (ValueError, ArtefactError, FloatingPointError, OSError) + (
        () if ranks is None else (ranks.RankFailure,)
    )
    return str(error) if isinstance(error, expected) else None


def _out_of_memory(error: BaseException) -> bool:
    """Also of torch, which says so of a CPU by a bare RuntimeError."""
    torch = sys.modules.get("torch")
    kinds = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
