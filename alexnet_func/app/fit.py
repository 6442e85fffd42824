"""The training run: augmentation, steps, checkpoints, and evaluation after each epoch, on one page."""

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from alexnet_func import arch, losses, model, parallel, random, train
from alexnet_func.app import inputs, recipes, runs
from alexnet_func.app.inputs import Moments
from alexnet_func.app.recipes import Recipe
from alexnet_func.data import augment, datasets
from alexnet_func.losses import Batch

_SAVE_SECONDS = 300.0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """All that a training run depends on but its recipe."""

    data: str
    root: str = "data"
    seed: int = 0
    limit: int | None = None
    out: str | None = None
    resume: bool = False
    init: str | None = None
    device: torch.device = _CPU
    precision: train.Precision = "float32"
    reduction: parallel.Reduction | None = None
    compile: bool = False
    skip_bad_images: bool = False
    stream: bool | None = None
    workers: int | None = None


class InterruptedRunError(Exception):
    """Ctrl-C was pressed; the message says how to go on."""


def fit(run: Run, recipe: Recipe, console: Console) -> train.Metrics:
    """Trains as `recipe` says and returns the metrics on the test split after the last epoch.

    An image's augmentation depends on the seed, the epoch and the image's index alone, dropout on the seed, the step
    and the place in the batch: a run that is resumed goes on bit for bit. Raises FloatingPointError when the loss is no
    longer finite, InterruptedRunError after Ctrl-C, ValueError for settings that do not fit together.
    """
    rank, ranks = parallel.rank(), parallel.world_size()
    _check_ranks(run, recipe, ranks)
    cache = None if run.out is None else Path(run.out)
    out = cache if rank == 0 else None
    if out is not None and not run.resume:
        runs.check_free(out)
    network = arch.get(recipe.arch)
    side = inputs.stored_side(network)
    reading = inputs.Reading(run.device, run.skip_bad_images, run.stream, run.workers, cache)
    with parallel.first_rank_first():  # to download, and to keep what it decodes
        dataset = datasets.load(run.data, root=run.root)
        images = inputs.source(inputs.limited(dataset.train, run.limit), side, reading, console, "train")
        test = inputs.source(dataset.test, side, reading, console, "test")
    network = network.replace(num_classes=len(dataset.classes))
    count = len(images.labels)
    steps = count // recipe.batch_size
    if steps == 0:
        raise ValueError(f"--batch-size {recipe.batch_size} is larger than the {count} training images")
    sample = inputs.sample(images, side)
    moments = Moments(*augment.channel_moments(sample))
    components = augment.rgb_components(sample) if recipe.augmentation == "paper" else None
    prepare = inputs.preparation(recipe, network, moments, components)
    config = _config(run, recipe, network, dataset.classes, moments)

    init_key, train_key, data_key = random.split(random.key(run.seed, run.device), 3)
    orders = functools.partial(_epoch_order, data_key.cpu(), count=count, batch_size=recipe.batch_size)
    optimizer = recipes.optimizer(recipe, steps, run.precision)
    loss_fn = train.with_precision(functools.partial(losses.loss_fn, arch=network), run.precision)
    step = train.make_step(
        loss_fn, optimizer, grad_fn=parallel.grad_fn(loss_fn, reduction=run.reduction) if ranks > 1 else None
    )
    step = train.compile_step(step, donate=True) if run.compile else step
    forward = functools.partial(model.forward, arch=network)

    progress = None if out is None else runs.open_run(out, config, run.device)
    if progress is None:
        params = initial_params(run, init_key, network, console)
        progress = runs.Progress(train.create_state(params, optimizer, key=train_key), 0.0)
    state, loss_sums = parallel.broadcast((progress.state, torch.tensor(progress.loss_sum, device=run.device)))
    loss_sum = float(loss_sums)
    done, result = int(state.step), None
    if out is not None:
        runs.keep_metrics(out, done // steps)
    console.print(f"{network.name} on {run.data}: {count} training and {len(test.labels)} test images, on {run.device}")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    # In a notebook a refreshing thread would now and then swallow a line that is printed at the same moment.
    by_hand = console.is_jupyter
    hidden = not (console.is_terminal or console.is_jupyter)
    bar = Progress(*columns, console=console, disable=hidden, transient=True, auto_refresh=not by_hand)
    with bar, _interrupt_flag() as interrupted:
        task = bar.add_task("training", total=steps * recipe.epochs, completed=done, batch_size=recipe.batch_size)
        saved_at = time.monotonic()
        first_epoch, first = divmod(done, steps)
        # One stream over all epochs, so that files are read ahead across their ends.
        fetched = images.fetch(
            order
            for epoch in range(first_epoch, recipe.epochs)
            for order in map(parallel.share, orders(epoch)[first if epoch == first_epoch else 0 :])
        )
        for epoch in range(first_epoch, recipe.epochs):
            started, before = time.perf_counter(), done
            augment_key = _epoch_keys(data_key, epoch)[1]
            total = torch.tensor(loss_sum, device=run.device)
            while done < (epoch + 1) * steps:
                index, pixels = next(fetched)
                state, metrics = step(state, (prepare(augment_key, index, pixels), images.labels[index]))
                total += metrics["loss"]
                done += 1
                bar.update(task, advance=1, refresh=by_hand)
                due = time.monotonic() - saved_at > _SAVE_SECONDS
                if out is not None and done % steps and (due or interrupted()):
                    runs.save(out, runs.Progress(state, float(total)), config)
                    saved_at = time.monotonic()
                if interrupted() and done % steps:
                    raise InterruptedRunError(_how_to_resume(out))
            loss, loss_sum = float(total) / steps, 0.0
            rate = (done - before) * recipe.batch_size / (time.perf_counter() - started)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in epoch {epoch + 1}: try a smaller --lr than {recipe.lr}"
                )
            own = inputs.batches(test, network, moments, rank, ranks)
            result = parallel.evaluate(forward, state.params, own)
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
        _draw(out, forward, state.params, inputs.batches(test, network, moments), dataset.classes)
    bad = len(images.unreadable) + len(test.unreadable)
    if bad:
        console.print(f"{bad} unreadable image{'s' if bad > 1 else ''} left out")
    return result or parallel.evaluate(forward, state.params, inputs.batches(test, network, moments, rank, ranks))


