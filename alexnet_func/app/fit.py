"""The training run: data, augmentation, steps, checkpoints, and evaluation after each epoch, on one page."""

import functools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor
from torch.func import vmap

from alexnet_func import arch, losses, model, random, train
from alexnet_func.app import recipes, runs
from alexnet_func.app.recipes import Recipe
from alexnet_func.data import augment, datasets
from alexnet_func.losses import Batch

_LIMIT_SEED = 1000  # no run's seed by default, so that no key is shared with a run
_SAVE_SECONDS = 300.0


@dataclass(frozen=True)
class Run:
    """All that a training run depends on but its recipe."""

    data: str
    root: str
    seed: int
    limit: int | None
    out: str | None
    resume: bool
    init: str | None
    device: torch.device
    precision: train.Precision
    compile: bool
    skip_bad_images: bool


class InterruptedRunError(Exception):
    """Ctrl-C was pressed; the message says how to go on."""


def fit(run: Run, recipe: Recipe, console: Console) -> train.Metrics:
    """Trains as `recipe` says and returns the metrics on the test split after the last epoch.

    An image's augmentation depends on the seed, the epoch and the image's index alone, dropout on the seed, the step
    and the place in the batch: a run that is resumed goes on bit for bit. Raises FloatingPointError when the loss is no
    longer finite, InterruptedRunError after Ctrl-C, ValueError for settings that do not fit together.
    """
    out = None if run.out is None else Path(run.out)
    if out is not None and not run.resume:
        runs.check_free(out)
    network = arch.get(recipe.arch)
    dataset = load_data(run.data, run.root, network, console, skip_bad=run.skip_bad_images)
    network = network.replace(num_classes=len(dataset.classes))
    images, labels = _limited(dataset.train, run.limit).to(run.device)
    test = dataset.test.to(run.device)
    steps = len(labels) // recipe.batch_size
    if steps == 0:
        raise ValueError(f"--batch-size {recipe.batch_size} is larger than the {len(labels)} training images")
    mean, std = augment.channel_moments(images)
    config = _config(run, recipe, network, dataset.classes, mean, std)

    init_key, train_key, data_key = random.split(random.key(run.seed, run.device), 3)
    optimizer = recipes.optimizer(recipe, steps)
    loss_fn = train.with_precision(functools.partial(losses.loss_fn, arch=network), run.precision)
    step = train.make_step(loss_fn, optimizer)
    step = train.compile_step(step, donate=True) if run.compile else step
    forward = functools.partial(model.forward, arch=network)
    prepare = preparation(recipe, network, images, mean, std)

    progress = None if out is None else runs.open_run(out, config, run.device)
    if progress is None:
        params = initial_params(run, init_key, network, console)
        progress = runs.Progress(train.create_state(params, optimizer, key=train_key), 0.0)
    state, loss_sum = progress
    done, result = int(state.step), None
    if out is not None:
        runs.keep_metrics(out, done // steps)
    console.print(
        f"{network.name} on {run.data}: {len(labels)} training and {len(test.labels)} test images, on {run.device}"
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with bar, _interrupt_flag() as interrupted:
        task = bar.add_task("training", total=steps * recipe.epochs, completed=done)
        saved_at = time.monotonic()
        for epoch in range(done // steps, recipe.epochs):
            started, first = time.perf_counter(), done % steps
            order_key, augment_key = random.split(random.fold_in(data_key, epoch)).unbind()
            order = random.permutation(order_key, len(labels)).split(recipe.batch_size)[:steps]
            total = torch.tensor(loss_sum, device=run.device)
            for index in order[first:]:
                state, metrics = step(state, (prepare(augment_key, index, images), labels[index]))
                total += metrics["loss"]
                done += 1
                bar.advance(task)
                due = time.monotonic() - saved_at > _SAVE_SECONDS
                if out is not None and done % steps and (due or interrupted()):
                    runs.save(out, runs.Progress(state, float(total)), config)
                    saved_at = time.monotonic()
                if interrupted() and done % steps:
                    raise InterruptedRunError(_how_to_resume(out))
            loss, loss_sum = float(total) / steps, 0.0
            rate = (steps - first) * recipe.batch_size / (time.perf_counter() - started)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in epoch {epoch + 1}: try a smaller --lr than {recipe.lr}"
                )
            result = train.evaluate(forward, state.params, batches(test, network, mean, std))
            console.print(
                f"epoch {epoch + 1:2d}/{recipe.epochs}  train loss {loss:.4f}  test loss {result.loss:.4f}  "
                f"test accuracy {result.top1:7.2%}  {rate:,.0f} images/s"
            )
            if out is not None:
                runs.append_metrics(out, _row(epoch + 1, done, loss, result, rate))
                runs.save(out, runs.Progress(state, 0.0), config)
                saved_at = time.monotonic()
            if interrupted():
                raise InterruptedRunError(_how_to_resume(out))
    if out is not None:
        _draw(out, forward, state.params, batches(test, network, mean, std), dataset.classes)
    return result or train.evaluate(forward, state.params, batches(test, network, mean, std))


def load_data(
    data: str, root: str, network: arch.Arch, console: Console, *, skip_bad: bool = False
) -> datasets.Dataset:
    """The data set, cut for `network`: for photographs a border of a seventh more, for crops."""
    follow = functools.partial(track, description="reading images", console=console, transient=True)

    def tracked(items: Any, total: int) -> Any:
        return follow(items, total=total) if console.is_terminal else items

    return datasets.load(data, root=root, side=stored_side(network), skip_bad=skip_bad, track=tracked)


def stored_side(network: arch.Arch) -> int:
    """The side of the images kept in memory: 256 for crops of 224 and 227 as in the paper, the arch's own up to 64."""
    return network.image_size if network.image_size <= 64 else 256


def preparation(
    recipe: Recipe, network: arch.Arch, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`prepare(key, index, images)`: those images, each augmented by its own key `fold_in(key, index)`, normalised."""
    side = network.image_size
    components = augment.rgb_components(images) if recipe.augmentation == "paper" else None

    def one(key: Tensor, image: Tensor) -> Tensor:
        crop_key, flip_key, colour_key = random.split(key, 3).unbind()
        if recipe.augmentation.startswith("shift"):
            image = augment.padded_crop(crop_key, image, padding=side // 8)
        else:
            image = augment.random_crop(crop_key, image, side)
        if recipe.augmentation != "shift":
            image = augment.random_flip(flip_key, image)
        x = augment.to_float(image)
        if components is not None:
            x = augment.pca_noise(colour_key, x, components)
        return augment.normalize(x, mean, std)

    def prepare(key: Tensor, index: Tensor, images: Tensor) -> Tensor:
        keys = vmap(random.fold_in, in_dims=(None, 0))(key, index)
        return vmap(one)(keys, images[index])

    return prepare


def batches(
    split: datasets.Split, network: arch.Arch, mean: tuple[float, ...], std: tuple[float, ...], size: int = 256
) -> Iterator[Batch]:
    """The middle of every image of a split, normalised, with its label."""
    for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
        crops = augment.center_crop(images, network.image_size)
        yield augment.normalize(augment.to_float(crops), mean, std), labels


def initial_params(run: Run, key: Tensor, network: arch.Arch, console: Console) -> model.Params:
    """Drawn from `key`, or those of `--init`, whose last layer is drawn anew where its size differs."""
    drawn = model.init(key, network)
    if run.init is None:
        return drawn
    source = runs.load_model(run.init, run.device)
    if source.arch.replace(num_classes=network.num_classes) != network:
        raise ValueError(f"--init {run.init} holds {source.arch.name}, and --arch is {network.name}")
    fresh = [name for name, p in drawn.items() if source.params[name].shape != p.shape]
    if fresh:
        console.print(f"drawn anew, as the classes differ: {', '.join(fresh)}")
    return {name: p if name in fresh else source.params[name] for name, p in drawn.items()}


def _draw(
    out: Path,
    forward: Callable[[model.Params, Tensor], Tensor],
    params: model.Params,
    test_batches: Iterator[Batch],
    classes: tuple[str, ...],
) -> None:
    from alexnet_func.app import plots  # matplotlib takes a second to load

    with torch.no_grad():
        pairs = [(forward(params, x).argmax(-1), y) for x, y in test_batches]
    predicted, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    plots.curves(out / runs.METRICS, out / "curves.png")
    plots.filters(params["features.0.weight"], out / "filters.png")
    plots.confusion(losses.confusion_matrix(predicted, labels, len(classes)), classes, out / "confusion.png")


def _config(
    run: Run, recipe: Recipe, network: arch.Arch, classes: tuple[str, ...], mean: tuple, std: tuple
) -> dict[str, Any]:
    settings = {"data": run.data, "seed": run.seed, "limit": run.limit, "init": run.init, "precision": run.precision}
    varying = {"device": str(run.device), "compile": run.compile}
    described = {"arch": network.to_json(), "classes": classes, "mean": mean, "std": std}
    # Through JSON, so that it compares equal to what a checkpoint gives back.
    return json.loads(json.dumps({**asdict(recipe), **settings, **varying, **described}))


def _row(epoch: int, step: int, loss: float, result: train.Metrics, rate: float) -> dict[str, int | float]:
    return {
        "epoch": epoch,
        "step": step,
        "train_loss": loss,
        "test_loss": result.loss,
        "test_accuracy": result.top1,
        "test_top5": result.top5,
        "images_per_second": rate,
    }


def _limited(split: datasets.Split, limit: int | None) -> datasets.Split:
    """The first `limit` images of a shuffle that is the same in every run."""
    if limit is None:
        return split
    chosen = random.permutation(random.key(_LIMIT_SEED), len(split.labels))[:limit]
    return datasets.Split(split.images[chosen], split.labels[chosen])


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C only sets what the yielded function returns, so that a step is never cut in two."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _how_to_resume(out: Path | None) -> str:
    if out is None:
        return "interrupted; nothing was saved, as there is no --out"
    return f"interrupted; go on with the same command and --resume (--out {out})"
