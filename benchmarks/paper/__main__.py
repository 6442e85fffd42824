"""`python -m benchmarks.paper --data DIR --out benchmarks/results`: what the paper claims, measured on CIFAR-10.

Four studies, each a table: figure1 (ReLU against tanh), ladder (cuda-convnet's networks), claims (normalisation,
overlap, augmentation, dropout, in pairs of the same seeds) and averaging (five networks, as one ensemble). They take
hours on two cores, and go on where they were stopped: --runs keeps them. Writes DIR/<device>/paper_<study>.md.
"""

import argparse
import fnmatch
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from alexnet_func import train
from alexnet_func.data import datasets, sources
from benchmarks import timing
from benchmarks.paper import averaging, claims, figure1, ladder, members, plots
from benchmarks.paper.trials import Setting

SIDE = 32


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="cifar10", help="as for alexnet train")
    parser.add_argument("--only", metavar="GLOB", default="*", help=f"of {', '.join(STUDIES)}")
    parser.add_argument("--seeds", type=int, default=3, help="0 .. N-1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=typing.get_args(train.Precision), help="of products; float32 on a CPU, tf32 on a GPU"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs of ladder and claims side by side: they share minutes"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"), help="what is trained, to go on with")
    parser.add_argument("--epochs", type=int, help="of each run of figure1 at most, of claims, and of averaging")
    parser.add_argument("--sweep", type=int, default=30, help="epochs at most of the sweep over rates of figure1")
    parser.add_argument("--network", action="append", default=[], help="of the ladder: these alone")
    parser.add_argument(
        "--shorter", action="append", default=[], metavar="NETWORK=EPOCHS", help="of the ladder: a compressed schedule"
    )
    parser.add_argument(
        "--fewer", action="append", default=[], metavar="NETWORK=SEEDS", help="of the ladder: so many seeds"
    )
    parser.add_argument("--limit", type=int, help="training images of figure1 and averaging; all unless given")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.precision = options.precision or ("tf32" if options.device == "cuda" else "float32")
    chosen = [name for name in STUDIES if fnmatch.fnmatch(name, options.only)]
    if not chosen:
        parser.error(f"no study matches {options.only!r}; there are {', '.join(STUDIES)}")
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    folder = options.out / options.device
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        table = STUDIES[name](options)
        made = f"Made by `{_command(name, options)}`."
        if options.jobs > 1 and name in ("ladder", "claims"):
            made += f" Up to {options.jobs} runs shared the device: their minutes are of that."
        text = "\n\n".join((f"# {_TITLES[name]}", made, timing.header(options.device), table)) + "\n"
        print(text)
        (folder / f"paper_{name}.md").write_text(text)
    return 0


_TITLES = {
    "figure1": "Figure 1: ReLU against tanh",
    "ladder": "The networks of cuda-convnet",
    "claims": "Claims of sections 3.3 to 4.2",
    "averaging": "Table 2: averaging networks",
}


def _figure1(options: argparse.Namespace) -> str:
    images, _ = _images(options)
    size = figure1.Size(options.seeds, options.epochs or 60, options.sweep, options.precision)
    table, curves = figure1.run(images, options.runs, size)
    plots.curves(curves, options.out / options.device / "paper_figure1.png")
    return f"{table}\n\n![curves](paper_figure1.png)"


def _ladder(options: argparse.Namespace) -> str:
    return ladder.run(_setting(options), _numbers(options.shorter), _numbers(options.fewer), options.network)


def _numbers(words: Sequence[str]) -> dict[str, int]:
    return {network: int(number) for network, _, number in (word.partition("=") for word in words)}


def _claims(options: argparse.Namespace) -> str:
    return claims.run(_setting(options), options.epochs or claims.EPOCHS)


def _averaging(options: argparse.Namespace) -> str:
    images, test = _images(options)
    return averaging.run(images, test, options.runs, options.epochs or 10, options.precision)


STUDIES: Mapping[str, Callable[[argparse.Namespace], str]] = {
    "figure1": _figure1,
    "ladder": _ladder,
    "claims": _claims,
    "averaging": _averaging,
}


def _setting(options: argparse.Namespace) -> Setting:
    return Setting(options.data, options.runs, options.seeds, options.device, options.precision, options.jobs)


def _images(options: argparse.Namespace) -> tuple[members.Images, members.Images]:
    dataset = datasets.load(options.data)
    options.runs.mkdir(parents=True, exist_ok=True)
    reading = sources.Reading(torch.device("cpu"), cache=options.runs)
    both = []
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        source = sources.open_split(split, SIDE, reading, name)
        order = torch.arange(len(source.labels))[: options.limit if name == "train" else None]
        pixels = torch.cat([pixels for _, pixels in source.fetch(order.split(members.BATCH))])
        both.append(members.of(pixels.to(options.device), source.labels[order].to(options.device)))
    return both[0], both[1]


def _command(name: str, options: argparse.Namespace) -> str:
    given = ["--data", Path(options.data).name, "--only", name, "--seeds", str(options.seeds)]
    given += ["--epochs", str(options.epochs)] if options.epochs else []
    given += ["--sweep", str(options.sweep)] if name == "figure1" else []
    given += [word for network in options.network for word in ("--network", network)]
    given += [word for each in options.shorter for word in ("--shorter", each)]
    given += [word for each in options.fewer for word in ("--fewer", each)]
    given += ["--precision", options.precision]
    given += ["--limit", str(options.limit)] if options.limit else []
    given += ["--device", options.device, "--jobs", str(options.jobs)] if options.device == "cuda" else []
    return f"python -m benchmarks.paper {shlex.join([*given, '--out', str(options.out)])}"


if __name__ == "__main__":
    sys.exit(main())
