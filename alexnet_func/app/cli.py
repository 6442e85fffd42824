"""The console script `alexnet`."""

import functools
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import torch
import tyro
from rich.console import Console

from alexnet_func import allocator, machine
from alexnet_func.app import explanation, fit, inspection, models, options, recipes, score, stopping
from alexnet_func.app.options import Eval, Inspect, Predict, Prepare, Run
from alexnet_func.app.progress import Show
from alexnet_func.app.recipes import Recipe
from alexnet_func.app.text import said, shown
from alexnet_func.data import datasets, prepare, sources

Record = TypeVar("Record")


def _unchecked(record: type[Record]) -> type[Record]:
    """The record without its own check, whose errors tyro would turn into a report of its own, and exit with 2."""
    names = {"__post_init__": lambda self: None, "__doc__": record.__doc__, "__module__": record.__module__}
    return dataclass(frozen=True, kw_only=True)(type(record.__name__, (record,), names))


_Run, _Recipe = _unchecked(Run), _unchecked(Recipe)
_OTHERS = {record.__name__.lower(): _unchecked(record) for record in (Eval, Predict, Inspect, Prepare)}


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train AlexNet, report the test accuracy after each epoch, and print the final one."""

    run: tyro.conf.OmitArgPrefixes[_Run]  # type: ignore[valid-type]
    """Data, device and record of the run."""
    recipe: tyro.conf.OmitArgPrefixes[_Recipe]  # type: ignore[valid-type]
    """Network, optimiser, length and augmentation; the defaults are those for --data, --optimizer and --dp-epsilon."""
    name: Annotated[recipes.Name | None, tyro.conf.arg(name="recipe")] = None
    """paper: network, optimiser, schedule and augmentation of 2012; 145: the same as the source code of then has them;
    caffe: Caffe's; cuda_convnet_26 and others: of 2011, for CIFAR-10, named by their published errors in per cent."""


def script() -> int:
    """`main` on the process's own command line, with the process's memory set up for it."""
    allocator.use_huge_pages()
    allocator.keep_freed_memory()
    # It tells whoever compiles for a CPU that no CUDA was found.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is escaped, as it is on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main()
    unwritable = _flushed(sys.stdout)
    if unwritable is not None and code == 0:
        _say(f"standard output cannot be written: {unwritable}")
        code = 1
    _flushed(sys.stderr)
    return code


def _flushed(stream: TextIO | None) -> str | None:
    """Why what was written to it does not arrive, if so. It is dropped: Python would end with a code of its own."""
    if stream is None:  # it is where it was closed from the start
        return None
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error.strerror or str(error)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns its exit code.

    That is 0, or 1 after one line of explanation, or 128 and a signal's number after a signal; wrong options exit with
    2.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in words
    try:
        with stopping.at_once():
            _run(_parsed(words), Show(Console(highlight=False, soft_wrap=True)))
    except stopping.StoppedError as stop:
        _say(str(stop))
        return stop.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        if debug:
            traceback.print_exc()
        _say(reason)
        return 1
    return 0


def _say(reason: str) -> None:
    with suppress(OSError):  # nobody may be left to read it
        print(f"alexnet: {shown(reason)}", file=sys.stderr)


def _reason(error: Exception) -> str | None:
    """What to say of an error; None for a RuntimeError that is a mistake of the program's own."""
    words = said(error)
    if machine.is_want_of_memory(error):
        return f"out of memory: {words}"
    if isinstance(error, RuntimeError):
        died = "a process that decodes images has died, for want of memory perhaps"
        return f"{died}: {words}" if "DataLoader worker" in words else None
    return words


def _parsed(words: Sequence[str]) -> Any:
    """What the words say. The defaults of a training run's recipe are those for its data, which is read first."""
    base = recipes.PHOTOGRAPHS
    if not all(map(str.isprintable, words)):
        _read(list(map(shown, words)), base)  # ends here where tyro would print what they are
    if words[:1] == ["train"]:
        first = _read([word for word in words if word not in ("-h", "--help")], base)
        images = _images_in_folder(first.run) if first.name is None else None
        base = recipes.by_data(first.run.data, first.name, first.recipe.arch, images)
        if first.name is None:
            named = any(word.partition("=")[0] == "--optimizer" for word in words)
            base = recipes.suited(
                base,
                first.recipe.optimizer if named else None,
                private=first.recipe.dp_epsilon is not None,
                split=first.run.parallel == "hybrid",
            )
    return _read(words, base)


