"""`python -m benchmarks`: answers the questions, one table each, and writes them down."""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path

# Before torch's first allocation, for all rivals alike: fresh large allocations are else bound by page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from alexnet_func import allocator
from benchmarks import compilation, ensemble, per_sample, random, timing

QUESTIONS = {
    "random": random.run,
    "compilation": compilation.run,
    "per_sample": per_sample.run,
    "per_sample_gradients": per_sample.run_gradients,
    "ensemble": ensemble.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help=f"of {', '.join(QUESTIONS)}")
    parser.add_argument("--quick", action="store_true", help="small inputs once: whether it runs, not how fast")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write DIR/cpu/<question>.json and .md")
    options = parser.parse_args()
    chosen = [name for name in QUESTIONS if fnmatch.fnmatch(name, options.only)]
    if len(chosen) > 1:  # each in a process of its own, so that none meets what another left
        common = [*["--quick"] * options.quick, *(["--out", str(options.out)] if options.out else [])]
        runs = [subprocess.run([sys.executable, "-m", "benchmarks", "--only", name, *common]) for name in chosen]
        return max(run.returncode != 0 for run in runs)
    if not chosen:
        parser.error(f"no question matches {options.only!r}; there are {', '.join(QUESTIONS)}")
    for name in chosen:
        # Gigabytes of gradients from several rivals would pile up.
        kept = name != "per_sample_gradients" and allocator.keep_freed_memory()
        header = timing.header() + f"; freed memory {'kept' if kept else 'returned to the system'}"
        print(header)
        rows = []
        for part in QUESTIONS[name](options.quick):
            print(timing.table(part), flush=True)
            rows += part
        if options.out is not None:
            folder = options.out / "cpu"
            folder.mkdir(parents=True, exist_ok=True)
            command = f"Made by `python -m benchmarks --only {name} --out {options.out}`" + " --quick" * options.quick
            (folder / f"{name}.md").write_text(f"# {name}\n\n{command}.\n\n{header}\n\n{timing.table(rows)}")
            entries = {"about": header, "rows": [row._asdict() for row in rows]}
            (folder / f"{name}.json").write_text(json.dumps(entries, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
