"""The console script `alexnet`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from alexnet_func.app import fit


def _shown_as(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar)


@dataclass(frozen=True)
class Train:
    """Train AlexNet, report the test accuracy after each epoch, and print the final one."""

    data: Annotated[str, _shown_as("NAME")] = "digits"
    """Data set; digits is embedded in scikit-learn and needs no download."""
    arch: Annotated[str | None, _shown_as("NAME")] = None
    """alexnet, alexnet_2012, caffenet or alexnet_cifar; None, here and below: what the data set's recipe says."""
    epochs: Annotated[int | None, _shown_as("N")] = None
    """Passes over the training images."""
    batch_size: Annotated[int | None, _shown_as("N")] = None
    """Images a step."""
    lr: Annotated[float | None, _shown_as("F")] = None
    """Peak learning rate."""
    momentum: Annotated[float | None, _shown_as("F")] = None
    """Momentum of the velocity."""
    weight_decay: Annotated[float | None, _shown_as("F")] = None
    """Decay added to the gradient."""
    seed: Annotated[int, _shown_as("N")] = 0
    """Seed of the run's key; initial parameters, dropout, order and augmentation follow from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA if there is any."""
    limit: Annotated[int | None, _shown_as("N")] = None
    """Train on the first N images of a fixed shuffle; None: on all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line: returns 0, or 1 after one line of explanation; wrong options exit with 2."""
    options = tyro.extras.subcommand_cli_from_dict(
        {"train": Train}, prog="alexnet", args=argv, description="AlexNet as pure functions."
    )
    try:
        _train(options)
    except (ValueError, ImportError, FloatingPointError) as error:
        print(f"alexnet: {error}", file=sys.stderr)
        return 1
    return 0


def _train(options: Train) -> None:
    console = Console(highlight=False, soft_wrap=True)
    result = fit.fit(
        options.data,
        _recipe(options),
        seed=options.seed,
        device=_device(options.device),
        limit=options.limit,
        console=console,
    )
    console.print(f"test accuracy {result.top1 * 100:.2f} % ({result.count} images)")


_LEAST = {"epochs": 1, "batch_size": 1, "limit": 1, "lr": 0, "momentum": 0, "weight_decay": 0}


def _recipe(options: Train) -> fit.Recipe:
    if options.data not in fit.RECIPES:
        raise ValueError(f"unknown data set {options.data!r}; there is {', '.join(fit.RECIPES)}")
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    names = {field.name for field in dataclasses.fields(fit.Recipe)}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    return dataclasses.replace(fit.RECIPES[options.data], **given)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
