"""`python -m benchmarks.accuracy --data NAME|DIR`: trains once for each seed and tabulates the test accuracies, and the
minutes and the floating-point operations after which they were reached.

Runs `alexnet train` and `alexnet eval` as a user would; options it does not know go to `alexnet train`. Writes
DIR/<device>/accuracy_<data>.md and .json, and the curves and first-layer kernels of the first seed beside them; --name
gives them another name than that of the data. Of private runs it tells the epsilon spent, and that an audit proves.
"""

import argparse
import json
import math
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from alexnet_func.arch import Arch
from benchmarks import ceilings, timing

T = TypeVar("T")
R = TypeVar("R")
_MILESTONES = (0.80, 0.85, 0.88, 0.90, 0.99)


class Point(NamedTuple):
    """After an epoch: minutes and operations spent in training steps, and the accuracy of the middle view."""

    minutes: float
    operations: float
    accuracy: float


class Result(NamedTuple):
    """Of one seed: test accuracies in 0..1, of the middle view and of the mean over views; minutes of the whole run.

    `course` has a point for each epoch. Of a private run the `epsilon` spent, and the lower bound `proven` by an audit.
    """

    seed: int
    single: float
    averaged: float
    minutes: float
    course: tuple[Point, ...]
    epsilon: float | None = None
    proven: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="cifar10", help="as for alexnet train")
    parser.add_argument("--seeds", type=int, default=3, help="trains with seeds 0 .. N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, after the first: they share the minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--root", default="data", help="as for alexnet train")
    parser.add_argument("--skip-bad-images", action="store_true", help="as for alexnet train")
    parser.add_argument("--name", help="of the files that are written; the data's unless given")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories go")
    parser.add_argument("--out", type=Path, required=True)
    options, training = parser.parse_known_args()
    for count in ("seeds", "jobs"):
        if getattr(options, count) < 1:
            parser.error(f"--{count} must be at least 1, got {getattr(options, count)}")
    data = Path(options.data).name
    name = options.name or data
    runs = [options.runs / f"{name}-seed{seed}" for seed in range(options.seeds)]
    results = side_by_side(
        lambda seed: _result(seed, runs[seed], options, training), range(options.seeds), options.jobs
    )
    named = ["--name", name] if options.name else []
    named += ["--jobs", str(options.jobs)] if options.jobs > 1 else []
    given = ["--data", data, *named, "--seeds", str(options.seeds), "--out", str(options.out), *training]
    command = f"python -m benchmarks.accuracy {shlex.join(given)}"
    precision = json.loads((runs[0] / "config.json").read_text())["precision"]
    rates = ceilings.describe(ceilings.measure(options.device, precision))
    header = f"{timing.header(options.device)}; in {precision} {rates}"
    header += f"; {options.jobs} runs at a time, which share the minutes" if options.jobs > 1 else ""
    text = report(data, header, command, results)
    print(text)
    folder = options.out / options.device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"accuracy_{name}.md").write_text(text)
    entries = [result._asdict() | {"course": [point._asdict() for point in result.course]} for result in results]
    (folder / f"accuracy_{name}.json").write_text(json.dumps(entries, indent=1) + "\n")
    for picture in ("curves", "filters"):
        shutil.copyfile(runs[0] / f"{picture}.png", folder / f"{picture}_{name}.png")
    return 0


def side_by_side(run: Callable[[T], R], given: Sequence[T], jobs: int) -> list[R]:
    """`run` of each, `jobs` at a time, after the first: what that downloads or compiles, the others find.

    One that raises ends the list: what has not begun does not begin.
    """
    first = run(given[0])
    with ThreadPoolExecutor(jobs) as pool:
        return [first, *pool.map(run, given[1:])]


