"""The console script `alexnet`."""

import functools
import io
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from rich.console import Console

from alexnet_func import allocator
from alexnet_func.app import fit, inspection, options, recipes, runs, score
from alexnet_func.app.options import Eval, Flag, Inspect, Predict, Prepare, Run
from alexnet_func.app.progress import Show
from alexnet_func.app.recipes import Recipe
from alexnet_func.app.text import shown
from alexnet_func.data import datasets, prepare, sources

Record = TypeVar("Record")


def _unchecked(record: type[Record]) -> type[Record]:
    """The record without its own check, whose errors tyro would turn into a report of its own, and exit with 2."""
    names = {"__post_init__": lambda self: None, "__doc__": record.__doc__, "__module__": record.__module__}
    return dataclass(frozen=True)(type(record.__name__, (record,), names))


_Run, _Recipe = _unchecked(Run), _unchecked(Recipe)


@dataclass(frozen=True)
class Train:
    """Train AlexNet, report the test accuracy after each epoch, and print the final one."""

    run: tyro.conf.OmitArgPrefixes[_Run]  # type: ignore[valid-type]
    """Data, device and record of the run."""
    recipe: tyro.conf.OmitArgPrefixes[_Recipe]  # type: ignore[valid-type]
    """Network, optimiser, length and augmentation; the defaults are those for --data."""
    name: Annotated[Literal["paper"] | None, tyro.conf.arg(name="recipe")] = None
    """paper: network, optimiser, schedule and augmentation of 2012."""
    debug: Flag = False
    """Show the traceback of an error."""


def script() -> int:
    """`main` on the process's own command line, with the process's memory set up for it."""
    allocator.use_huge_pages()
    allocator.keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks is escaped, as it is on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line: 0, 1 after one line of explanation, 130 after Ctrl-C; wrong options exit with 2."""
    words = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in words
    try:
        _run(_parsed(words), Show(Console(highlight=False, soft_wrap=True)))
    except fit.InterruptedRunError as interruption:
        print(f"alexnet: {shown(str(interruption))}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("alexnet: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        if debug:
            traceback.print_exc()
        print(f"alexnet: {shown(str(error))}", file=sys.stderr)
        return 1
    return 0


def _parsed(words: Sequence[str]) -> Any:
    """What the words say. The defaults of a training run's recipe are those for its data, which is read first."""
    base = recipes.PHOTOGRAPHS
    if not all(map(str.isprintable, words)):
        _read(list(map(shown, words)), base)  # ends here where tyro would print what they are
    if words[:1] == ["train"]:
        first = _read([word for word in words if word not in ("-h", "--help")], base)
        base = recipes.by_data(first.run.data, first.name, first.recipe.arch)
    return _read(words, base)


def _read(words: Sequence[str], base: Recipe) -> Any:
    training = tyro.conf.subcommand("train", default=Train(_Run(), _Recipe(**vars(base))))
    commands: Any = Annotated[Train, training]
    for name, record in (("eval", Eval), ("predict", Predict), ("inspect", Inspect), ("prepare", Prepare)):
        commands |= Annotated[_unchecked(record), tyro.conf.subcommand(name)]
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
    source = runs.load_model(chosen.source, device)
    reading = sources.Reading(device, chosen.skip_bad_images, track=show.track, tell=show.line)
    result = score.evaluate(source, chosen.data, chosen.root, ten_crop=chosen.ten_crop, reading=reading, show=show)
    show.line(f"test accuracy {result.top1 * 100:.2f} % ({result.count} images)")


def _predict(chosen: Predict, show: Show) -> None:
    device = options.device_of(chosen.device)
    score.predict(runs.load_model(chosen.source, device), chosen.images, device=device, show=show)


def _inspect(chosen: Inspect, show: Show) -> None:
    device = options.device_of(chosen.device)
    out = chosen.out or (chosen.source if Path(chosen.source).is_dir() else ".")
    inspection.inspect(
        runs.load_model(chosen.source, device),
        chosen.data,
        chosen.root,
        Path(out),
        limit=chosen.limit,
        # Streamed, since then an index stays that of its file where others cannot be read.
        reading=sources.Reading(device, chosen.skip_bad_images, stream=True, track=show.track, tell=show.line),
        show=show,
    )


def _prepare(chosen: Prepare, show: Show) -> None:
    started = time.perf_counter()
    prepared = prepare.prepare(
        datasets.load(chosen.source, root=chosen.root),
        Path(chosen.out),
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
