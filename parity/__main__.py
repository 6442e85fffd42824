"""`python -m parity`: runs the problems, prints a line each, and exits with 1 if any fails."""

import argparse
import fnmatch
import platform
import sys
import time

import torch
import torchvision

from parity import criteria, problems


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m parity", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help="run the problems whose name matches")
    parser.add_argument("--list", action="store_true", help="list the problems and stop")
    options = parser.parse_args()

    chosen = [problem for problem in problems.problems() if fnmatch.fnmatch(problem.name, options.only)]
    if not chosen:
        parser.error(f"no problem matches {options.only!r}; --list shows them")
    if options.list:
        print(*(problem.name for problem in chosen), sep="\n")
        return 0

    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {platform.machine()} CPU, bitwise")
    failed = 0
    for problem in chosen:
        started = time.perf_counter()
        verdict = criteria.bitwise(*problem.run())
        failed += not verdict.passed
        mark = "pass" if verdict.passed else "FAIL"
        print(f"{mark}  {problem.name:<50} {verdict.detail}  ({time.perf_counter() - started:.1f} s)", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
