"""How each kind of data is trained, as data."""

import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import tyro

from alexnet_func import optim
from alexnet_func.data.preprocess import Augmentation
from alexnet_func.train import Precision

OptimizerName = Literal["sgd", "adamw", "muon"]


def check_range(name: str, value: int | float | None, least: int | float, most: int | float = math.inf) -> None:
    """Raises ValueError, in the words of the command line, unless the value is None or lies in [least, most]."""
    option = f"--{name.replace('_', '-')}"
    if value is not None and not value >= least:
        raise ValueError(f"{option} must be at least {least}, got {value}")
    if value is not None and not (value <= most and math.isfinite(value)):
        raise ValueError(f"{option} must be {'finite' if most == math.inf else f'at most {most}'}, got {value}")


@dataclass(frozen=True)
class Recipe:
    """Arch, optimiser, length and augmentation; the defaults are those for --data.

    Raises ValueError for a number out of its range, and for the paper's form of anything but SGD.
    """

    arch: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")]
    """alexnet, alexnet_2012, caffenet, alexnet_cifar, or a file of an arch as JSON (NAME.json)."""
    epochs: Annotated[int, tyro.conf.arg(metavar="N")]
    """Passes over the training images."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")]
    """Images a step."""
    lr: Annotated[float, tyro.conf.arg(metavar="F")]
    """Peak learning rate."""
    momentum: Annotated[float, tyro.conf.arg(metavar="F")]
    """Momentum of the velocity, and AdamW's b1."""
    weight_decay: Annotated[float, tyro.conf.arg(metavar="F")]
    """Decay added to the gradient, or AdamW's."""
    schedule: Literal["constant", "cosine", "linear", "step"]
    """How the rate falls; cosine and linear warm up for a tenth of the run, step divides by ten three times."""
    augmentation: Augmentation
    """none: the middle of each image; shift: by up to an eighth of the side; shift-flip: and mirroring; crop-flip: a
    random crop of a larger image, and mirroring; resized-flip: a crop of random size and shape; paper: crop, flip and
    colour noise."""
    form: tyro.conf.Suppress[Literal["torch", "paper"]] = "torch"
    optimizer: OptimizerName = "sgd"
    """SGD with momentum, or AdamW, which wants a much smaller rate and a larger decay; muon: orthogonalised momentum
    for all convolutions but the first, AdamW at a twentieth of the rate for the rest."""
    views: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Augmented views of each image in a step, over which its loss is the mean; None: one."""
    ema: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Decay, a step, of an average of the parameters, which is then evaluated in their place; None: no average."""
    freeze: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN")] = ()
    """Parameters that stay as they are, as in 'features.*'."""
    dp_epsilon: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Train with differential privacy (DP-SGD): all steps together spend so much. Noise follows from it."""
    dp_delta: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """The delta that goes with it; None: the largest power of ten below one in the number of training images."""
    dp_max_norm: Annotated[float, tyro.conf.arg(metavar="F")] = 1.0
    """What the gradient of each image is clipped to."""
    dp_quantile: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Adaptive clipping: the bound goes from --dp-max-norm to this quantile of the gradients' norms."""
    dp_audit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Leave each of N training images out or in by a coin, and tell in the end how much epsilon they prove at least."""

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 1, 10**6)
        check_range("batch_size", self.batch_size, 1, 2**31 - 1)
        check_range("lr", self.lr, 0)
        check_range("weight_decay", self.weight_decay, 0)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must lie in [0, 1), got {self.momentum}")
        if self.form == "paper" and self.optimizer != "sgd":
            raise ValueError(f"the paper's recipe is one of SGD: it does not go with {self.optimizer}")
        check_range("views", self.views, 1, 1024)
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"--ema must lie in [0, 1), got {self.ema}")
        self._check_private()

    def _check_private(self) -> None:
        for name in ("dp_epsilon", "dp_max_norm", "dp_delta"):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and not 0 < value < (1 if name == "dp_delta" else math.inf):
                raise ValueError(f"{option} must lie in (0, {1 if name == 'dp_delta' else 'inf'}), got {value}")
        if self.dp_quantile is not None and not 0 < self.dp_quantile < 1:
            raise ValueError(f"--dp-quantile must lie in (0, 1), got {self.dp_quantile}")
        check_range("dp_audit", self.dp_audit, 2)
        for name in ("dp_delta", "dp_quantile", "dp_audit"):
            if self.dp_epsilon is None and getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --dp-epsilon: how much may be spent?")
        if self.dp_epsilon is not None and self.augmentation == "paper":
            raise ValueError("--dp-epsilon does not go with the paper's colour noise, which follows from all images")


DIGITS = Recipe("alexnet_cifar", 15, 32, 0.02, 0.9, 5e-4, "cosine", "shift")
CIFAR = Recipe("alexnet_cifar", 8, 128, 0.02, 0.95, 0.005, "cosine", "shift-flip", optimizer="muon")
PHOTOGRAPHS = Recipe("alexnet", 90, 128, 0.01, 0.9, 5e-4, "cosine", "crop-flip")

# Krizhevsky et al. 2012, section 5, with the rate divided by ten three times over 90 epochs, at even distances.
PAPER = Recipe("alexnet_2012", 90, 128, 0.01, 0.9, 5e-4, "step", "paper", form="paper")

_INNER_KERNEL = re.compile(r"features\.[1-9]\d*\.weight")

BY_DATA = {"digits": DIGITS, "cifar10": CIFAR, "cifar100": CIFAR, "imagenet": PHOTOGRAPHS}


def optimizer(recipe: Recipe, steps_per_epoch: int, precision: Precision = "float32") -> optim.Optimizer:
    """The recipe's optimiser; the momentum is also AdamW's b1. With `precision` "bf16" Muon multiplies in bfloat16.

    "cosine" and "linear" warm up for a tenth of the run, at most one epoch.
    """
    decay = recipe.weight_decay
    match recipe.optimizer:
        case "sgd":
            return optim.sgd(_schedule(recipe, recipe.lr, steps_per_epoch), recipe.momentum, decay, form=recipe.form)
        case "adamw":
            rate = _schedule(recipe, recipe.lr, steps_per_epoch)
            return optim.adamw(rate, b1=recipe.momentum, weight_decay=decay)
        case "muon":
            dtype = torch.bfloat16 if precision == "bf16" else None
            rates = [_schedule(recipe, lr, steps_per_epoch) for lr in (recipe.lr, recipe.lr / 20)]
            return optim.partition(
                lambda name: "muon" if _INNER_KERNEL.fullmatch(name) else "adamw",
                {
                    "muon": optim.muon(rates[0], recipe.momentum, decay, dtype=dtype),
                    "adamw": optim.adamw(rates[1], b1=recipe.momentum, weight_decay=decay),
                },
            )


def _schedule(recipe: Recipe, peak: float, steps_per_epoch: int) -> optim.Schedule:
    total = steps_per_epoch * recipe.epochs + 1
    warmup = min(steps_per_epoch, max(1, total // 10))
    match recipe.schedule:
        case "constant":
            return optim.constant(peak)
        case "cosine":
            return optim.warmup_cosine(peak, warmup, total)
        case "linear":
            return optim.warmup_linear(peak, warmup, total)
        case "step":
            return optim.step_decay(peak, tuple(total * i // 4 for i in (1, 2, 3)))


def by_data(data: str, name: str | None = None, arch: str | None = None) -> Recipe:
    """The named recipe, or the one for that data. A folder holds photographs unless `arch` is for small images."""
    if name == "paper":
        return PAPER
    return BY_DATA.get(data, CIFAR if arch == "alexnet_cifar" else PHOTOGRAPHS)


def choose(data: str, name: str | None = None, **changes: Any) -> Recipe:
    """`by_data`, with those of its fields changed that are not None."""
    given = {field: value for field, value in changes.items() if value is not None}
    return replace(by_data(data, name, given.get("arch")), **given)
