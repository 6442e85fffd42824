"""cuda-convnet's networks against the errors that are published with them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from alexnet_func.app import recipes
from benchmarks.paper import statistics
from benchmarks.paper.trials import Outcome, Setting, Trial, outcomes


class Rung(NamedTuple):
    """A network: its published error in per cent, the minutes on a GTX 580, and whether ten views are averaged."""

    name: str
    error: float
    minutes: float
    views: bool


RUNGS = (
    Rung("cuda_convnet_26", 26, 80 / 60, False),
    Rung("cuda_convnet_19", 19, 20, False),
    Rung("cuda_convnet_18", 18, 20, False),
    Rung("cuda_convnet_13", 13, 25, True),
    Rung("cuda_convnet_11", 11, 75, True),
)


def trial(rung: Rung, epochs: int | None, seeds: int | None = None) -> Trial:
    """The recipe's own schedule, or the same in so many epochs; as many seeds as the setting has, or so many."""
    shorter = () if epochs is None else ("--epochs", str(epochs))
    name = rung.name if epochs is None else f"{rung.name}-{epochs}"
    return Trial(name, ("--recipe", rung.name, *shorter), rung.views, seeds)


def run(setting: Setting, shorter: Mapping[str, int], fewer: Mapping[str, int], only: Sequence[str]) -> str:
    """Markdown. `shorter` has the epochs of networks whose schedule is compressed, `fewer` the seeds of others.

    `only` these networks, or all.
    """
    rungs = [rung for rung in RUNGS if not only or rung.name in only]
    found = outcomes([trial(rung, shorter.get(rung.name), fewer.get(rung.name)) for rung in rungs], setting)
    rows = map(row, rungs, found)
    head = "| network | schedule | seeds | test error, 95 % interval | published | minutes, here | minutes, GTX 580 |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---:|", *rows])


def row(rung: Rung, found: Outcome) -> str:
    """A line of the table."""
    planned = recipes.BY_NAME[rung.name].epochs
    schedule = "original" if found.epochs == planned else f"shortened: {found.epochs} of {planned} epochs"
    cells = [
        rung.name + (", ten views" if rung.views else ""),
        schedule,
        str(len(found.errors)),
        statistics.told(found.errors),
        f"{rung.error:g} %",
        f"{sum(found.minutes) / len(found.minutes):.1f}",
        f"{rung.minutes:.1f}",
    ]
    return f"| {' | '.join(cells)} |"
