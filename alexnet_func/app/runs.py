"""A run directory: `config.json`, `checkpoint.safetensors`, `best.safetensors` and `metrics.jsonl`.

Those of epochs that are kept lie beside them, and while a private run goes on its `noise.key`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from alexnet_func import checkpoint, files, tensorfile
from alexnet_func.app import models, text
from alexnet_func.arch import Arch
from alexnet_func.data import sources
from alexnet_func.train import TrainState

CHECKPOINT = models.CHECKPOINT
KEPT = models.KEPT
BEST = "best.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "config.json"
PICTURES = ("curves.png", "filters.png", "confusion.png")
ROW = ("epoch", "step", "train_loss", "test_loss", "test_accuracy", "test_top5")  # numbers of an epoch's metrics
MAY_CHANGE = {"data", "init", "epochs", "device", "compile"}  # of a configuration, when a run is resumed


class Best(NamedTuple):
    """The best test accuracy so far, 0..1, and the epoch that had it; -1 and 0 before there was one."""

    accuracy: float
    epoch: int


class Progress(NamedTuple):
    """Where a run stands: its state, the sum of the losses of the epoch it is in, and how many epochs have ended.

    An epoch ends with its evaluation: one whose steps are done may still want that.
    """

    state: TrainState
    loss_sum: float
    epochs: int
    best: Best


def check_free(out: Path) -> None:
    """Raises ValueError if a fresh run would overwrite what is in the directory, of a run or of anything else."""
    if (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds a checkpoint: add --resume to go on with it, or choose another --out")
    _check_config(out)
    _check_begun(out)


def open_run(out: Path, config: Mapping[str, Any], device: torch.device) -> Progress | None:
    """Makes the directory, or finds where an earlier run stopped; None: start afresh.

    Raises ValueError for a configuration that differs from the checkpoint's in more than `MAY_CHANGE`, naming the
    difference, for a checkpoint of anything but a run, and for files of a run whose checkpoint is gone.
    """
    out.mkdir(parents=True, exist_ok=True)
    files.sweep(out)
    path = out / CHECKPOINT
    _check_config(out)
    if not path.exists():
        _check_begun(out)
        files.write_text(out / CONFIG, json.dumps(config, indent=2))
        files.write_text(out / METRICS, "")
        return None
    state, saved = checkpoint.load(path, device)
    before = models.run_of(path, saved)
    model = models.described(path, state.params, before)
    _check_same(out, before, config)
    if dtypes := {str(t.dtype) for t in pytree.tree_leaves((model.params, state.opt_state))} - {"torch.float32"}:
        raise ValueError(f"{path} is no checkpoint of alexnet train: it holds {', '.join(sorted(dtypes))}")
    loss_sum = models.number(path, saved, "loss_sum")
    epochs, best_epoch = (models.count(path, saved, name) for name in ("epochs", "best_epoch"))
    best = Best(models.number(path, saved, "best_accuracy"), best_epoch)
    files.write_text(out / CONFIG, json.dumps(config, indent=2))
    return Progress(state, loss_sum, epochs, best)


def save(out: Path, name: str, progress: Progress, config: Mapping[str, Any]) -> None:
    """Writes a checkpoint of that name. Raises FloatingPointError for one that is not finite: the old one stays."""
    state = progress.state
    if not all(bool(t.isfinite().all()) for t in pytree.tree_leaves((state.params, state.opt_state))):
        raise FloatingPointError(f"step {int(state.step)} left parameters that are not finite: try a smaller --lr")
    where = {"loss_sum": progress.loss_sum, "epochs": progress.epochs}
    best = {"best_accuracy": progress.best.accuracy, "best_epoch": progress.best.epoch}
    checkpoint.save(out / name, state, {"run": dict(config), **where, **best})


def keep_metrics(out: Path, epochs: int) -> None:
    """Drops the rows of epochs after the first `epochs`, which will be run again, and lines that are no such rows."""
    path = out / METRICS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    files.write_text(path, "".join(f"{line}\n" for line in lines if 0 < _epoch_of(line) <= epochs))


def _epoch_of(line: str) -> int:
    """The epoch that a line of the metrics tells of; 0 for a line that was cut off, or is anything else."""
    try:
        row = json.loads(line)
    except ValueError:
        return 0
    numbers = [row.get(name) for name in ROW] if isinstance(row, dict) else [None]
    is_row = all(isinstance(n, int | float) for n in numbers) and isinstance(row["epoch"], int)
    return row["epoch"] if is_row else 0


def append_metrics(out: Path, row: Mapping[str, Any]) -> None:
    """Adds one JSON object as a line, on disk when this returns."""
    with open(out / METRICS, "a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _check_begun(out: Path) -> None:
    """Raises ValueError unless a directory without a checkpoint holds nothing but what a run begins with."""
    for name in (sources.CACHE.format(split) for split in ("train", "test")):
        if (out / name).exists() and not tensorfile.is_one(out / name):
            raise ValueError(f"{out} holds {name}, which alexnet train did not write: choose another --out")
    for name in (BEST, *PICTURES, *(path.name for path in out.glob(KEPT.format("*")))):
        if (out / name).exists():
            raise ValueError(f"{out} holds {name} and no {CHECKPOINT}: choose another --out, or move it away")
    if (out / METRICS).exists() and (out / METRICS).stat().st_size:
        raise ValueError(f"{out} holds {METRICS} of a run whose {CHECKPOINT} is gone: choose another --out")


def _check_config(out: Path) -> None:
    """Raises ValueError for a configuration that is none of a run."""
    if not (out / CONFIG).exists():
        return
    try:
        found = json.loads((out / CONFIG).read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"arch", "classes", "epochs", "seed"} <= set(found):
        raise ValueError(f"{out} holds a {CONFIG} that alexnet train did not write: choose another --out")


def _check_same(out: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    names = {name for name in before.keys() | config.keys() if before.get(name) != config.get(name)}
    if "noise_multiplier" in before and names & {"epochs", "dp_epsilon"}:
        raise ValueError(f"{out} spends its --dp-epsilon in its --epochs: a private run goes on with both as they were")
    names -= MAY_CHANGE
    told = []
    if "contents" in names:  # from which the statistics follow
        names -= {"contents", "mean", "std", "mean_image"}
        pairs = zip(("training", "test"), before.get("contents") or "--", config["contents"], strict=False)
        told += [f"other {split} images" for split, one, other in pairs if one != other]
    told += [_change(name, before.get(name), config.get(name)) for name in sorted(names)]
    if told:
        raise ValueError(f"{out} was trained otherwise: {', '.join(told)}")


def _change(name: str, one: Any, other: Any) -> str:
    old, new = _brief(name, one), _brief(name, other)
    return f"{name} {old} -> {'another that reads alike' if new == old else new}"


def _brief(name: str, value: Any) -> str:
    if name == "arch":
        network = Arch.from_json(value)
        return f"{network.name} of {network.num_classes} classes"
    return text.shortened(repr(value), 60)
