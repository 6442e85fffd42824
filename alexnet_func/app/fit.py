"""A training run: set-up, loop, record.

The options of `alexnet train` go one way: `cli` parses them into `options.Run` and `recipes.Recipe`, which check
themselves; `setup.prepared` makes of both a `Job` (data by `data.datasets` and `data.sources`, statistics and
preparation by `data.preprocess`, the step by `steps.made`); `loop.train` runs it and tells a `recorder` and a
`progress.Show`. None of these calls one that stands before it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from alexnet_func import files, model, parallel, precision, privacy, train
from alexnet_func.app import agreement, loop, models, options, private, recorder, runs, setup, stopping
from alexnet_func.app.options import Run
from alexnet_func.app.progress import Show, UnwritableError
from alexnet_func.app.recipes import Recipe
from alexnet_func.data import preprocess

_BATCH = 256  # images, where nothing but memory depends on it


def fit(run: Run, recipe: Recipe, console: Console) -> train.Metrics:
    """Trains as `recipe` says and returns the metrics on the test split after the last epoch.

    An image's augmentation depends on the seed, the epoch and the image's index alone, of a private run on the step
    too, and with "source" on the image that opens its group of 32; dropout on the seed, the step and the place in the
    batch: a run that is resumed goes on bit for bit. Under torchrun this process is one of the ranks. Raises
    FloatingPointError when the loss is no longer finite, StoppedError after a signal, BlockingIOError where another
    process uses `--out`, ValueError for settings that do not fit together.
    """
    parent = os.getppid()
    with parallel.joined(options.device_of(run.device)) as device, _in_use(run), precision.same_sums():
        agreement.check_options(run, recipe)
        console.quiet = parallel.rank() > 0
        show = Show(console)
        job = setup.prepared(run, recipe, device, show)
        agreement.check_data(job.config)
        record = recorder.of(run, job.config)
        with stopping.after_a_step(parent) as asked:
            try:
                start = _agreed(_begun(run, job, record, device, show), device)
                start = start._replace(state=job.layout.own(start.state))
                _tell_start(run, job, start, device, show)
                state, result = loop.train(job, start, record, show, asked)
                _tell_audit(job, state, show)
                record.finish(job, models.evaluated(state))
            except (loop.AskedToStopError, UnwritableError, RuntimeError) as error:
                number = asked()
                if number is None:
                    raise
                # A terminal that is closed sends a signal, and an epoch is saved before it is told. A RuntimeError is
                # what a compiler says that a signal to the whole process group has ended.
                raise stopping.StoppedError(number, _how_to_go_on(run.out)) from error
            if (number := asked()) is not None:
                raise stopping.StoppedError(number, "the run had ended" + (" and is saved" if run.out else ""))
        bad = len(job.images.unreadable) + len(job.test.unreadable)
        if bad:
            show.line(f"{bad} unreadable image{'s' if bad > 1 else ''} left out")
        return result or loop.evaluate(job, state)


def _begun(run: Run, job: setup.Job, record: recorder.Recorder, device: torch.device, show: Show) -> runs.Progress:
    """Where the run starts. A fresh one is saved at once: whatever ends it after that, it can be resumed."""
    progress = record.begin(device)
    if progress is not None:
        _check_place(run, progress, job.steps)
        if job.plan is not None and job.secrets is None and not loop.finished(job, progress):
            raise ValueError(f"{Path(run.out or '') / private.KEY} is gone, and without it a private run cannot go on")
        return progress
    progress = setup.fresh(run, job, device, show)
    record.save(progress)
    return progress


def _tell_start(run: Run, job: setup.Job, start: runs.Progress, device: torch.device, show: Show) -> None:
    counts = f"{len(job.images.labels)} training and {len(job.test.labels)} test images"
    chosen = options.precision_of(run, job.recipe, device)
    lowered = "" if chosen == "float32" else f" in {chosen}"
    show.line(f"{job.network.name} on {run.data}: {counts}, on {device}{lowered}")
    if job.plan is not None:
        show.line(private.told(job.recipe, job.plan))
    if loop.finished(job, start):
        how = "" if job.plan is not None else ": a larger --epochs or --patience goes on"
        show.line(f"finished before, after epoch {start.epochs}{how}")


def _tell_audit(job: setup.Job, state: train.TrainState, show: Show) -> None:
    """Of a run with an audit, what it proves: images that were trained on are told from the others by their losses."""
    if job.plan is None or job.secrets is None or job.recipe.dp_audit is None:
        return
    chosen, included = private.audited(job.recipe, job.plan.examples, job.secrets)
    params, order, scores = models.evaluated(state), [], []
    for index, (x, y) in preprocess.indexed_batches(job.images, chosen.split(_BATCH), job.network, job.moments):
        logits = model.forward(params, x, arch=job.network)
        order.append(index.cpu())
        scores.append(-cross_entropy(logits, y, reduction="none").cpu())
    known = torch.isin(torch.cat(order), chosen[included])
    least = privacy.audit(torch.cat(scores), known, job.plan.delta)
    spent = job.plan.spent(int(state.step))
    bounds = f"at least {least:.3f} with 95 % confidence, and at most {spent:.3f}"
    show.line(f"audit of {len(known)} images: epsilon is {bounds}")


def _check_place(run: Run, progress: runs.Progress, steps: int) -> None:
    step, epochs = int(progress.state.step), progress.epochs
    if not epochs * steps <= step <= (epochs + 1) * steps:
        raise ValueError(
            f"{Path(run.out or '') / runs.CHECKPOINT} is no checkpoint of this run: after {epochs} epochs of {steps} "
            f"steps it tells of step {step}"
        )


@contextmanager
def _in_use(run: Run) -> Iterator[None]:
    """Within the block no other process uses the run's directory, which must be free for a run that begins."""
    if run.out is None or parallel.rank() > 0:
        yield
        return
    out = Path(run.out)
    if (out.is_symlink() or out.exists()) and not out.is_dir():
        raise ValueError(f"--out {out} is no directory")
    if not run.resume:
        runs.check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out):
        yield


def _agreed(start: runs.Progress, device: torch.device) -> runs.Progress:
    """The first rank's, on every rank."""
    numbers = torch.tensor([start.loss_sum, start.epochs, *start.best], dtype=torch.float64, device=device)
    state, numbers = parallel.broadcast((start.state, numbers))
    loss_sum, epochs, accuracy, epoch = numbers.tolist()
    return runs.Progress(state, loss_sum, int(epochs), runs.Best(accuracy, int(epoch)))


def _how_to_go_on(out: str | None) -> str:
    if out is None:
        return "nothing was saved, as there is no --out"
    return f"go on with the same command and --resume (--out {out})"
