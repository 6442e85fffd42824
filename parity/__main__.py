"""`python -m parity`: solves the problems, prints a line each, writes the report, and exits with 1 if any fails."""

import argparse
import fnmatch
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from parity import compute, problems, report
from parity.compositions import table
from parity.compositions.setting import Subject
from parity.criteria import Verdict

RESULTS = Path("parity") / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m parity", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the rows that together take under three minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where ours and the modules run")
    parser.add_argument("--only", metavar="GLOB", default="*", help="the rows whose name matches")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help=f"write DIR/<device>.json and .md; a whole run writes to {RESULTS}"
    )
    parser.add_argument("--plot", action="store_true", help="also draw errors by depth, and trajectories, as PNG")
    options = parser.parse_args()

    chosen = [
        problem
        for problem in problems.problems(options.device)
        if fnmatch.fnmatchcase(problem.name, options.only) and (problem.quick or not options.quick)
    ]
    functions = list(table.chosen(options.only, options.quick)) if options.device == "cpu" else []
    if not (chosen or functions):
        parser.error(f"no problem matches {options.only!r}; --list shows them")
    if options.list:
        print(*(problem.name for problem in chosen), sep="\n")
        for subject, transforms in functions:
            print(*(table.name(subject, transform) for transform in transforms), sep="\n")
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA device", file=sys.stderr)
        return 1

    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the oracle; on a GPU its uniforms round otherwise
    # torch's own, from inside jvp.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    about = {"command": shlex.join(["python", "-m", "parity", *sys.argv[1:]]), **report.header(options.device)}
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n")
    rows = _on_terminal(chosen, options.device) if sys.stdout.isatty() else _as_lines(chosen, options.device)
    print(report.summary(rows))
    cells = _compositions(functions)
    whole = options.only == "*" and not options.quick
    folder = options.out or (RESULTS if whole else None)
    if folder is not None:
        report.write(rows, cells, about, folder, options.device)
    if options.plot:
        report.plot(rows, folder or Path(), options.device)
    failed = any(row.status == "FAIL" for row in rows) or any(cell.outcome == "WRONG" for cell in cells)
    return 1 if failed else 0


def _compositions(functions: Sequence[tuple[Subject, list[str]]]) -> list[table.Cell]:
    """A line a function, and one for each cell that is wrong."""
    cells = []
    for subject, transforms in functions:
        row = table.row(subject, transforms)
        cells += row
        wrong = [cell for cell in row if cell.outcome == "WRONG"]
        seconds = sum(cell.seconds for cell in row)
        print(f"{'FAIL' if wrong else 'pass'}  {subject.name}: {table.summary(row)}  ({seconds:.1f} s)", flush=True)
        for cell in wrong:
            print(f"FAIL  {table.name(subject, cell.transform)}: {cell.detail}")
    if cells:
        print(f"compositions: {table.summary(cells)}")
    return cells


def _as_lines(chosen: Sequence[problems.Problem], device: str) -> list[report.Row]:
    rows = []
    for problem in chosen:
        rows.append(_row(problem, device))
        print(report.line(rows[-1]), flush=True)
    return rows


def _on_terminal(chosen: Sequence[problems.Problem], device: str) -> list[report.Row]:
    """What fails as it comes, below it a bar; at the end the table."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    rows = []
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=len(chosen))
        for problem in chosen:
            bar.update(task, description=problem.name)
            rows.append(_row(problem, device))
            if rows[-1].status == "FAIL":
                console.print(report.line(rows[-1]), style="red", highlight=False)
            bar.advance(task)
    console.print(report.table(rows), report.LEGEND, sep="\n", highlight=False)
    return rows


def _row(problem: problems.Problem, device: str) -> report.Row:
    started = time.perf_counter()
    verdict, reason = None, ""
    try:
        verdict = compute.solve(problem, device)
    except ImportError as error:
        reason = f"{error.name} is not installed"
    except Exception as error:  # a row that cannot be computed fails, and the others still run
        verdict = Verdict(False, math.inf, "", f"{type(error).__name__}: {error}".split("\n")[0])
    return report.Row(problem, verdict, reason, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
