"""`python -m benchmarks.ablation --data cifar10|DIR`: what each ingredient of `--recipe fast` gives, by leaving it out.

Trains a short run of the recipe, then one for each change of it or of its network, by `alexnet train` as a user would;
options that it does not know go to all of them. Writes DIR/<device>/ablation_<data>.md, of several seeds with the
standard error of a difference.
"""

import argparse
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from alexnet_func.arch import (
    ALEXNET_SMALL,
    LRN,
    Arch,
    CenteredHeNormal,
    Constant,
    Conv,
    Dropout,
    HeNormal,
    Layer,
    Linear,
    MaxPool,
)
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
    "an average of the weights over 100 steps": ("--ema", "0.99"),
    "ALEXNET_CIFAR": ("--arch", "alexnet_cifar"),
}


def _network(change: Callable[[Layer], Sequence[Layer]]) -> Arch:
    """ALEXNET_SMALL with each layer exchanged for others."""
    features, classifier = (
        tuple(new for layer in part for new in change(layer))
        for part in (ALEXNET_SMALL.features, ALEXNET_SMALL.classifier)
    )
    return ALEXNET_SMALL.replace(features=features, classifier=classifier)


def _not_centred(layer: Layer) -> Sequence[Layer]:
    drawn = isinstance(layer, Conv | Linear) and layer.weight == CenteredHeNormal()
    return [replace(layer, weight=HeNormal()) if drawn else layer]  # type: ignore[arg-type]


def _with_widths(*widths: int) -> Arch:
    left = iter(widths)
    return _network(lambda layer: [replace(layer, out_channels=next(left)) if isinstance(layer, Conv) else layer])


_FIRST_5X5 = Conv(64, 5, padding=1, weight=CenteredHeNormal(), bias=Constant(0.0))
_LRN_2012 = LRN(5, 1e-4, 0.75, 2.0, "sum")  # section 3.3

NETWORKS: dict[str, Arch] = {
    "weights that are not centred": _network(_not_centred),
    "a first kernel of 5x5": _network(lambda layer: [_FIRST_5X5 if layer is ALEXNET_SMALL.features[0] else layer]),
    "overlapping pooling, 3x3 by 2": _network(
        lambda layer: [MaxPool(3, 2, ceil_mode=True) if isinstance(layer, MaxPool) else layer]
    ),
    "response normalisation after pooling": _network(
        lambda layer: [layer, _LRN_2012] if isinstance(layer, MaxPool) else [layer]
    ),
    "dropout of 0.2 before the hidden linear layers": _network(
        lambda layer: [Dropout(0.2), layer] if isinstance(layer, Linear) and layer.out_features else [layer]
    ),
    "the widths of 2012: 96, 256, 384, 384, 256": _with_widths(96, 256, 384, 384, 256),
    "half the widths": _with_widths(32, 64, 128, 128, 128),
}


class Outcome(NamedTuple):
    """Of a change: test accuracies in 0..1, one a seed, and the operations of a run's products."""

    change: str
    accuracies: tuple[float, ...]
    operations: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="cifar10", help="as for alexnet train")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1, help="trains with seeds 0 .. N-1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, after the first")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run directories go")
    parser.add_argument("--out", type=Path, required=True)
    options, training = parser.parse_known_args()
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    outcomes = _outcomes(options, training)
    data = Path(options.data).name
    given = ["--data", data, "--epochs", str(options.epochs), "--seeds", str(options.seeds)]
    given += ["--jobs", str(options.jobs)] if options.jobs > 1 else []
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
    if seeds > 1:
        within = math.sqrt(statistics.mean(statistics.variance(outcome.accuracies) for outcome in outcomes))
        error = within * math.sqrt(2 / seeds)
        lines.append(
            f"Standard deviation between seeds, pooled over rows: {100 * within:.2f} points; "
            f"standard error of a difference: {100 * error:.2f} points."
        )
    lines.append(
        "Tera-operations (Top) are those of the products in the run's steps, two for each multiply-accumulate."
    )
    lines += ["", "| change | test accuracy | difference | Top |", "|---|---:|---:|---:|"]
    whole = statistics.mean(outcomes[0].accuracies)
    for outcome in outcomes:
        mean = statistics.mean(outcome.accuracies)
        difference = "" if outcome is outcomes[0] else f"{100 * (mean - whole):+.2f}"
        lines.append(f"| {outcome.change} | {mean:.2%} | {difference} | {outcome.operations / 1e12:.0f} |")
    return "\n".join(lines) + "\n"


def _outcomes(options: argparse.Namespace, training: list[str]) -> list[Outcome]:
    options.runs.mkdir(parents=True, exist_ok=True)
    changes = dict(CHANGES)
    for number, (change, network) in enumerate(NETWORKS.items(), len(CHANGES)):
        path = options.runs / f"ablation-{number}.json"
        path.write_text(network.to_json())
        changes[change] = ("--arch", str(path))
    # Seed by seed: what one has compiled, the next finds in the compiler's cache.
    runs = [(n, words, seed) for seed in range(options.seeds) for n, words in enumerate(changes.values())]
    points = accuracy.side_by_side(lambda run: _end(*run, options, training), runs, options.jobs)
    rows = [points[number :: len(changes)] for number in range(len(changes))]
    return [
        Outcome(change, tuple(point.accuracy for point in row), row[0].operations)
        for change, row in zip(changes, rows, strict=True)
    ]


def _end(
    number: int, words: tuple[str, ...], seed: int, options: argparse.Namespace, training: list[str]
) -> accuracy.Point:
    """Where a change's run of a seed ends."""
    run = options.runs / f"ablation-{number}-seed{seed}"
    shared = ["--data", options.data, "--device", options.device, "--seed", str(seed), "--out", str(run)]
    accuracy.alexnet("train", *shared, "--recipe", "fast", "--epochs", str(options.epochs), *words, *training)
    return accuracy.course(run)[-1]


if __name__ == "__main__":
    sys.exit(main())
