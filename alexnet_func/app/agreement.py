"""Whether the ranks of a run were told the same: those that differ would train apart without a word, or wait for ever.

Options are compared before anything is done, what the data set holds once it is found.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from alexnet_func import parallel
from alexnet_func.app import text
from alexnet_func.app.options import Run
from alexnet_func.app.recipes import Recipe

# Of machines, and of what lies where on them. `arch` and `data` may be paths, and are compared by what is in them.
_OWN = {"arch", "data", "debug", "device", "init", "no_stream", "out", "root", "stream", "workers"}


def check_options(run: Run, recipe: Recipe) -> None:
    """Raises ValueError, on every rank, where a rank was given other options, or has another torch."""
    given = {f"--{name.replace('_', '-')}": value for name, value in {**asdict(run), **asdict(recipe)}.items()}
    own = {f"--{name.replace('_', '-')}" for name in _OWN}
    _check({"torch": torch.__version__} | {name: value for name, value in given.items() if name not in own})


def check_data(config: Mapping[str, Any]) -> None:
    """Raises ValueError, on every rank, where a rank's data set or network is another."""
    train, test = config["contents"]
    digests = {"SHA-256 of the training images": train, "SHA-256 of the test images": test}
    _check({"classes": config["classes"], **digests, "--arch": config["arch"]})


def _check(own: Mapping[str, Any]) -> None:
    first, *others = parallel.gathered({name: repr(value) for name, value in own.items()})
    for rank, other in enumerate(others, start=1):
        for name, value in first.items():
            if other.get(name) != value:
                one, two = (text.shortened(each, 60) for each in (value, other.get(name, "missing")))
                raise ValueError(f"the ranks differ: {name}, {one} on rank 0 and {two} on rank {rank}")
