"""Runs of `alexnet train`, one a seed, which go on where they were stopped, and what came of them."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Trial(NamedTuple):
    """A training: its name, and what `alexnet train` is told; `views` evaluates the mean over ten crops."""

    name: str
    words: tuple[str, ...]
    views: bool = False


class Setting(NamedTuple):
    """The data as for alexnet train, where runs lie, and the seeds."""

    data: str
    runs: Path
    seeds: int


class Outcome(NamedTuple):
    """Test errors in per cent by seed, minutes of training alone by seed, and the epochs of a run."""

    errors: tuple[float, ...]
    minutes: tuple[float, ...]
    epochs: int


def outcome(trial: Trial, setting: Setting) -> Outcome:
    """Trains what is not trained yet and evaluates it."""
    errors, minutes, epochs = [], [], 0
    for seed in range(setting.seeds):
        run = setting.runs / f"{trial.name}-seed{seed}"
        where = ["--data", setting.data, "--device", "cpu"]
        alexnet(["train", *where, *trial.words, "--seed", str(seed), "--out", str(run), "--resume"])
        lines = alexnet(["eval", str(run), *where, *["--ten-crop"] * trial.views])
        found = re.fullmatch(r"test accuracy ([\d.]+) % .*", lines[-1])
        if found is None:
            raise SystemExit(f"alexnet eval of {run} ended with {lines[-1]!r}")
        errors.append(100 - float(found[1]))
        minutes.append(minutes_of(run))
        epochs = len((run / "metrics.jsonl").read_text().splitlines())
    return Outcome(tuple(errors), tuple(minutes), epochs)


def minutes_of(run: Path) -> float:
    """The minutes that a run's steps took; an epoch without a rate, resumed at its end, counts as the mean."""
    images = json.loads((run / "config.json").read_text())["batch_size"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] - before for row, before in zip(rows, [0, *(row["step"] for row in rows)], strict=False)]
    seconds = [
        count * images / row["images_per_second"]
        for row, count in zip(rows, steps, strict=True)
        if row["images_per_second"]
    ]
    return sum(seconds) / len(seconds) * len(rows) / 60 if seconds else 0.0


def alexnet(words: Sequence[str]) -> list[str]:
    """The lines that the command tells, which are shown too."""
    with subprocess.Popen([sys.executable, "-m", "alexnet_func", *words], stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    if process.returncode:
        raise SystemExit(f"alexnet {' '.join(words)} failed")
    return lines