def _check_ranks(run: Run, recipe: Recipe, ranks: int) -> None:
    if recipe.batch_size % ranks:
        raise ValueError(f"--batch-size {recipe.batch_size} does not divide among {ranks} ranks")
    if ranks > 1 and run.skip_bad_images:
        raise ValueError("--skip-bad-images makes the ranks' batches unequal: let alexnet prepare leave such files out")


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


def _config(run: Run, recipe: Recipe, network: arch.Arch, classes: tuple[str, ...], moments: Moments) -> dict[str, Any]:
    settings = {name: getattr(run, name) for name in ("data", "seed", "limit", "init", "precision", "reduction")}
    varying = {"device": str(run.device), "compile": run.compile}
    described = {"arch": network.to_json(), "classes": classes, **moments._asdict()}
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


def _epoch_keys(data_key: Tensor, epoch: int) -> Tensor:
    """The keys of an epoch's order and of its augmentation, [2, 2]."""
    return random.split(random.fold_in(data_key, epoch))


def _epoch_order(data_key: Tensor, epoch: int, *, count: int, batch_size: int) -> tuple[Tensor, ...]:
    """The indices of an epoch's batches; a last, smaller one is left out."""
    order = random.permutation(_epoch_keys(data_key, epoch)[0], count)
    return order.split(batch_size)[: count // batch_size]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed * task.fields['batch_size']:,.0f} images/s")


@contextmanager
def _interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C only sets what the yielded function returns, so that a step is never cut in two.

    Of several ranks the first alone heeds it: it saves, and the others, waiting for its part of a sum, stop with it.
    """
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield lambda: bool(pressed) and parallel.rank() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def _how_to_resume(out: Path | None) -> str:
    if out is None:
        return "interrupted; nothing was saved, as there is no --out"
    return f"interrupted; go on with the same command and --resume (--out {out})"
