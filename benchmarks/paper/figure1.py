"""Figure 1: how many epochs ReLU and tanh need to 25 % training error, each at its own best constant rate.

The network is a four-layer one, cuda-convnet's of 19 % without any regularisation: the paper's own is in no file that
was published. The best rate of each comes of a sweep that is one ensemble of rates; then another ensemble, of seeds,
is trained at it. Training errors are those of the batches as they were trained on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet_func import optim, train
from alexnet_func.arch import ReLU, Tanh
from alexnet_func.history import CUDA_CONVNET_19
from benchmarks.paper import members, statistics

ERROR = 0.25
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
BENDS = {"ReLU": ReLU(), "tanh": Tanh()}


class Curve(NamedTuple):
    """Of one kind of neuron: the best rate, training errors by seed and epoch, and epochs to 25 % by seed."""

    rate: float
    errors: list[list[float]]
    epochs: list[float]


class Size(NamedTuple):
    """How many seeds, the epochs at most of each and of the sweep, and of what products are."""

    seeds: int
    epochs: int
    sweep: int
    precision: train.Precision = "float32"


def run(images: members.Images, runs: Path, size: Size) -> tuple[str, dict[str, Curve]]:
    """Markdown, and the curves. Runs that reach no 25 % within so many epochs are told as such."""
    curves = {name: curve(name, images, runs, size) for name in BENDS}
    rows = ["| neuron | best rate | epochs to 25 % training error, 95 % interval | by seed |", "|---|---:|---:|---|"]
    for name, found in curves.items():
        reached = [count for count in found.epochs if count < float("inf")]
        told = statistics.told(reached, "epochs") if len(reached) == len(found.epochs) else f"not within {size.epochs}"
        by_seed = ", ".join(f"{count:.1f}" for count in found.epochs)
        rows.append(f"| {name} | {found.rate:g} | {told} | {by_seed} |")
    if all(count < float("inf") for found in curves.values() for count in found.epochs):
        ratio, low, high = statistics.ratio_interval(curves["tanh"].epochs, curves["ReLU"].epochs)
        interval = f", 95 % interval {low:.2f} to {high:.2f}" if size.seeds > 1 else ""
        rows += ["", f"tanh takes {ratio:.2f} times the epochs of ReLU{interval}; the paper says about six."]
    return "\n".join(rows), curves


def curve(name: str, images: members.Images, runs: Path, size: Size) -> Curve:
    """The sweep over `RATES`, of so many epochs at most, then as many seeds at the best rate."""

    def plan(own_seeds: Sequence[int], rates: Sequence[float]) -> members.Plan:
        bend = BENDS[name]
        features = tuple(bend if isinstance(layer, ReLU) else layer for layer in CUDA_CONVNET_19.features)
        network = CUDA_CONVNET_19.replace(name=f"figure1_{name}", features=features)
        network = network.replace(num_classes=int(images.labels.max()) + 1)
        return members.Plan(network, tuple(own_seeds), tuple(rates), _sgd, size.precision)

    rates = plan([size.seeds] * len(RATES), RATES)  # a seed that is none of those after it
    path = runs / f"figure1-{name}-sweep-{size.precision}.safetensors"
    _, errors = members.trained(rates, images, size.sweep, path, lambda rows: bool(rows) and min(rows[-1]) <= ERROR)
    rate = RATES[_best(errors)]
    path = runs / f"figure1-{name}-{rate:g}-{size.seeds}-{size.precision}.safetensors"
    seeds = plan(range(size.seeds), [rate] * size.seeds)
    _, errors = members.trained(seeds, images, size.epochs, path, lambda rows: bool(rows) and max(rows[-1]) <= ERROR)
    return Curve(rate, errors, [reached([row[seed] for row in errors]) for seed in range(size.seeds)])


def reached(errors: Sequence[float]) -> float:
    """The epochs after which a falling curve, a point in the middle of each epoch, has 25 %; infinite if never."""
    for epoch, error in enumerate(errors):
        if error <= ERROR:
            if epoch == 0:
                return 0.5
            before = errors[epoch - 1]
            return epoch - 0.5 + (before - ERROR) / (before - error)
    return float("inf")


def _best(errors: Sequence[Sequence[float]]) -> int:
    """The member that is first at 25 %; else the one that is lowest at the end."""
    by_member = list(zip(*errors, strict=True))
    last = torch.tensor([member[-1] for member in by_member]).nan_to_num(nan=2.0)
    first = torch.tensor([reached(member) for member in by_member])
    return int(first.argmin()) if first.isfinite().any() else int(last.argmin())


def _sgd(rate: Tensor) -> optim.Optimizer:
    return optim.sgd(rate, momentum=0.9, form="paper")
