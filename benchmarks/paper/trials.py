"""Runs of `alexnet train`, one a seed, which go on where they were stopped, and what came of them."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import accuracy


class Trial(NamedTuple):
    """A training: its name, and what `alexnet train` is told; `views` evaluates the mean over ten crops.

    `seeds` are as many as the setting has unless given.
    """

    name: str
    words: tuple[str, ...]
    views: bool = False
    seeds: int | None = None


class Setting(NamedTuple):
    """The data as for alexnet train, where runs lie, how many seeds, the device, of what products are, and the jobs.

    So many runs share the device.
    """

    data: str
    runs: Path
    seeds: int
    device: str = "cpu"
    precision: str = "float32"
    jobs: int = 1


class Outcome(NamedTuple):
    """Test errors in per cent by seed, minutes of training alone by seed, and the epochs of a run."""

    errors: tuple[float, ...]
    minutes: tuple[float, ...]
    epochs: int


def outcomes(trials: Sequence[Trial], setting: Setting) -> list[Outcome]:
    """Trains what is not trained yet, `setting.jobs` runs side by side, and evaluates it."""
    runs = [(trial, seed) for trial in trials for seed in range(trial.seeds or setting.seeds)]
    ends = iter(accuracy.side_by_side(lambda run: _one(*run, setting), runs, setting.jobs))
    found = [list(itertools.islice(ends, trial.seeds or setting.seeds)) for trial in trials]
    return [Outcome(tuple(r[0] for r in row), tuple(r[1] for r in row), row[-1][2]) for row in found]


def _one(trial: Trial, seed: int, setting: Setting) -> tuple[float, float, int]:
    """Error in per cent, minutes of training, and epochs."""
    run, device = setting.runs / f"{trial.name}-{setting.precision}-seed{seed}", setting.device
    where = ["--data", setting.data, "--device", device]
    how = ["--seed", str(seed), "--out", str(run), "--resume", "--precision", setting.precision]
    how += ["--compile"] if setting.precision == "bf16" else []  # where it pays on a CPU, too
    if not _done(run):
        accuracy.alexnet("train", *where, *trial.words, *how)
    course = accuracy.course(run)
    right = 100 * course[-1].accuracy
    if trial.views:
        right = accuracy.accuracy(accuracy.alexnet("eval", str(run), *where, "--ten-crop"))
    return 100 - right, course[-1].minutes, len(course)


def _done(run: Path) -> bool:
    """Whether all epochs are on record: then the run's checkpoint need not be there any more."""
    config, metrics = run / "config.json", run / "metrics.jsonl"
    if not (config.exists() and metrics.exists()):
        return False
    return len(metrics.read_text().splitlines()) == json.loads(config.read_text())["epochs"]
