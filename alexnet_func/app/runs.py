"""A run directory: `config.json`, `checkpoint.safetensors`, `metrics.jsonl`; and the models that commands read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alexnet_func import checkpoint, interop
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
    difference.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / CHECKPOINT
    if not path.exists():
        checkpoint.write_text(out / CONFIG, json.dumps(config, indent=2))
        checkpoint.write_text(out / METRICS, "")
        return None
    state, saved = checkpoint.load(path, device)
    before = saved["run"]
    differing = [
        f"{name} {before.get(name)!r} -> {config.get(name)!r}"
        for name in sorted(before.keys() | config.keys())
        if name not in MAY_CHANGE and before.get(name) != config.get(name)
    ]
    if differing:
        raise ValueError(f"{out} was trained otherwise: {', '.join(differing)}")
    checkpoint.write_text(out / CONFIG, json.dumps(config, indent=2))
    return Progress(state, saved["loss_sum"])


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
    checkpoint.write_text(path, "".join(f"{row}\n" for row in rows))


def append_metrics(out: Path, row: Mapping[str, Any]) -> None:
    """Adds one JSON object as a line, on disk when this returns."""
    with open(out / METRICS, "a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def load_model(source: str, device: torch.device) -> Model:
    """The network of a run directory, of a checkpoint, of a file of torchvision's AlexNet, or "torchvision" itself.

    Raises FileNotFoundError where there is nothing, ValueError for a file that does not hold a network.
    """
    path = Path(source)
    if path.is_dir():
        path = path / CHECKPOINT
    if path.suffix == ".safetensors":
        state, saved = checkpoint.load(path, device)
        config = saved["run"]
        arch = Arch.from_json(config["arch"])
        check_named_tensors(param_shapes(arch), state.params, f"{path} as {arch.name}")
        return Model(arch, state.params, tuple(config["mean"]), tuple(config["std"]), tuple(config["classes"]))
    params = interop.load_torchvision("DEFAULT" if source == "torchvision" else path)
    params = {name: p.to(device) for name, p in params.items()}
    arch = ALEXNET.replace(num_classes=len(params["classifier.6.bias"]))
    # The moments of ImageNet that torchvision's weights were trained with.
    return Model(arch, params, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _imagenet_names(arch.num_classes))


def _imagenet_names(classes: int) -> tuple[str, ...] | None:
    from torchvision.models import AlexNet_Weights

    names = tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    return names if len(names) == classes else None
