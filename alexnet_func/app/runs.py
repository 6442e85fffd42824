"""A run directory: `config.json`, `checkpoint.safetensors`, `metrics.jsonl`; and the models that commands read."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from alexnet_func import checkpoint, files, interop, tensorfile, weights
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_named_tensors
from alexnet_func.model import Params, param_shapes
from alexnet_func.train import TrainState

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "config.json"
MAY_CHANGE = {"epochs", "device", "compile"}  # of a configuration, when a run is resumed


class Model(NamedTuple):
    """What evaluation and prediction need of a trained network; mean and std are a channel, on 0..1."""

    arch: Arch
    params: Params
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    note: str = ""  # what was read, where that is not plain


class Progress(NamedTuple):
    """Where a run stands: its state, and the sum of the losses of the epoch it is in."""

    state: TrainState
    loss_sum: float


def check_free(out: Path) -> None:
    """Raises ValueError if the directory holds a checkpoint, which a fresh run would overwrite."""
    if (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds a checkpoint: add --resume to go on with it, or choose another --out")


def open_run(out: Path, config: Mapping[str, Any], device: torch.device) -> Progress | None:
    """Makes the directory, or finds where an earlier run stopped; None: start afresh.

    Raises ValueError for a configuration that differs from the checkpoint's in more than `MAY_CHANGE`, naming the
    difference, and for a checkpoint of anything but a run.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / CHECKPOINT
    if not path.exists():
        files.write_text(out / CONFIG, json.dumps(config, indent=2))
        files.write_text(out / METRICS, "")
        return None
    state, saved = checkpoint.load(path, device)
    before, loss_sum = _run_of(path, saved), _field(path, saved, "loss_sum", _is_number, "a number")
    differing = [
        f"{name} {before.get(name)!r} -> {config.get(name)!r}"
        for name in sorted(before.keys() | config.keys())
        if name not in MAY_CHANGE and before.get(name) != config.get(name)
    ]
    if differing:
        raise ValueError(f"{out} was trained otherwise: {', '.join(differing)}")
    model = _described(path, state.params, before)
    if dtypes := {str(t.dtype) for t in pytree.tree_leaves((model.params, state.opt_state))} - {"torch.float32"}:
        raise ValueError(f"{path} is no checkpoint of alexnet train: it holds {', '.join(sorted(dtypes))}")
    files.write_text(out / CONFIG, json.dumps(config, indent=2))
    return Progress(state, loss_sum)


def save(out: Path, progress: Progress, config: Mapping[str, Any]) -> None:
    """Writes the checkpoint."""
    checkpoint.save(out / CHECKPOINT, progress.state, {"run": dict(config), "loss_sum": progress.loss_sum})


def keep_metrics(out: Path, epochs: int) -> None:
    """Drops the rows of epochs after the first `epochs`, and a last line that was cut off: they will be run again."""
    path = out / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["epoch"] <= epochs:
            rows.append(line)
    files.write_text(path, "".join(f"{row}\n" for row in rows))


def append_metrics(out: Path, row: Mapping[str, Any]) -> None:
    """Adds one JSON object as a line, on disk when this returns."""
    with open(out / METRICS, "a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def load_model(source: str, device: torch.device) -> Model:
    """The network of a run directory, of a checkpoint, of a file that `weights.read` reads, or "torchvision" itself.

    Parameters are float32. Raises FileNotFoundError where there is nothing, PermissionError for a file that may not be
    read, ValueError for one that does not hold a network, or holds one with values that are not finite.
    """
    path = Path(source)
    if path.is_dir():
        path = path / CHECKPOINT
    elif source != "torchvision" and not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint and no file of weights {source}")
    if path.name == CHECKPOINT or tensorfile.is_one(path):
        state, saved = checkpoint.load(path)
        model = _described(path, state.params, _run_of(path, saved))
    else:
        model = _bare(source)
    params = {name: p.to(device, torch.float32) for name, p in model.params.items()}
    if bad := [name for name, p in params.items() if not p.isfinite().all()]:
        raise ValueError(f"{source} holds values that are not finite, in {', '.join(bad)}")
    return model._replace(params=params)


def _bare(source: str) -> Model:
    """Weights without a configuration: of `ALEXNET`, with the moments that torchvision's were trained with."""
    if source == "torchvision":
        params, note = interop.load_torchvision("DEFAULT"), ""
    else:
        params, note = weights.read(source)
    arch = ALEXNET.replace(num_classes=len(params["classifier.6.bias"]))
    return Model(arch, params, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _imagenet_names(arch.num_classes), note)


def _run_of(path: Path, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration. Raises ValueError where a checkpoint is of something else."""
    if not isinstance(saved.get("run"), dict):
        raise ValueError(f"{path} is no checkpoint of alexnet train: its configuration has no run")
    return saved["run"]


def _described(path: Path, params: Params, config: Mapping[str, Any]) -> Model:
    """The network that a run's configuration describes.

    Raises ValueError, naming the field, for one that is missing, of another type, or does not fit the others.
    """
    arch = _field(path, config, "arch", lambda value: isinstance(value, str), "an arch as JSON")
    try:
        network = Arch.from_json(arch)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of alexnet train: {error}") from error
    channels, count = network.in_channels, network.num_classes
    mean = _field(path, config, "mean", lambda v: _is_list(v, channels, _is_number), f"{channels} numbers")
    std = _field(path, config, "std", lambda v: _is_list(v, channels, _is_positive), f"{channels} numbers above 0")
    classes = _field(
        path, config, "classes", lambda v: _is_list(v, count, lambda name: isinstance(name, str)), f"{count} names"
    )
    check_named_tensors(param_shapes(network), params, f"{path} as {network.name}")
    return Model(network, params, tuple(mean), tuple(std), tuple(classes))


def _field(path: Path, config: Mapping[str, Any], name: str, fits: Callable[[Any], bool], accepted: str) -> Any:
    value = config.get(name)
    if not fits(value):
        given = "nothing" if name not in config else repr(value)[:60]
        raise ValueError(f"{path} is no checkpoint of alexnet train: {name} must be {accepted}, got {given}")
    return value


def _is_list(value: Any, length: int, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(fits, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _imagenet_names(classes: int) -> tuple[str, ...] | None:
    from torchvision.models import AlexNet_Weights

    names = tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    return names if len(names) == classes else None
