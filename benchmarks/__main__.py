"""`python -m benchmarks`: answers the questions, one table each."""

import argparse
import fnmatch
import sys

from benchmarks import compilation, random, timing

QUESTIONS = {"random": random.run, "compilation": compilation.run}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help=f"of {', '.join(QUESTIONS)}")
    options = parser.parse_args()
    chosen = [name for name in QUESTIONS if fnmatch.fnmatch(name, options.only)]
    if not chosen:
        parser.error(f"no question matches {options.only!r}; there are {', '.join(QUESTIONS)}")
    print(timing.header())
    for name in chosen:
        print(QUESTIONS[name](), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
