"""The command line of the fuzzers; see the package."""

import argparse
import sys
import warnings
from collections import Counter

from tests.fuzz.harness import FuzzFailure, fuzz, targets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help="targets (default: all)")
    parser.add_argument("--count", type=int, default=10_000, help="inputs of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="most time for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="show the names of the targets")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    known, failed = targets(), 0
    if arguments.list:
        print("\n".join(known))
        return 0
    for name in arguments.names or known:
        outcomes: Counter[str] = Counter()
        try:
            count = fuzz(
                name,
                known[name],
                arguments.count,
                first=arguments.first,
                seed=arguments.seed,
                seconds=arguments.seconds,
                outcomes=outcomes,
            )
            said = "".join(f", {number:,} {outcome}" for outcome, number in sorted(outcomes.items()))
            print(f"{name}: {count:,} inputs, nothing found{said}", flush=True)
        except FuzzFailure as failure:
            failed += 1
            print(f"{name}: {failure}", flush=True)
            if arguments.count == 1:
                raise
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
