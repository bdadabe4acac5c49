"""Command line of the benchmarks: ``python -m bench run|plot|table|...``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from bench.environment import REPOSITORY

Handler = Callable[[argparse.Namespace], int]
DEFAULT_FOLDER = REPOSITORY / "reports" / "local"


def _run(arguments: argparse.Namespace) -> int:
    from bench import suites, summary
    from bench.rows import RowFile
    from bench.runner import run_suite

    device = arguments.device or _default_device()
    limit = None if arguments.memory_limit_gib is None else int(arguments.memory_limit_gib * 2**30)
    name, plan = arguments.suite or "demo", None
    if name == "host":
        from bench import host

        return host.measure(arguments.out)
    axes = {field: getattr(arguments, field) for field in _AXES if getattr(arguments, field) is not None}
    if axes:
        if arguments.suite or "L" not in axes:
            raise ValueError("sizes of your own need --labels and take no --suite")
        axes = {"mode": arguments.modes or ["step"], **axes}
        name = "own " + json.dumps(axes)
        plan = suites.own_shapes(axes, arguments.providers, arguments.kinds, device)
    elif arguments.modes:
        raise ValueError("--modes goes with sizes of your own: give --labels")
    tasks = suites.build(plan or suites.SUITES[name](device), arguments.providers, limit, arguments.energy)
    if arguments.list:
        for task in tasks:
            print(task.kind, task.point, " ".join(task.providers))
        return 0
    run = run_suite(name, tasks, arguments.out, fresh=arguments.fresh, timeout=arguments.timeout)
    print(f"\n{summary.write(RowFile(arguments.out).read(), run, arguments.out)}\n")
    print(f"run {run} is complete: {arguments.out} (rows.jsonl, summary.md; figures: python -m bench plot)")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from bench import compare

    a, b = arguments.a, arguments.b
    if Path(a).is_dir() and Path(b).is_dir():
        lines = compare.folders(Path(a), Path(b))
    else:
        lines = compare.commits(a, b, arguments.rounds, arguments.run.split())
    print(f"time of {a} over time of {b}: median [range]; above 1 the second is faster")
    print("\n".join(lines))
    return 0


MODES = (
    "forward",
    "backward_input",
    "backward_weight",
    "full",
    "step",
    "softmax",
    "topk",
    "rewire",
)  # those of bench.point
# a point's field: flag, type and help of a run of one's own sizes
_AXES: dict[str, tuple[str, type, str]] = {
    "L": ("--labels", int, "L, labels: a run of your own sizes"),
    "D": ("--in-features", int, "D, input size (default: 768)"),
    "K": ("--fan-in", int, "K, connections per label (default: 32)"),
    "G": ("--group-size", int, "G, labels that share connections (default: 1)"),
    "B": ("--batch-size", int, "B, rows (default: 64)"),
    "dtype": ("--dtype", str, "float32, bfloat16, float16 or float64 (default: float32)"),
}


def _several(kind: type, choices: Sequence[str] = ()) -> Callable[[str], list[object]]:
    """A parser of values separated by commas."""

    def parse(text: str) -> list[object]:
        parts = [part for part in text.split(",") if part]
        wrong = [part for part in parts if not (part.replace("_", "").lstrip("-").isdigit() if kind is int else True)]
        if wrong or not parts:
            what = "whole numbers" if kind is int else "names"
            raise argparse.ArgumentTypeError(f"must be {what} separated by commas, got {text!r}")
        unknown = [part for part in parts if choices and part not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(choices)}, got {unknown[0]!r}")
        return [kind(part.replace("_", "")) if kind is int else part for part in parts]

    return parse


def _positive(kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
        return value

    return parse


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message}\n")


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


def _report(arguments: argparse.Namespace) -> int:
    from bench.report_index import regenerate

    print(regenerate())
    return 0


def _first_screen(arguments: argparse.Namespace) -> int:
    from bench import first_screen

    first_screen.write()
    return 0


def _environment(arguments: argparse.Namespace) -> int:
    from bench.environment import describe

    text = json.dumps(describe(_default_device()), indent=1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "environment.json").write_text(text + "\n")
    print(text)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from bench.check import check_all

    return check_all(arguments.providers, arguments.modes, arguments.device or _default_device())


def _tune(arguments: argparse.Namespace) -> int:
    import torch

    from bench.tune import tune

    # in the suite's smoke mode there is nothing to search, which is no failure
    if arguments.small and not torch.cuda.is_available():
        return 0
    return tune(arguments.out, small=arguments.small, ship=arguments.ship)


def _end_to_end(arguments: argparse.Namespace) -> int:
    from bench.end_to_end import measure

    return measure(arguments.out, arguments.device or _default_device(), small=arguments.small)


def _profile(arguments: argparse.Namespace) -> int:
    from bench.end_to_end import profile

    return profile(arguments.out, arguments.device or _default_device(), small=arguments.small)


def _atomics(arguments: argparse.Namespace) -> int:
    from bench.atomics import measure

    return measure(arguments.out, arguments.device or _default_device(), small=arguments.small)


def _two_ranks(arguments: argparse.Namespace) -> int:
    from bench.two_ranks import measure

    return measure(arguments.out, arguments.device or _default_device(), small=arguments.small)


def _edges(arguments: argparse.Namespace) -> int:
    from bench.edges import read, sweep
    from bench.edges_report import write

    code = sweep(arguments.out, arguments.targets, arguments.match, arguments.jobs)
    if arguments.report:
        write(read(arguments.out), arguments.report)
    return code


def _gpu_report(arguments: argparse.Namespace) -> int:
    from bench.gpu_report import make

    print(make(arguments.out, arguments.reports))
    return 0


def _static(arguments: argparse.Namespace) -> int:
    from bench.static_analysis import main

    return main(arguments.out)


def _train_demo(arguments: argparse.Namespace) -> int:
    from bench.studies.training_demo import main

    return main(arguments)


def _demo(arguments: argparse.Namespace) -> int:
    from bench import suites, summary
    from bench.rows import RowFile
    from bench.runner import run_suite
    from bench.studies import text_demo

    tasks = suites.build(suites.demo(_default_device()))
    run = run_suite("demo", tasks, arguments.out, fresh=False, timeout=arguments.timeout)
    outcome = _plot(arguments) or _table(arguments)
    text_demo.run(arguments.data, arguments.out)
    if arguments.heads or arguments.epochs:
        outcome = outcome or _train_demo(arguments)
    print(
        f"\n{summary.write(RowFile(arguments.out).read(), run, arguments.out)}\n\nfigures: {arguments.out / 'figures'}"
    )
    return outcome


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m bench", description=__doc__.split(":")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, handler: Handler, help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.set_defaults(handler=handler)
        sub.add_argument(
            "--provider-file", type=Path, action="append", default=[], help="Python file with PROVIDERS of your own"
        )
        sub.add_argument("--out", type=Path, default=DEFAULT_FOLDER, help="result folder (default: reports/local)")
        return sub

    run = verb("run", _run, "Measure a suite and append its rows; continues an interrupted run.")
    run.add_argument("--suite", choices=_suite_names(), help="which points (default: demo)")
    for field, (flag, kind, help) in _AXES.items():
        run.add_argument(flag, dest=field, type=_several(kind), metavar="N,...", help=help)
    run.add_argument(
        "--modes", type=_several(str, MODES), help="of own sizes: step, forward, full, topk, ... (default: step)"
    )
    run.add_argument(
        "--kinds",
        type=_several(str, ("time", "memory")),
        default=["time", "memory"],
        help="of own sizes: time, memory (default: both)",
    )
    run.add_argument("--energy", action="store_true", help="also joules per call, where the driver tells them")
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    run.add_argument("--providers", nargs="+", default=(), metavar="NAME", help="only these")
    run.add_argument("--fresh", action="store_true", help="start anew even if the last run is unfinished")
    run.add_argument(
        "--timeout", type=_positive(float), default=300.0, help="seconds that one process may take (default: 300)"
    )
    run.add_argument(
        "--memory-limit-gib", type=_positive(float), help="what counts as too large (default: the free memory)"
    )
    run.add_argument("--list", action="store_true", help="print the tasks and stop")
    compare = verb("compare", _compare, "Ratios of two folders of rows, or of two commits measured in alternation.")
    compare.add_argument("a", help="result folder or commit")
    compare.add_argument("b", help="result folder or commit")
    compare.add_argument(
        "--rounds", type=_positive(int), default=5, help="commits: how often each is measured (default: 5)"
    )
    compare.add_argument("--run", default="--suite target", help="commits: arguments of run (default: --suite target)")
    verb("plot", _plot, "Draw the figures from stored rows; measures nothing.")
    verb("table", _table, "Write the tables from stored rows; measures nothing.")
    verb("report", _report, "Regenerate reports/README.md with every figure and table from stored rows.")
    verb("first_screen", _first_screen, "Write the README's tables from the stored rows; measures nothing.")
    verb("environment", _environment, "Print versions and hardware, and store them in the result folder.")
    check = verb("check", _check, "Compare providers with a dense float64 computation; times nothing.")
    check.add_argument("--providers", nargs="+", default=(), metavar="NAME", help="default: all")
    check.add_argument("--modes", nargs="+", default=(), metavar="MODE", help="default: all")
    verb("static", _static, "Compile every Triton kernel offline and tabulate what came out.")
    tune = verb("tune", _tune, "Search kernel configurations in full on this GPU and report the gain.")
    step = verb("end_to_end", _end_to_end, "Time a training step of encoder and head.")
    profiled = verb("profile", _profile, "Profile a fused step.")
    atomics = verb("atomics", _atomics, "Time atomic additions and gathers in a GPU's L2 cache.")
    tune.add_argument("--ship", action="store_true", help="also write the winners into the package")
    ranks = verb("two_ranks", _two_ranks, "Compare a head whose labels lie on several GPUs with the whole head on one.")
    edges = verb("edges", _edges, "Compile shapes at the edge offline and list what spills, races or does not fit.")
    edges.add_argument("--targets", type=_several(str), default=["sm_80", "sm_90", "gfx942"], help="default: all three")
    edges.add_argument("--match", default="", help="only calls that match, e.g. '^step' (default: all)")
    edges.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    edges.add_argument("--report", type=Path, help="also write a page about all rows in the result folder")
    for sub in (tune, step, profiled, atomics, ranks):
        sub.add_argument("--small", action="store_true", help="tiny sizes, to try the command")
    for sub in (check, step, profiled, atomics, ranks):
        sub.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    gpu = verb("gpu_report", _gpu_report, "Turn a folder of bench/gpu_suite.sh into reports/<gpu>/.")
    gpu.add_argument("--reports", type=Path, default=REPOSITORY / "reports", help="where to (default: reports)")
    _add_training(verb("train_demo", _train_demo, "Train a fixed fan-in and a dense head on real data, side by side."))
    demo = verb(
        "demo", _demo, "The demo suite, its figures and tables, and a model trained from files with the defaults."
    )
    demo.add_argument("--timeout", type=float, default=300.0, help=argparse.SUPPRESS)
    _add_training(demo)
    return parser


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=("Bibtex", "docstrings", "EURLEX57K"), help="default: Bibtex where present")
    parser.add_argument("--heads", nargs="+", choices=("fixed", "dense"), default=(), help="heads trained side by side")
    parser.add_argument("--epochs", type=_positive(int), help="of the heads side by side (default: by data set)")


def _suite_names() -> tuple[str, ...]:
    from bench.suites import SUITES

    return (*SUITES, "host")


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    for message in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled"):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    try:
        if arguments.provider_file:
            from bench.providers import add_files

            add_files(arguments.provider_file)
        return arguments.handler(arguments)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130


def _end(*_: object) -> None:
    """What was begun is tidied up as at any other end."""
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
