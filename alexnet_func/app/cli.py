"""The console script `alexnet`."""

import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from alexnet_func import allocator, parallel
from alexnet_func.app import fit, inputs, inspection, recipes, runs, score
from alexnet_func.data import datasets, prepare


def _shown_as(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar)


Device = Literal["auto", "cpu", "cuda"]
Flag = tyro.conf.FlagCreatePairsOff[bool]
_COMPILE = tyro.conf.create_mutex_group(required=False, title="compilation of the training step")
_STREAM = tyro.conf.create_mutex_group(required=False, title="image files in memory")


@dataclass(frozen=True)
class Train:
    """Train AlexNet, report the test accuracy after each epoch, and print the final one."""

    data: Annotated[str, _shown_as("NAME|DIR")] = "digits"
    """digits (embedded, no download), cifar10, cifar100, imagenet, a folder with train/<class>/* and test/ or val/, or
    one that prepare wrote."""
    root: Annotated[str, _shown_as("DIR")] = "data"
    """Where downloaded data sets lie."""
    arch: Annotated[str | None, _shown_as("NAME")] = None
    """alexnet, alexnet_2012, caffenet or alexnet_cifar; None, here and below: what the data set's recipe says."""
    recipe: Literal["paper"] | None = None
    """paper: network, optimiser, schedule and augmentation of 2012."""
    epochs: Annotated[int | None, _shown_as("N")] = None
    """Passes over the training images."""
    batch_size: Annotated[int | None, _shown_as("N")] = None
    """Images a step."""
    lr: Annotated[float | None, _shown_as("F")] = None
    """Peak learning rate."""
    optimizer: recipes.OptimizerName | None = None
    """SGD with momentum, or AdamW, which wants a much smaller rate and a larger decay; muon: orthogonalised momentum
    for all convolutions but the first, AdamW at a twentieth of the rate for the rest."""
    momentum: Annotated[float | None, _shown_as("F")] = None
    """Momentum of the velocity, and AdamW's b1."""
    weight_decay: Annotated[float | None, _shown_as("F")] = None
    """Decay added to the gradient, or AdamW's."""
    schedule: Literal["constant", "cosine", "linear", "step"] | None = None
    """How the rate falls; cosine and linear warm up for a tenth of the run, step divides by ten three times."""
    augmentation: recipes.Augmentation | None = None
    """Random shifts, crops (resized: of random size and shape), flips; paper: crop, flip and colour noise."""
    seed: Annotated[int, _shown_as("N")] = 0
    """Seed of the run's key; initial parameters, dropout, order and augmentation follow from it."""
    out: Annotated[str | None, _shown_as("RUN")] = None
    """Directory for config.json, checkpoint.safetensors and metrics.jsonl; None: nothing is saved."""
    resume: Flag = False
    """Go on with the checkpoint in --out, if there is one."""
    init: Annotated[str | None, _shown_as("torchvision|FILE|RUN")] = None
    """Start from these parameters."""
    device: Device = "auto"
    """Where to train; auto takes CUDA if there is any."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of the forward and backward pass; parameters stay float32."""
    reduction: Literal["bf16"] | None = None
    """Under torchrun: round gradients to bfloat16 for their way between ranks."""
    compile: Annotated[Flag, _COMPILE] = False
    """Compile it; the default on CUDA alone."""
    no_compile: Annotated[Flag, _COMPILE] = False
    """Run it eagerly; the default on a CPU."""
    limit: Annotated[int | None, _shown_as("N")] = None
    """Train on the first N images of a fixed shuffle; None: on all."""
    stream: Annotated[Flag, _STREAM] = False
    """Decode them again for every epoch; the default for what takes more than a quarter of the memory."""
    no_stream: Annotated[Flag, _STREAM] = False
    """Decode them once into memory; the default for the rest. A run's result is the same."""
    workers: Annotated[int | None, _shown_as("N")] = None
    """Processes that decode a stream; None: one a processor, and none for up to 1,000 images."""
    skip_bad_images: Flag = False
    """Leave unreadable images out instead of stopping."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Eval:
    """Evaluate a network on the test split: top-1, top-5, loss, accuracy by class, confusion matrix."""

    source: tyro.conf.Positional[Annotated[str, _shown_as("RUN|FILE|torchvision")]]
    """A run directory, a checkpoint, a file of torchvision's AlexNet, or the published weights."""
    data: Annotated[str, _shown_as("NAME|DIR")] = "digits"
    """As for train."""
    root: Annotated[str, _shown_as("DIR")] = "data"
    """Where downloaded data sets lie."""
    ten_crop: Flag = False
    """Average over four corners and centre and their mirror images."""
    device: Device = "auto"
    """Where to compute."""
    skip_bad_images: Flag = False
    """Leave unreadable images out instead of stopping."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Predict:
    """Print the five likeliest classes of each image."""

    source: tyro.conf.Positional[Annotated[str, _shown_as("RUN|FILE|torchvision")]]
    """As for eval."""
    images: tyro.conf.Positional[Annotated[tuple[str, ...], _shown_as("IMAGE")]]
    """Image files."""
    device: Device = "auto"
    """Where to compute."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Inspect:
    """Show the training images with the largest gradients, where wrong labels and oddities surface."""

    source: tyro.conf.Positional[Annotated[str, _shown_as("RUN|FILE|torchvision")]]
    """As for eval."""
    data: Annotated[str, _shown_as("NAME|DIR")] = "digits"
    """As for train."""
    root: Annotated[str, _shown_as("DIR")] = "data"
    """Where downloaded data sets lie."""
    out: Annotated[str | None, _shown_as("DIR")] = None
    """Directory for inspect.png and inspect.csv; None: the run's own, or this one."""
    limit: Annotated[int | None, _shown_as("N")] = None
    """The first N training images of a fixed shuffle; None: all."""
    device: Device = "auto"
    """Where to compute."""
    skip_bad_images: Flag = False
    """Leave unreadable images out instead of stopping."""
    debug: Flag = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Prepare:
    """Decode image files once into shards that training reads without decoding; killed, it goes on where it was."""

    source: tyro.conf.Positional[Annotated[str, _shown_as("imagenet|DIR")]]
    """ImageNet, or a folder with train/<class>/* and test/ or val/."""
    out: tyro.conf.Positional[Annotated[str, _shown_as("DST")]]
    """Directory for manifest.json and the shards."""
    root: Annotated[str, _shown_as("DIR")] = "data"
    """Where ImageNet lies."""
    side: Annotated[int, _shown_as("PIXELS")] = 256
    """The shorter side is resized to this and the middle square kept, as the paper did."""
    workers: Annotated[int | None, _shown_as("N")] = None
    """Threads that decode; None: one a processor."""
    skip_bad_images: Flag = False
    """Leave unreadable images out instead of stopping."""
    debug: Flag = False
    """Show the traceback of an error."""


