"""The training run: data, augmentation, steps, and evaluation after each epoch, on one page."""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.func import vmap

from alexnet_func import arch, losses, model, optim, random, train
from alexnet_func.data import augment, datasets
from alexnet_func.losses import Batch


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained: optimiser, length, augmentation, and its mean and std a channel (0..1)."""

    arch: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    padding: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_LIMIT_SEED = 1000  # no run's seed by default, as for the split of the digits

RECIPES = {
    "digits": Recipe(
        arch="alexnet_cifar",
        epochs=15,
        batch_size=32,
        lr=0.02,
        momentum=0.9,
        weight_decay=5e-4,
        padding=4,
        mean=(0.305, 0.305, 0.305),
        std=(0.376, 0.376, 0.376),
    ),
}


def fit(
    data: str, recipe: Recipe, *, seed: int, device: torch.device, limit: int | None, console: Console
) -> train.Metrics:
    """Trains as `recipe` says and returns the metrics on the test split after the last epoch.

    The rate warms up for one epoch and falls as a cosine. An image's augmentation depends on the seed, the epoch
    and the image's index alone. Raises FloatingPointError when the loss is no longer finite.
    """
    dataset = datasets.load(data)
    images, labels = _limited(dataset.train, limit).to(device)
    test = dataset.test.to(device)
    steps = len(labels) // recipe.batch_size
    if steps == 0:
        raise ValueError(f"--batch-size {recipe.batch_size} is larger than the {len(labels)} training images")

    network = arch.get(recipe.arch).replace(num_classes=len(dataset.classes))
    init_key, train_key, data_key = random.split(random.key(seed, device), 3)
    schedule = optim.warmup_cosine(recipe.lr, warmup_steps=steps, total_steps=steps * recipe.epochs + 1)
    optimizer = optim.sgd(schedule, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    step = train.make_step(functools.partial(losses.loss_fn, arch=network), optimizer)
    forward = functools.partial(model.forward, arch=network)
    state = train.create_state(model.init(init_key, network), optimizer, key=train_key)
    console.print(f"{network.name} on {data}: {len(labels)} training and {len(test.labels)} test images, on {device}")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("training", total=steps * recipe.epochs)
        for epoch in range(recipe.epochs):
            started = time.perf_counter()
            epoch_key = random.fold_in(data_key, epoch)
            total = torch.zeros((), device=device)
            order_key, augment_key = random.split(epoch_key).unbind()
            for index in random.permutation(order_key, len(labels)).split(recipe.batch_size)[:steps]:
                x = augmented(augment_key, index, images, recipe)
                state, metrics = step(state, (x, labels[index]))
                total += metrics["loss"]
                progress.advance(bar)
            loss = float(total) / steps
            rate = steps * recipe.batch_size / (time.perf_counter() - started)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in epoch {epoch + 1}: try a smaller --lr than {recipe.lr}"
                )
            result = train.evaluate(forward, state.params, _test_batches(test, recipe))
            console.print(
                f"epoch {epoch + 1:2d}/{recipe.epochs}  train loss {loss:.4f}  test loss {result.loss:.4f}  "
                f"test accuracy {result.top1:7.2%}  {rate:,.0f} images/s"
            )
    return result


def augmented(key: random.Key, index: Tensor, images: Tensor, recipe: Recipe) -> Tensor:
    """The training images of that index, each shifted by its own key `fold_in(key, index)`, normalised."""
    keys = vmap(random.fold_in, in_dims=(None, 0))(key, index)
    crops = vmap(functools.partial(augment.padded_crop, padding=recipe.padding))(keys, images[index])
    return augment.normalize(augment.to_float(crops), recipe.mean, recipe.std)


def _limited(split: datasets.Split, limit: int | None) -> datasets.Split:
    """The first `limit` images of a shuffle that is the same in every run."""
    if limit is None:
        return split
    chosen = random.permutation(random.key(_LIMIT_SEED), len(split.labels))[:limit]
    return datasets.Split(split.images[chosen], split.labels[chosen])


def _test_batches(test: datasets.Split, recipe: Recipe) -> Iterator[Batch]:
    for images, labels in zip(test.images.split(256), test.labels.split(256), strict=True):
        yield augment.normalize(augment.to_float(images), recipe.mean, recipe.std), labels
