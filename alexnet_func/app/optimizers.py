"""The optimiser that a recipe describes."""

import fnmatch
import functools
import re

import torch
from torch import Tensor

from alexnet_func import model, optim
from alexnet_func.app.recipes import Recipe
from alexnet_func.arch import Arch
from alexnet_func.train import Precision


def optimizer(recipe: Recipe, network: Arch, steps_per_epoch: int, precision: Precision = "float32") -> optim.Optimizer:
    """The recipe's optimiser; the momentum is also AdamW's b1. With `precision` "bf16" Muon multiplies in bfloat16.

    "cosine" and "linear" warm up for a tenth of the run, at most one epoch.
    """
    decay = recipe.weight_decay
    if recipe.groups:
        return _by_group(recipe, steps_per_epoch)
    match recipe.optimizer:
        case "sgd":
            return optim.sgd(_schedule(recipe, recipe.lr, steps_per_epoch), recipe.momentum, decay, form=recipe.form)
        case "adamw":
            rate = _schedule(recipe, recipe.lr, steps_per_epoch)
            return optim.adamw(rate, b1=recipe.momentum, weight_decay=decay)
        case "muon":
            dtype = torch.bfloat16 if precision == "bf16" else None
            rates = [_schedule(recipe, lr, steps_per_epoch) for lr in (recipe.lr, recipe.lr / 20)]
            *hidden, _ = (name for name in model.param_shapes(network) if name.endswith(".weight"))
            return optim.partition(
                lambda name: "muon" if name in hidden else "adamw",
                {
                    "muon": optim.muon(rates[0], recipe.momentum, decay, dtype=dtype),
                    "adamw": optim.adamw(rates[1], b1=recipe.momentum, weight_decay=decay),
                },
            )


def _by_group(recipe: Recipe, steps_per_epoch: int) -> optim.Optimizer:
    """SGD whose rate and decay are those of the first group that matches a parameter's name."""
    steps = steps_per_epoch * recipe.epochs
    base = _schedule(recipe, recipe.lr, steps_per_epoch)
    parts = {}
    for group in recipe.groups:
        scales: dict[int, float] = {}
        for share, scale in group.drops:  # of which a short run may have two at one step
            scales[round(share * steps)] = scales.get(round(share * steps), 1.0) * scale
        own = optim.piecewise_constant(group.rate, scales)
        rate = functools.partial(_product, base, own)
        parts[group.pattern] = optim.sgd(rate, recipe.momentum, recipe.weight_decay * group.decay, form=recipe.form)
    # Read here and not in the update, where the compiler would have to follow `fnmatch`, and on Python 3.12 cannot.
    patterns = {part: re.compile(fnmatch.translate(part)) for part in parts}
    return optim.partition(lambda name: next((p for p, form in patterns.items() if form.match(name)), name), parts)


def _product(one: optim.Schedule, other: optim.Schedule, step: Tensor) -> Tensor:
    return one(step) * other(step)


def noise_until(recipe: Recipe, steps_per_epoch: int) -> int | None:
    """The step from which images have no colour noise any more; None: all have."""
    return None if recipe.noise_share is None else round(recipe.noise_share * steps_per_epoch * recipe.epochs)


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
