"""The training loop: the steps of each epoch, then an evaluation, and what is told and kept of both."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from alexnet_func import model, parallel
from alexnet_func.app.progress import Show
from alexnet_func.app.recorder import Recorder
from alexnet_func.app.runs import Progress
from alexnet_func.app.setup import Job, epoch_keys, orders_from
from alexnet_func.data import preprocess
from alexnet_func.train import Metrics, TrainState

_SAVE_SECONDS = 300.0


class InterruptedRunError(Exception):
    """The run was asked to stop, and has stopped after a step."""


def train(
    job: Job, start: Progress, record: Recorder, show: Show, stopped: Callable[[], bool]
) -> tuple[TrainState, Metrics | None]:
    """Goes on from `start` to the last epoch; returns the state and, if there was one, the last evaluation's metrics.

    `stopped()` is asked after every step. Raises InterruptedRunError where it says so, with the state saved;
    FloatingPointError when the loss of an epoch is not finite.
    """
    epochs, steps = job.recipe.epochs, job.steps
    state, done, loss_sum, result = start.state, int(start.state.step), start.loss_sum, None
    fetched = job.images.fetch(orders_from(job, done))
    saved_at = time.monotonic()
    with show.steps(steps * epochs, done, job.recipe.batch_size) as advance:
        for epoch in range(done // steps, epochs):
            began, before = time.perf_counter(), done
            augment_key = epoch_keys(job.data_key, epoch)[1]
            total = torch.tensor(loss_sum, device=state.step.device)
            while done < (epoch + 1) * steps:
                index, pixels = next(fetched)
                state, metrics = job.step(state, (job.prepare(augment_key, index, pixels), job.images.labels[index]))
                total += metrics["loss"]
                done += 1
                advance()
                if done % steps and (stopped() or time.monotonic() - saved_at > _SAVE_SECONDS):
                    record.save(Progress(state, float(total)))
                    saved_at = time.monotonic()
                if done % steps and stopped():
                    raise InterruptedRunError
            rate = (done - before) * job.recipe.batch_size / (time.perf_counter() - began)
            loss, loss_sum = _finite(float(total) / steps, epoch, job.recipe.lr), 0.0
            result = evaluate(job, state)
            record.epoch(_row(epoch + 1, done, loss, result, rate), Progress(state, 0.0))
            saved_at = time.monotonic()
            show.line(_told(epoch + 1, epochs, loss, result, rate))
            if stopped():
                raise InterruptedRunError
    return state, result


def evaluate(job: Job, state: TrainState) -> Metrics:
    """The metrics on the test split, shared among the ranks."""
    own = preprocess.batches(job.test, job.network, job.moments, parallel.rank(), parallel.world_size())
    return parallel.evaluate(functools.partial(model.forward, arch=job.network), state.params, own)


def _finite(loss: float, epoch: int, lr: float) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} in epoch {epoch + 1}: try a smaller --lr than {lr}")
    return loss


def _told(epoch: int, epochs: int, loss: float, result: Metrics, rate: float) -> str:
    return (
        f"epoch {epoch:2d}/{epochs}  train loss {loss:.4f}  test loss {result.loss:.4f}  "
        f"test accuracy {result.top1:7.2%}  {rate:,.0f} images/s"
    )


def _row(epoch: int, step: int, loss: float, result: Metrics, rate: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": step,
        "train_loss": loss,
        "test_loss": result.loss,
        "test_accuracy": result.top1,
        "test_top5": result.top5,
        "images_per_second": rate,
    }