def script() -> int:
    """`main` on the process's own command line, with the process's memory set up for it."""
    allocator.use_huge_pages()
    allocator.keep_freed_memory()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line: 0, 1 after one line of explanation, 130 after Ctrl-C; wrong options exit with 2."""
    options = tyro.extras.subcommand_cli_from_dict(
        {"train": Train, "eval": Eval, "predict": Predict, "inspect": Inspect, "prepare": Prepare},
        prog="alexnet",
        args=argv,
        description="AlexNet as pure functions: train, evaluate, predict, inspect; prepare data.",
    )
    console = Console(highlight=False, soft_wrap=True)
    try:
        _COMMANDS[type(options)](options, console)
    except fit.InterruptedRunError as interruption:
        print(f"alexnet: {interruption}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("alexnet: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"alexnet: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _train(options: Train, console: Console) -> None:
    device = _device(options.device)
    if options.resume and options.out is None:
        raise ValueError("--resume needs --out: which run?")
    with parallel.joined(device) as own_device:
        console.quiet = parallel.rank() > 0
        result = fit.fit(_run(options, own_device), _recipe(options), console)
    console.print(f"test accuracy {result.top1 * 100:.2f} % ({result.count} images)")


def _run(options: Train, device: torch.device) -> fit.Run:
    return fit.Run(
        data=options.data,
        root=options.root,
        seed=options.seed,
        limit=options.limit,
        out=options.out,
        resume=options.resume,
        init=options.init,
        device=device,
        precision=options.precision,
        reduction=options.reduction,
        compile=options.compile or (device.type == "cuda" and not options.no_compile),
        skip_bad_images=options.skip_bad_images,
        stream=True if options.stream else False if options.no_stream else None,
        workers=options.workers,
    )


def _eval(options: Eval, console: Console) -> None:
    device = _device(options.device)
    source = runs.load_model(options.source, device)
    reading = inputs.Reading(device, options.skip_bad_images)
    result = score.evaluate(
        source, options.data, options.root, ten_crop=options.ten_crop, reading=reading, console=console
    )
    console.print(f"test accuracy {result.top1 * 100:.2f} % ({result.count} images)")


def _predict(options: Predict, console: Console) -> None:
    device = _device(options.device)
    score.predict(runs.load_model(options.source, device), list(options.images), device=device, console=console)


def _inspect(options: Inspect, console: Console) -> None:
    _check_least(options)
    device = _device(options.device)
    out = options.out or (options.source if Path(options.source).is_dir() else ".")
    inspection.inspect(
        runs.load_model(options.source, device),
        options.data,
        options.root,
        Path(out),
        limit=options.limit,
        reading=inputs.Reading(device, options.skip_bad_images),
        console=console,
    )


def _prepare(options: Prepare, console: Console) -> None:
    _check_least(options)
    started = time.perf_counter()
    prepared = prepare.prepare(
        datasets.load(options.source, root=options.root),
        Path(options.out),
        side=options.side,
        skip_bad=options.skip_bad_images,
        workers=options.workers,
        track=functools.partial(inputs.follow, console, "writing shards"),
    )
    for reason in prepared.unreadable:
        console.print(f"left out: {reason}")
    train, test = prepared.counts["train"], prepared.counts["test"]
    rate = (train + test) / (time.perf_counter() - started)
    console.print(f"{options.out} holds {train} training and {test} test images ({rate:,.0f} images/s)")


_COMMANDS: dict[type, Any] = {Train: _train, Eval: _eval, Predict: _predict, Inspect: _inspect, Prepare: _prepare}
_LEAST = {"epochs": 1, "batch_size": 1, "limit": 1, "workers": 0, "side": 1, "lr": 0, "momentum": 0, "weight_decay": 0}


def _recipe(options: Train) -> recipes.Recipe:
    _check_least(options)
    names = {field.name for field in dataclasses.fields(recipes.Recipe)}
    changes = {name: value for name, value in vars(options).items() if name in names}
    return recipes.choose(options.data, options.recipe, **changes)


def _check_least(options: Train | Inspect | Prepare) -> None:
    for name, least in _LEAST.items():
        value = getattr(options, name, None)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def _device(name: Device) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
