"""`python -m benchmarks.accuracy --data NAME|DIR`: trains once for each seed and tabulates the test accuracies.

Runs `alexnet train` and `alexnet eval` as a user would; options it does not know go to `alexnet train`. Writes
DIR/<device>/accuracy_<data>.md and .json, and the curves and first-layer kernels of the first seed beside them.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import timing


class Result(NamedTuple):
    """Of one seed: test accuracies in 0..1, of the middle view and of the mean over views, and minutes of training."""

    seed: int
    single: float
    averaged: float
    minutes: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--data", default="cifar10", help="as for alexnet train")
    parser.add_argument("--seeds", type=int, default=3, help="trains with seeds 0 .. N-1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories go")
    parser.add_argument("--out", type=Path, required=True)
    options, training = parser.parse_known_args()
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    name = Path(options.data).name
    runs = [options.runs / f"{name}-seed{seed}" for seed in range(options.seeds)]
    results = [_result(seed, run, options, training) for seed, run in enumerate(runs)]
    given = ["--data", name, "--seeds", str(options.seeds), "--out", str(options.out), *training]
    text = report(name, f"{timing.header(options.device)}", f"python -m benchmarks.accuracy {' '.join(given)}", results)
    print(text)
    folder = options.out / options.device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"accuracy_{name}.md").write_text(text)
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    entries = [{**result._asdict(), "epochs": epochs} for result, epochs in zip(results, metrics, strict=True)]
    (folder / f"accuracy_{name}.json").write_text(json.dumps(entries, indent=1) + "\n")
    for picture in ("curves", "filters"):
        shutil.copyfile(runs[0] / f"{picture}.png", folder / f"{picture}_{name}.png")
    return 0


def report(name: str, header: str, command: str, results: Sequence[Result]) -> str:
    """Markdown: a row for each seed, then mean and standard deviation."""
    lines = [f"# Test accuracy on {name}", "", f"Made by `{command}`.", "", header, ""]
    lines += ["| seed | single view | mean over flips and crops | minutes |", "|---|---:|---:|---:|"]
    lines += [f"| {r.seed} | {r.single:.2%} | {r.averaged:.2%} | {r.minutes:.1f} |" for r in results]
    columns = [[r.single for r in results], [r.averaged for r in results]]
    means = " | ".join(f"{statistics.mean(column):.2%}" for column in columns)
    lines.append(f"| **mean** | {means} | {statistics.mean(r.minutes for r in results):.1f} |")
    if len(results) > 1:
        lines.append(f"| standard deviation | {' | '.join(f'{statistics.stdev(c):.2%}' for c in columns)} | |")
    return "\n".join(lines) + "\n"


def _result(seed: int, run: Path, options: argparse.Namespace, training: list[str]) -> Result:
    shared = ["--data", options.data, "--device", options.device]
    started = time.perf_counter()
    _alexnet("train", *shared, "--seed", str(seed), "--out", str(run), *training)
    minutes = (time.perf_counter() - started) / 60
    single, averaged = (_alexnet("eval", str(run), *shared, *view) for view in ((), ("--ten-crop",)))
    return Result(seed, single, averaged, minutes)


def _alexnet(*arguments: str) -> float:
    """The accuracy that the command's last line tells."""
    command = [sys.executable, "-m", "alexnet_func", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    found = re.match(r"test accuracy ([\d.]+) %", lines[-1]) if lines else None
    if process.returncode or found is None:
        raise SystemExit(f"{' '.join(command)} failed")
    return float(found[1]) / 100


if __name__ == "__main__":
    sys.exit(main())
