"""Many networks of one arch trained as one ensemble, epoch by epoch, each with its own rate and seed; resumable."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from alexnet_func import checkpoint, ensemble, losses, model, optim, random, train
from alexnet_func.arch import Arch
from alexnet_func.data import augment, preprocess
from alexnet_func.data.preprocess import Moments
from alexnet_func.precision import in_precision_of

BATCH = 128


class Images(NamedTuple):
    """Pixels uint8 [N, 3, S, S], labels [N], and what normalises the pixels."""

    pixels: Tensor
    labels: Tensor
    moments: Moments


class Plan(NamedTuple):
    """An ensemble: its arch, the seed and rate of each member, the optimiser of a rate, and what products are of."""

    arch: Arch
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    optimizer: Callable[[Tensor], optim.Optimizer]
    precision: train.Precision = "float32"


def trained(
    plan: Plan, images: Images, epochs: int, path: Path, enough: Callable[[Sequence[Sequence[float]]], bool]
) -> tuple[model.Params, list[list[float]]]:
    """The members' parameters, and their training errors by epoch, as they were trained on: [epochs, M] in 0..1.

    After each epoch all of it is saved at `path`, from which the same call goes on; `enough(errors)` ends it early.
    """
    device = images.pixels.device
    rates = torch.tensor(plan.rates, dtype=torch.float64, device=device)
    optimizer = ensemble.optimizer(plan.optimizer, rates)
    step = train.make_step(None, optimizer, grad_fn=_graded(plan.arch, plan.precision))
    if device.type == "cuda":  # on a CPU it compiles for a minute and is as fast
        step = train.compile_step(step, donate=True, cudagraph=True)
    if path.exists():
        state, found = checkpoint.load(path, device)
        errors: list[list[float]] = found["errors"]
    else:
        keys = torch.stack([random.key(seed) for seed in plan.seeds]).to(device)
        state = train.create_state(ensemble.init(keys, plan.arch), optimizer, key=random.key(0).to(device))
        errors = []
    while len(errors) < epochs and not enough(errors):
        state, wrong = _epoch(step, state, images, len(errors))
        errors.append(wrong.tolist())
        print(f"epoch {len(errors)}: " + json.dumps([round(error, 4) for error in errors[-1]]), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, state, {"errors": errors})
    return state.params, errors


def _graded(arch: Arch, precision: train.Precision) -> train.GradFn:
    """Every member's gradient, and which share of the batch it has wrong."""

    def loss(params: model.Params, batch: losses.Batch, *, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
        del key
        logits = model.forward(params, batch[0], arch=arch)
        return losses.cross_entropy(logits, batch[1]), (logits.argmax(-1) != batch[1]).double().mean()

    rounded: Any = train.with_precision(loss, precision)

    def gradients(stacked: model.Params, batch: losses.Batch, key: Tensor) -> Any:
        # A CPU takes the members one by one: mapped together their convolutions become slower, grouped ones.
        one_by_one = 1 if batch[0].device.type == "cpu" else None
        each = vmap(grad_and_value(rounded, has_aux=True), in_dims=(0, None), chunk_size=one_by_one)
        grads, (values, wrong) = each(stacked, batch)
        return grads, {"loss": values.mean(), "wrong": wrong}

    return in_precision_of(rounded, gradients)


def _epoch(step: Any, state: train.TrainState, images: Images, epoch: int) -> tuple[train.TrainState, Tensor]:
    device = images.labels.device
    order = random.permutation(random.fold_in(random.key(1), epoch), len(images.labels)).to(device)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with torch.no_grad():
        for index in order.long().split(BATCH):
            x = images.moments.normalized(augment.to_float(images.pixels[index]))
            x = x.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU
            state, metrics = step(state, (x, images.labels[index]))
            total, count = total + metrics["wrong"] * len(index), count + len(index)
    return state, total / count


def of(pixels: Tensor, labels: Tensor) -> Images:
    """With the mean image of those pixels, as cuda-convnet normalises."""
    return Images(pixels, labels, preprocess.statistics(pixels, "mean-image", pixels.shape[-1]))