def report(name: str, header: str, command: str, results: Sequence[Result]) -> str:
    """Markdown: a row for each seed, then mean and standard deviation; a column for each milestone that was reached."""
    first = {r.seed: {m: _first(m, r.course) for m in _MILESTONES} for r in results}
    reached = [m for m in _MILESTONES if any(points[m] for points in first.values())]
    lines = [f"# Test accuracy on {name}", "", f"Made by `{command}`.", "", header, ""]
    lines.append("Minutes are of the whole run, and of training alone until the accuracy of a single view was reached.")
    lines.append(
        "Views are crops and mirror images; the image and its mirror image where a crop would be the whole image."
    )
    lines.append("Tera-operations (Top) are those of the products in its steps, two for each multiply-accumulate.")
    private = [("epsilon", "epsilon"), ("proven", "epsilon by audit, at least")]
    told = [(field, heading) for field, heading in private if getattr(results[0], field) is not None]
    headings = ["seed", "single view", "mean over views", "minutes", *(f"to {m:.0%}" for m in reached)]
    headings += [heading for _, heading in told]
    lines += ["", f"| {' | '.join(headings)} |", "|---|" + "---:|" * (len(headings) - 1)]
    for r in results:
        cells = [f"{r.single:.2%}", f"{r.averaged:.2%}", f"{r.minutes:.1f}"]
        cells += [_told(first[r.seed][m]) for m in reached]
        cells += [f"{getattr(r, field):.3f}" for field, _ in told]
        lines.append(f"| {r.seed} | {' | '.join(cells)} |")
    columns = [[r.single for r in results], [r.averaged for r in results]]
    means = " | ".join(f"{statistics.mean(column):.2%}" for column in columns)
    rest = " |" * (len(reached) + len(told))
    lines.append(f"| **mean** | {means} | {statistics.mean(r.minutes for r in results):.1f} |{rest}")
    if len(results) > 1:
        lines.append(f"| standard deviation | {' | '.join(f'{statistics.stdev(c):.2%}' for c in columns)} | |{rest}")
    return "\n".join(lines) + "\n"


def _first(milestone: float, course: Sequence[Point]) -> Point | None:
    return next((point for point in course if point.accuracy >= milestone), None)


def _told(point: Point | None) -> str:
    return "" if point is None else f"{point.minutes:.1f} ({point.operations / 1e12:.0f} Top)"


def course(run: Path) -> tuple[Point, ...]:
    """`Result.course` of a run directory; an epoch without a rate, resumed at its end, counts as fast as the mean."""
    config = json.loads((run / "config.json").read_text())
    images, operations = config["batch_size"], ceilings.step_operations(Arch.from_json(config["arch"]))
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points, minutes, before = [], 0.0, 0
    usual = statistics.harmonic_mean([e["images_per_second"] for e in epochs if e["images_per_second"]] or [math.inf])
    for epoch in epochs:
        minutes += (epoch["step"] - before) * images / (epoch["images_per_second"] or usual) / 60
        before = epoch["step"]
        points.append(Point(minutes, epoch["step"] * images * operations, epoch["test_accuracy"]))
    return tuple(points)


def _result(seed: int, run: Path, options: argparse.Namespace, training: list[str]) -> Result:
    shared = ["--data", options.data, "--root", options.root, "--device", options.device]
    shared += ["--skip-bad-images"] * options.skip_bad_images
    started = time.perf_counter()
    lines = alexnet("train", *shared, "--seed", str(seed), "--out", str(run), *training)
    minutes = (time.perf_counter() - started) / 60
    evaluations = [alexnet("eval", str(run), *shared, *view) for view in ((), ("--ten-crop",))]
    single, averaged = (accuracy(told) / 100 for told in evaluations)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    proven = _found(r"audit of .* at least ([\d.]+)", lines, None)
    return Result(seed, single, averaged, minutes, course(run), last.get("epsilon"), proven and float(proven))


def accuracy(lines: Sequence[str]) -> float:
    """In per cent, as `alexnet eval` tells it on its last line."""
    return float(_found(r"test accuracy ([\d.]+) %", lines[-1:]))


def _found(pattern: str, lines: Sequence[str], *default: Any) -> Any:
    found = [match[1] for line in lines if (match := re.match(pattern, line))]
    if not found and not default:
        raise SystemExit(f"no line of alexnet's output is {pattern}")
    return found[-1] if found else default[0]


def alexnet(*arguments: str) -> list[str]:
    """The lines that the command tells, which are shown too."""
    command = [sys.executable, "-m", "alexnet_func", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return lines


if __name__ == "__main__":
    sys.exit(main())
