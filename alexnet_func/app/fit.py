"""A training run: set-up, loop, record.

The options of `alexnet train` go one way: `cli` parses them into `options.Run` and `recipes.Recipe`, which check
themselves; `setup.prepared` makes of both a `Job` (data by `data.datasets` and `data.sources`, statistics and
preparation by `data.preprocess`, the step by `alexnet_func.train`); `loop.train` runs it and tells a `recorder` and a
`progress.Show`. None of these calls one that stands before it.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from alexnet_func import parallel, train
from alexnet_func.app import loop, options, recorder, runs, setup
from alexnet_func.app.loop import InterruptedRunError
from alexnet_func.app.options import Run
from alexnet_func.app.progress import Show
from alexnet_func.app.recipes import Recipe


def fit(run: Run, recipe: Recipe, console: Console) -> train.Metrics:
    """Trains as `recipe` says and returns the metrics on the test split after the last epoch.

    An image's augmentation depends on the seed, the epoch and the image's index alone, dropout on the seed, the step
    and the place in the batch: a run that is resumed goes on bit for bit. Under torchrun this process is one of the
    ranks. Raises FloatingPointError when the loss is no longer finite, InterruptedRunError after Ctrl-C, ValueError
    for settings that do not fit together.
    """
    with parallel.joined(options.device_of(run.device)) as device:
        console.quiet = parallel.rank() > 0
        show = Show(console)
        if run.out is not None and parallel.rank() == 0 and not run.resume:
            runs.check_free(Path(run.out))
        job = setup.prepared(run, recipe, device, show)
        record = recorder.of(run, job.config)
        start = record.begin(device, job.steps) or setup.fresh(run, job, device, show)
        state, loss_sum = parallel.broadcast((start.state, torch.tensor(start.loss_sum, device=device)))
        counts = f"{len(job.images.labels)} training and {len(job.test.labels)} test images"
        show.line(f"{job.network.name} on {run.data}: {counts}, on {device}")
        with _interrupt_flag() as interrupted:
            try:
                state, result = loop.train(job, runs.Progress(state, float(loss_sum)), record, show, interrupted)
            except InterruptedRunError as interruption:
                raise InterruptedRunError(_how_to_resume(run.out)) from interruption
        record.finish(job, state.params)
        bad = len(job.images.unreadable) + len(job.test.unreadable)
        if bad:
            show.line(f"{bad} unreadable image{'s' if bad > 1 else ''} left out")
        return result or loop.evaluate(job, state)


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


def _how_to_resume(out: str | None) -> str:
    if out is None:
        return "interrupted; nothing was saved, as there is no --out"
    return f"interrupted; go on with the same command and --resume (--out {out})"
