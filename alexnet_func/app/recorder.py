"""The record of a run: its directory, or nothing where there is no `--out` and on all ranks but the first."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from alexnet_func import losses, model, parallel, routes
from alexnet_func.app import private, runs
from alexnet_func.app.options import Run
from alexnet_func.app.runs import Progress
from alexnet_func.app.setup import Job
from alexnet_func.data import preprocess


@runtime_checkable
class Recorder(Protocol):
    """What the training loop tells as it goes."""

    def begin(self, device: torch.device) -> Progress | None:
        """Where an earlier run stopped; None: start afresh."""

    def save(self, progress: Progress) -> None:
        """Where the run stands in an epoch."""

    def epoch(self, row: Mapping[str, Any], progress: Progress) -> None:
        """The metrics of an epoch that has ended, and where the run stands."""

    def finish(self, job: Job, params: model.Params) -> None:
        """The run has ended with these parameters."""


def of(run: Run, config: Mapping[str, Any]) -> Recorder:
    """The recorder of a run with that configuration."""
    if run.out is None or parallel.rank() > 0:
        return Silent()
    return Directory(Path(run.out), config, run.keep_every)


@dataclass(frozen=True)
class Silent:
    """Records nothing."""

    def begin(self, device: torch.device) -> None:
        """Starts afresh."""

    def save(self, progress: Progress) -> None:
        """Nothing is kept."""

    def epoch(self, row: Mapping[str, Any], progress: Progress) -> None:
        """Nothing is kept."""

    def finish(self, job: Job, params: model.Params) -> None:
        """Nothing is drawn."""


@dataclass(frozen=True)
class Directory:
    """Keeps `config.json`, `checkpoint.safetensors` and `metrics.jsonl`, and draws pictures at the end."""

    out: Path
    config: Mapping[str, Any]
    keep_every: int | None = None

    def begin(self, device: torch.device) -> Progress | None:
        """As `runs.open_run`; metrics of epochs that will be run again are dropped."""
        progress = runs.open_run(self.out, self.config, device)
        runs.keep_metrics(self.out, 0 if progress is None else progress.epochs)
        return progress

    def save(self, progress: Progress) -> None:
        """Replaces the checkpoint."""
        runs.save(self.out, runs.CHECKPOINT, progress, self.config)

    def epoch(self, row: Mapping[str, Any], progress: Progress) -> None:
        """Adds a row to the metrics and replaces the checkpoint, and the best one by the best; some are kept."""
        runs.append_metrics(self.out, row)
        if self.keep_every is not None and progress.epochs % self.keep_every == 0:
            runs.save(self.out, runs.KEPT.format(f"{progress.epochs:06d}"), progress, self.config)
        if progress.best.epoch == progress.epochs:
            runs.save(self.out, runs.BEST, progress, self.config)
        self.save(progress)

    def finish(self, job: Job, params: model.Params) -> None:
        """Draws the curves, the first layer's kernels and the confusion matrix; a private run's keys are forgotten."""
        if job.plan is not None:
            private.forget(self.out)
        from alexnet_func.app import plots  # matplotlib takes a second to load

        with torch.no_grad():
            pairs = [
                (model.forward(params, x, arch=job.network, table=routes.fused(job.network)).argmax(-1), y)
                for x, y in preprocess.batches(job.test, job.network, job.moments)
            ]
        predicted, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        plots.curves(self.out / runs.METRICS, self.out / "curves.png")
        for name in [name for name, shape in model.param_shapes(job.network).items() if len(shape) == 4][:1]:
            plots.filters(params[name], self.out / "filters.png")
        matrix = losses.confusion_matrix(predicted, labels, len(job.classes))
        plots.confusion(matrix, job.classes, self.out / "confusion.png")