def _images_in_folder(run: Run) -> int | None:
    """How many images a run on a folder trains on; None for what has a name, or none at all.

    Errors as `datasets.load` raises them.
    """
    if run.data in recipes.BY_DATA or not run.data.strip():
        return None
    found = len(datasets.load(run.data, root=run.root, holdout=run.holdout).train.labels)
    return found if run.limit is None else min(found, run.limit)


def _read(words: Sequence[str], base: Recipe) -> Any:
    training = tyro.conf.subcommand("train", default=Train(run=_Run(), recipe=_Recipe(**vars(base))))
    commands: Any = Annotated[Train, training]
    for name, record in _OTHERS.items():
        commands |= Annotated[record, tyro.conf.subcommand(name)]
    about = "AlexNet as pure functions: train, evaluate, predict, inspect; prepare data."
    return tyro.cli(commands, prog="alexnet", args=words, description=about)


def _run(chosen: Any, show: Show) -> None:
    match chosen:
        case Train():
            result = fit.fit(Run(**vars(chosen.run)), Recipe(**vars(chosen.recipe)), show.console)
            show.line(f"test accuracy {result.top1 * 100:.2f} % ({result.count} images)")
        case Eval():
            _eval(Eval(**vars(chosen)), show)
        case Predict():
            _predict(Predict(**vars(chosen)), show)
        case Inspect():
            _inspect(Inspect(**vars(chosen)), show)
        case Prepare():
            _prepare(Prepare(**vars(chosen)), show)


def _eval(chosen: Eval, show: Show) -> None:
    device = options.device_of(chosen.device)
    source = _model(chosen.source, device, show)
    reading = _reading(chosen, source, device, show)
    result = score.evaluate(
        source, _dataset(chosen, source, show), chosen.data, ten_crop=chosen.ten_crop, reading=reading, show=show
    )
    show.line(f"test accuracy {result.top1 * 100:.2f} % ({result.count} images)")


def _predict(chosen: Predict, show: Show) -> None:
    device = options.device_of(chosen.device)
    source = _model(chosen.source, device, show)
    orientation = chosen.orientation or source.orientation
    score.predict(source, chosen.images, device=device, show=show, orientation=orientation)


def _inspect(chosen: Inspect, show: Show) -> None:
    device = options.device_of(chosen.device)
    out = chosen.out or (chosen.source if Path(chosen.source).is_dir() else ".")
    source = _model(chosen.source, device, show)
    dataset, reading = _dataset(chosen, source, show), _reading(chosen, source, device, show)
    how: dict[str, Any] = {"limit": chosen.limit, "reading": reading, "show": show}
    if chosen.explain:
        kept = models.load_kept(chosen.source, device)
        explanation.explain(kept, dataset, chosen.data, Path(out), chosen.explain, views=chosen.views, **how)
    else:
        inspection.inspect(source, dataset, chosen.data, Path(out), **how)


def _model(source: str, device: torch.device, show: Show) -> models.Model:
    found = models.load_model(source, device)
    show.lines([found.note] if found.note else [])
    return found


def _dataset(chosen: Eval | Inspect, source: models.Model, show: Show) -> datasets.Dataset:
    dataset = datasets.load(chosen.data, root=chosen.root, holdout=chosen.holdout)
    if None not in (chosen.holdout, source.holdout) and chosen.holdout != source.holdout:
        show.line(f"the network was trained with --holdout {source.holdout:g}, and may have seen images held out here")
    show.lines(dataset.notes)
    return dataset


def _reading(chosen: Eval | Inspect, source: models.Model, device: torch.device, show: Show) -> sources.Reading:
    return sources.Reading(
        device,
        skip_bad=chosen.skip_bad_images,
        orientation=chosen.orientation or source.orientation,
        track=show.track,
        tell=show.line,
    )


def _prepare(chosen: Prepare, show: Show) -> None:
    started = time.perf_counter()
    prepared = prepare.prepare(
        datasets.load(chosen.source, root=chosen.root, holdout=chosen.holdout),
        Path(chosen.out),
        orientation=chosen.orientation,
        side=chosen.side,
        skip_bad=chosen.skip_bad_images,
        workers=chosen.workers,
        track=functools.partial(show.track, "writing shards"),
    )
    for reason in prepared.unreadable:
        show.line(f"left out: {reason}")
    train, test = prepared.counts["train"], prepared.counts["test"]
    rate = (train + test) / (time.perf_counter() - started)
    show.line(f"{chosen.out} holds {train} training and {test} test images ({rate:,.0f} images/s)")
