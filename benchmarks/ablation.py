"""`python -m benchmarks.ablation --data cifar10|DIR`: what each ingredient of `--recipe fast` gives, by leaving it out.

Trains a short run of the recipe, then one for each change of it, by `alexnet train` as a user would; options that it
does not know go to all of them. Writes DIR/<device>/ablation_<data>.md. Differences below a point are within what
another seed changes.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import accuracy, timing

CHANGES: dict[str, tuple[str, ...]] = {
    "the recipe": (),
    "labels as they are": ("--label-smoothing", "0"),
    "shifts by up to 4 pixels, black borders": ("--augmentation", "shift-flip"),
    "no augmentation": ("--augmentation", "none"),
    "a cosine for the rate": ("--schedule", "cosine"),
    "half the rate": ("--lr", "0.05"),
    "momentum 0.95": ("--momentum", "0.95"),
    "batches of 128": ("--batch-size", "128"),
    "batches of 500": ("--batch-size", "500"),
    "AdamW": ("--optimizer", "adamw", "--lr", "0.001", "--momentum", "0.9"),
    "SGD": ("--optimizer", "sgd", "--lr", "0.05", "--momentum", "0.9", "--weight-decay", "5e-4"),
    "ALEXNET_CIFAR": ("--arch", "alexnet_cifar"),
}


class Outcome(NamedTuple):
    """Of a change: test accuracies in 0..1, one a seed, and minutes of training."""

    change: str
    accuracies: tuple[float, ...]
    minutes: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="cifar10", help="as for alexnet train")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1, help="trains with seeds 0 .. N-1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories go")
    parser.add_argument("--out", type=Path, required=True)
    options, training = parser.parse_known_args()
    outcomes = [_outcome(change, options, training) for change in CHANGES]
    data = Path(options.data).name
    given = ["--data", data, "--epochs", str(options.epochs), "--seeds", str(options.seeds)]
    command = f"python -m benchmarks.ablation {shlex.join([*given, '--out', str(options.out), *training])}"
    text = report(data, options.epochs, timing.header(options.device), command, outcomes)
    print(text)
    folder = options.out / options.device
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"ablation_{data}.md").write_text(text)
    return 0


def report(data: str, epochs: int, header: str, command: str, outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each change, with the difference to the first."""
    lines = [f"# `--recipe fast` on {data} for {epochs} epochs, changed", "", f"Made by `{command}`.", "", header, ""]
    seeds = len(outcomes[0].accuracies)
    lines.append(f"Test accuracy of a single view, {'one seed' if seeds == 1 else f'the mean of {seeds} seeds'}.")
    lines += ["", "| change | test accuracy | difference | minutes of training |", "|---|---:|---:|---:|"]
    whole = statistics.mean(outcomes[0].accuracies)
    for outcome in outcomes:
        mean = statistics.mean(outcome.accuracies)
        difference = "" if outcome is outcomes[0] else f"{100 * (mean - whole):+.2f}"
        lines.append(f"| {outcome.change} | {mean:.2%} | {difference} | {outcome.minutes:.1f} |")
    return "\n".join(lines) + "\n"


def _outcome(change: str, options: argparse.Namespace, training: list[str]) -> Outcome:
    accuracies, minutes = [], []
    for seed in range(options.seeds):
        run = options.runs / f"ablation-{list(CHANGES).index(change)}-seed{seed}"
        shared = ["--data", options.data, "--device", options.device, "--seed", str(seed), "--out", str(run)]
        how = ["--recipe", "fast", "--epochs", str(options.epochs), *CHANGES[change], *training]
        accuracy.alexnet("train", *shared, *how)
        last = accuracy.course(run)[-1]
        accuracies.append(last.accuracy)
        minutes.append(last.minutes)
    return Outcome(change, tuple(accuracies), statistics.mean(minutes))


if __name__ == "__main__":
    sys.exit(main())
