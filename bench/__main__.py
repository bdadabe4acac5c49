"""Command line of the benchmarks: ``python -m bench run|plot|table|...``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.environment import REPOSITORY

DEFAULT_FOLDER = REPOSITORY / "reports" / "local"


def _run(arguments: argparse.Namespace) -> int:
    from bench import suites
    from bench.runner import run_suite

    device = arguments.device or _default_device()
    limit = None if arguments.memory_limit_gib is None else int(arguments.memory_limit_gib * 2**30)
    tasks = suites.build(arguments.suite, device, arguments.providers, limit)
    if arguments.list:
        for task in tasks:
            print(task.kind, task.point, " ".join(task.providers))
        return 0
    run = run_suite(arguments.suite, tasks, arguments.out, fresh=arguments.fresh, timeout=arguments.timeout)
    print(f"run {run} is complete: {arguments.out}")
    return 0


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _plot(arguments: argparse.Namespace) -> int:
    from bench.plotting import plot_folder

    for path in plot_folder(arguments.out):
        print(path)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from bench.report import write_table

    print(write_table(arguments.out))
    return 0


def _train_demo(arguments: argparse.Namespace) -> int:
    from bench.training_demo import main

    return main(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from bench import suites
    from bench.runner import run_suite

    tasks = suites.build("demo", _default_device())
    run_suite("demo", tasks, arguments.out, fresh=False, timeout=arguments.timeout)
    return _plot(arguments) or _table(arguments) or _train_demo(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split(":")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, handler, help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.set_defaults(handler=handler)
        sub.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="result folder (default: reports/local)")
        return sub

    run = verb("run", _run, "Measure a suite and append its rows; continues an interrupted run.")
    run.add_argument("--suite", default="demo", choices=_suite_names(), help="which points (default: demo)")
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    run.add_argument("--providers", nargs="+", default=(), metavar="NAME", help="only these")
    run.add_argument("--fresh", action="store_true", help="start anew even if the last run is unfinished")
    run.add_argument("--timeout", type=float, default=300.0, help="seconds that one process may take (default: 300)")
    run.add_argument("--memory-limit-gib", type=float, help="what counts as too large (default: the free memory)")
    run.add_argument("--list", action="store_true", help="print the tasks and stop")
    verb("plot", _plot, "Draw the figures from stored rows; measures nothing.")
    verb("table", _table, "Write the tables from stored rows; measures nothing.")
    _add_training(verb("train_demo", _train_demo, "Train a fixed fan-in and a dense head on real data, side by side."))
    demo = verb("demo", _demo, "The demo suite, its figures and tables, and the training run.")
    demo.add_argument("--timeout", type=float, default=300.0, help=argparse.SUPPRESS)
    _add_training(demo)
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=("Bibtex", "docstrings", "EURLEX57K"), help="default: Bibtex where present")
    parser.add_argument("--heads", nargs="+", choices=("fixed", "dense"), default=("fixed", "dense"))
    parser.add_argument("--epochs", type=int, help="default: by data set")


def _suite_names() -> tuple[str, ...]:
    return ("smoke", "demo", "quick", "target", "full")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.handler(arguments)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
