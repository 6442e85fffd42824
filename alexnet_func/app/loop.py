"""The training loop: the steps of each epoch, then an evaluation, and what is told and kept of both."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from alexnet_func import model, parallel, routes
from alexnet_func.app import models
from alexnet_func.app.progress import Show
from alexnet_func.app.recorder import Recorder
from alexnet_func.app.runs import Best, Progress
from alexnet_func.app.setup import Job, epoch_keys, orders_from
from alexnet_func.data import preprocess, sources
from alexnet_func.losses import Batch
from alexnet_func.train import Metrics, TrainState

_SAVE_SECONDS = 300.0


class AskedToStopError(Exception):
    """The loop was asked to stop, and has: what was done is saved."""


def train(
    job: Job, start: Progress, record: Recorder, show: Show, asked: Callable[[], object]
) -> tuple[TrainState, Metrics | None]:
    """Goes on from `start` to the last epoch; returns the whole state and, if there was one, the last metrics.

    Where `asked()` is true after a step or a batch of an evaluation, it saves and raises AskedToStopError. Raises
    FloatingPointError, without saving, when the loss is no longer finite.
    """
    now, result, done = start, None, int(start.state.step)
    fetched = job.images.fetch(orders_from(job, done))
    with show.steps(job.steps * job.recipe.epochs, done, job.recipe.batch_size) as advance:
        while not finished(job, now):
            began, steps = time.perf_counter(), job.steps * (now.epochs + 1) - done
            now = run_epoch(job, now, steps, fetched, record, advance, asked)
            done += steps
            rate = steps * job.recipe.batch_size / (time.perf_counter() - began) if steps else None
            whole = now._replace(state=job.layout.whole(now.state))
            result = evaluate(job, whole.state, asked)
            if asked():
                record.save(whole)
                raise AskedToStopError
            loss = now.loss_sum / job.steps
            _check_finite(result.loss, job, now)
            best = now.best if result.top1 <= now.best.accuracy else Best(result.top1, now.epochs + 1)
            now = Progress(now.state, 0.0, now.epochs + 1, best)
            row = _row(now, done, loss, result, rate) | _spent(job, now)
            record.epoch(row, now._replace(state=whole.state))
            show.line(_told(row, job.recipe.epochs))
    return job.layout.whole(now.state), result


def run_epoch(
    job: Job,
    start: Progress,
    steps: int,
    fetched: sources.Fetched,
    record: Recorder,
    advance: Callable[[], None],
    asked: Callable[[], object],
) -> Progress:
    """The so many steps that are left of the epoch that `start` is in. Saves and raises as `train`.

    A GPU is waited for at the end of it, not between steps, unless ranks must agree in each whether to save.
    """
    augment_key = epoch_keys(job.data_key, start.epochs)[1]
    state, total = start.state, torch.full((), start.loss_sum, dtype=torch.float32, device=start.state.step.device)
    saved_at = time.monotonic()
    for _ in range(steps):
        index, pixels = next(fetched)
        sources.check_any(len(index), job.images, "a batch")
        state, metrics = job.step(state, (augment_key, index, pixels, job.images.labels[index]))
        total += metrics["loss"]
        advance()
        stop = bool(asked())
        if job.layout.agreed(stop or time.monotonic() - saved_at > _SAVE_SECONDS):
            _check_finite(float(total), job, start)
            record.save(start._replace(state=job.layout.whole(state), loss_sum=float(total)))
            saved_at = time.monotonic()
        if stop:
            raise AskedToStopError
    loss_sum = float(total)
    _check_finite(loss_sum, job, start)
    return start._replace(state=state, loss_sum=loss_sum)


def evaluate(job: Job, state: TrainState, asked: Callable[[], object] = lambda: None) -> Metrics:
    """The metrics on the test split, shared among the ranks: of the batches until `asked()` is true."""
    own = preprocess.batches(job.test, job.network, job.moments, parallel.rank(), parallel.world_size())
    forward = functools.partial(model.forward, arch=job.network, table=routes.fused(job.network))
    return parallel.evaluate(forward, models.evaluated(state), _until(asked, own))


def finished(job: Job, now: Progress) -> bool:
    """Whether all epochs are done, or so many of them in vain that its patience is at an end."""
    if job.patience is not None and now.epochs - now.best.epoch >= job.patience:
        return True
    return now.epochs >= job.recipe.epochs


def _until(asked: Callable[[], object], batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        if asked():
            return


def _check_finite(loss: float, job: Job, now: Progress) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} in epoch {now.epochs + 1}: try a smaller --lr than {job.recipe.lr}"
        )


def _told(row: Mapping[str, Any], epochs: int) -> str:
    losses = f"train loss {row['train_loss']:.4f}  test loss {row['test_loss']:.4f}"
    line = f"epoch {row['epoch']:2d}/{epochs}  {losses}  test accuracy {row['test_accuracy']:7.2%}"
    if "epsilon" in row:
        line += f"  epsilon {row['epsilon']:.3f}"
    # An epoch whose steps were done before the run was stopped and resumed has no rate.
    return line if row["images_per_second"] is None else f"{line}  {row['images_per_second']:,.0f} images/s"


def _spent(job: Job, now: Progress) -> dict[str, float]:
    """What of a private run's epsilon is spent, and the bound of gradients where it moves."""
    if job.plan is None:
        return {}
    bound = now.state.opt_state.get("max_norm")
    spent = {"epsilon": job.plan.spent(int(now.state.step))}
    return spent if bound is None else {**spent, "max_norm": float(bound)}


def _row(now: Progress, step: int, loss: float, result: Metrics, rate: float | None) -> dict[str, Any]:
    return {
        "epoch": now.epochs,
        "step": step,
        "train_loss": loss,
        "test_loss": result.loss,
        "test_accuracy": result.top1,
        "test_top5": result.top5,
        "images_per_second": rate,
    }
