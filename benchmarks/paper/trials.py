"""Runs of `alexnet train`, one a seed, which go on where they were stopped, and what came of them."""

from pathlib import Path
from typing import NamedTuple

from benchmarks import accuracy


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
        accuracy.alexnet("train", *where, *trial.words, "--seed", str(seed), "--out", str(run), "--resume")
        lines = accuracy.alexnet("eval", str(run), *where, *["--ten-crop"] * trial.views)
        errors.append(100 - accuracy.accuracy(lines))
        course = accuracy.course(run)
        minutes.append(course[-1][0])
        epochs = len(course)
    return Outcome(tuple(errors), tuple(minutes), epochs)
