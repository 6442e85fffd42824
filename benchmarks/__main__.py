"""`python -m benchmarks`: answers the questions, one table each, and writes them down."""

import argparse
import fnmatch
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from alexnet_func import allocator, precision
from benchmarks import (
    as_installed,
    ceilings,
    compilation,
    ensemble,
    forward,
    input_pipeline,
    instrument,
    layers,
    memory,
    per_sample,
    profile,
    random,
    report,
    scaling,
    startup,
    timing,
    train_step,
)

QUESTIONS = {
    "forward": forward.run,
    "train_step": train_step.run,
    "layers": layers.run,
    "as_installed": as_installed.run,
    "memory": memory.run,
    "profile": profile.run,
    "per_sample": per_sample.run,
    "per_sample_gradients": per_sample.run_gradients,
    "instrument": instrument.run,
    "ensemble": ensemble.run,
    "random": random.run,
    "input_pipeline": input_pipeline.run,
    "scaling": scaling.run,
    "compilation": compilation.run,
    "startup": startup.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help=f"of {', '.join(QUESTIONS)}")
    parser.add_argument("--list", action="store_true", help="list the questions and stop")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small inputs once: whether it runs, not how fast")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write DIR/<device>/<question>.json, .md and .png")
    parser.add_argument("--compare", metavar="JSON", type=Path, help="set beside a file that --out wrote before")
    options = parser.parse_args()
    chosen = [name for name in QUESTIONS if fnmatch.fnmatch(name, options.only)]
    if not chosen:
        parser.error(f"no question matches {options.only!r}; there are {', '.join(QUESTIONS)}")
    if options.list:
        print(*chosen, sep="\n")
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if options.compare is not None and not options.compare.is_file():
        parser.error(f"--compare {options.compare}: no such file")
    allocator.use_huge_pages()  # for all rivals alike
    if len(chosen) > 1:  # each in a process of its own, so that none meets what another left
        return max(subprocess.run(_command(sys.executable, name, options)).returncode != 0 for name in chosen)
    return _answer(chosen[0], options)


def _answer(name: str, options: argparse.Namespace) -> int:
    header = timing.header(options.device)
    if name != "as_installed":
        kept = allocator.keep_freed_memory()
        header += f"; freed memory {'kept' if kept else 'returned to the system'}"
    if name in ("forward", "train_step", "layers"):
        header += "; " + ceilings.describe(ceilings.measure(options.device))
    if name == "layers":
        header += "; in bfloat16 " + ceilings.describe(ceilings.measure(options.device, "bf16"))
    print(header)
    rows = []
    with precision.tf32(False):  # but for cases that say so: checks of float32 would fail
        for part in QUESTIONS[name](options.quick, options.device):
            print(report.table(part), flush=True)
            rows += part
    if options.compare is not None:
        print(report.compared(rows, options.compare))
    if options.out is not None:
        command = " ".join(_command("python", name, options))
        report.write(options.out / options.device, name, header, command, rows)
    return 0


def _command(python: str, name: str, options: argparse.Namespace) -> Sequence[str]:
    """How to answer one question alone."""
    command = [python, "-m", "benchmarks", "--only", name]
    command += ["--device", options.device] * (options.device != "cpu") + ["--quick"] * options.quick
    command += ["--out", str(options.out)] if options.out else []
    return command + (["--compare", str(options.compare)] if options.compare else [])


if __name__ == "__main__":
    sys.exit(main())
