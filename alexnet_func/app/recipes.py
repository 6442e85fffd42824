"""How each kind of data is trained, as data."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from alexnet_func import optim

Augmentation = Literal["shift", "shift-flip", "crop-flip", "resized-flip", "paper"]

OptimizerName = Literal["sgd", "adamw", "centralized-adamw"]


@dataclass(frozen=True)
class Recipe:
    """Arch, optimiser, length and augmentation of a run. Raises ValueError for the paper's form of anything but SGD.

    `augmentation`: "shift" by up to an eighth of the side, "shift-flip" with mirroring too, "crop-flip" a random crop
    of a larger image and mirroring, "paper" that and PCA colour noise, "resized-flip" a crop of random size and shape.
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
CIFAR = Recipe("alexnet_cifar", 10, 64, 7e-4, 0.9, 0.05, "cosine", "shift-flip", optimizer="adamw")
PHOTOGRAPHS = Recipe("alexnet", 90, 128, 0.01, 0.9, 5e-4, "cosine", "crop-flip")

# Krizhevsky et al. 2012, section 5, with the rate divided by ten three times over 90 epochs, at even distances.
PAPER = Recipe("alexnet_2012", 90, 128, 0.01, 0.9, 5e-4, "step", "paper", form="paper")

BY_DATA = {"digits": DIGITS, "cifar10": CIFAR, "cifar100": CIFAR, "imagenet": PHOTOGRAPHS}


def optimizer(recipe: Recipe, steps_per_epoch: int) -> optim.Optimizer:
    """The recipe's SGD or AdamW, whose b1 is its momentum, the latter on centralised gradients if so named.

    "cosine" and "linear" warm up for a tenth of the run, at most one epoch.
    """
    total = steps_per_epoch * recipe.epochs + 1
    warmup = min(steps_per_epoch, max(1, total // 10))
    schedules = {
        "constant": lambda: optim.constant(recipe.lr),
        "cosine": lambda: optim.warmup_cosine(recipe.lr, warmup, total),
        "linear": lambda: optim.warmup_linear(recipe.lr, warmup, total),
        "step": lambda: optim.step_decay(recipe.lr, tuple(total * i // 4 for i in (1, 2, 3))),
    }
    rate = schedules[recipe.schedule]()
    if recipe.optimizer != "sgd":
        adamw = optim.adamw(rate, b1=recipe.momentum, weight_decay=recipe.weight_decay)
        return optim.centralized(adamw) if recipe.optimizer == "centralized-adamw" else adamw
    return optim.sgd(rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, form=recipe.form)


def choose(data: str, name: str | None = None, **changes: Any) -> Recipe:
    """The named recipe, or the one for that data, with those of its fields changed that are not None.

    A folder holds photographs unless `arch` is for small images.
    """
    given = {field: value for field, value in changes.items() if value is not None}
    by_data = BY_DATA.get(data, CIFAR if given.get("arch") == "alexnet_cifar" else PHOTOGRAPHS)
    return replace(PAPER if name == "paper" else by_data, **given)
