"""The networks that commands read: from a run, a checkpoint, a file of weights, or torchvision's published ones."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from alexnet_func import arch, checkpoint, interop, tensorfile, weights
from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import check_named_tensors
from alexnet_func.data import preprocess
from alexnet_func.data.images import Orientation
from alexnet_func.data.preprocess import Augmentation, Moments
from alexnet_func.model import Params, param_shapes
from alexnet_func.train import TrainState

CHECKPOINT = "checkpoint.safetensors"
KEPT = "epoch-{}.safetensors"  # of an epoch, with six digits, that `--keep-every` asks for


class Model(NamedTuple):
    """What evaluation and prediction need of a trained network."""

    arch: Arch
    params: Params
    moments: Moments
    classes: tuple[str, ...] | None
    note: str = ""  # what was read, where that is not plain
    orientation: Orientation = "exif"  # how it was trained, as are `holdout` and `augmentation`
    holdout: float | None = None
    augmentation: Augmentation | None = None


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
        model = described(path, evaluated(state), run_of(path, saved))
    else:
        model = _bare(source)
    params = {name: p.to(device, torch.float32) for name, p in model.params.items()}
    if bad := [name for name, p in params.items() if not p.isfinite().all()]:
        raise ValueError(f"{source} holds values that are not finite, in {', '.join(bad)}")
    return model._replace(params=params, moments=model.moments.to(device))


def named(name: str) -> Arch:
    """The arch of that name, or that of a file of its JSON. Raises ValueError for anything else."""
    if not name.endswith(".json"):
        return arch.get(name)
    try:
        return Arch.from_json(Path(name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--arch {name}: {error}") from error


def evaluated(state: TrainState) -> Params:
    """The parameters that a run's evaluation takes: their average, where the run has one."""
    return {**state.params, **state.opt_state.get("ema", {})}


def load_kept(source: str, device: torch.device) -> list[Model]:
    """The network as `load_model` gives it, and those that a run kept of earlier epochs, the latest first."""
    last = load_model(source, device)
    kept = sorted(Path(source).glob(KEPT.format("*")), reverse=True) if Path(source).is_dir() else []
    earlier = [load_model(str(path), device) for path in kept]
    return [last, *(one for one in earlier if any(not torch.equal(p, last.params[n]) for n, p in one.params.items()))]


def _bare(source: str) -> Model:
    """Weights without a configuration: of `ALEXNET`, with the moments that torchvision's were trained with."""
    if source == "torchvision":
        params, note = interop.load_torchvision("DEFAULT"), ""
    else:
        params, note = weights.read(source)
    network = ALEXNET.replace(num_classes=len(params["classifier.6.bias"]))
    names = _imagenet_names(network.num_classes)
    moments = Moments((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return Model(network, params, moments, names, note)


def run_of(path: Path, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration. Raises ValueError where a checkpoint is of something else."""
    if not isinstance(saved.get("run"), dict):
        raise ValueError(f"{path} is no checkpoint of alexnet train: its configuration has no run")
    return saved["run"]


def described(path: Path, params: Params, config: Mapping[str, Any]) -> Model:
    """The network that a run's configuration describes.

    Raises ValueError, naming the field, for one that is missing, of another type, or does not fit the others.
    """
    text = _field(path, config, "arch", lambda value: isinstance(value, str), "an arch as JSON")
    try:
        network = Arch.from_json(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of alexnet train: {error}") from error
    channels, count = network.in_channels, network.num_classes
    mean = _field(path, config, "mean", lambda v: _is_list(v, channels, _is_number), f"{channels} numbers")
    std = _field(path, config, "std", lambda v: _is_list(v, channels, _is_positive), f"{channels} numbers above 0")
    classes = _field(
        path, config, "classes", lambda v: _is_list(v, count, lambda name: isinstance(name, str)), f"{count} names"
    )
    check_named_tensors(param_shapes(network), params, f"{path} as {network.name}")
    orientation = _field(
        path, {"orientation": "exif", **config}, "orientation", get_args(Orientation).__contains__, "exif or stored"
    )
    holdout = _field(
        path, {"holdout": None, **config}, "holdout", lambda v: v is None or _is_number(v), "a number or null"
    )
    accepted = (None, *get_args(Augmentation))
    augmentation = _field(path, {"augmentation": None, **config}, "augmentation", accepted.__contains__, "a known one")
    side, encoded = network.image_size, config.get("mean_image")
    try:
        image = None if encoded is None else preprocess.decoded_image(encoded, (channels, side, side))
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of alexnet train: mean_image {error}") from error
    moments = Moments(tuple(mean), tuple(std), image)
    return Model(network, params, moments, tuple(classes), "", orientation, holdout, augmentation)


def number(path: Path, config: Mapping[str, Any], name: str) -> float:
    """A finite number of a checkpoint's configuration. Raises ValueError, naming it, for anything else."""
    return float(_field(path, config, name, _is_number, "a number"))


def count(path: Path, config: Mapping[str, Any], name: str) -> int:
    """A whole number, not negative, of a checkpoint's configuration. Raises ValueError as `number` does."""
    return int(_field(path, config, name, lambda v: _is_number(v) and v >= 0 and v == int(v), "a whole number"))


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
