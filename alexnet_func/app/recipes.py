"""How each kind of data is trained, as data."""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from alexnet_func import optim
from alexnet_func.train import Precision

Augmentation = Literal["shift", "shift-flip", "crop-flip", "resized-flip", "paper"]

OptimizerName = Literal["sgd", "adamw", "muon"]


@dataclass(frozen=True)
class Recipe:
    """Arch, optimiser, length and augmentation of a run. Raises ValueError for the paper's form of anything but SGD.

    `augmentation`: "shift" by up to an eighth of the side, "shift-flip" with mirroring too, "crop-flip" a random crop
    of a larger image and mirroring, "paper" that and PCA colour noise, "resized-flip" a crop of random size and shape.
    `optimizer`: "muon" is Muon for all convolutions but the first, and AdamW at a twentieth of `lr` for the rest.
    """

    arch: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Literal["constant", "cosine", "linear", "step"]
    augmentation: Augmentation
    form: Literal["torch", "paper"] = "torch"
    optimizer: OptimizerName = "sgd"

    def __post_init__(self) -> None:
        if self.form == "paper" and self.optimizer != "sgd":
            raise ValueError(f"the paper's recipe is one of SGD: it does not go with {self.optimizer}")


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


def choose(data: str, name: str | None = None, **changes: Any) -> Recipe:
    """The named recipe, or the one for that data, with those of its fields changed that are not None.

    A folder holds photographs unless `arch` is for small images.
    """
    given = {field: value for field, value in changes.items() if value is not None}
    by_data = BY_DATA.get(data, CIFAR if given.get("arch") == "alexnet_cifar" else PHOTOGRAPHS)
    return replace(PAPER if name == "paper" else by_data, **given)
