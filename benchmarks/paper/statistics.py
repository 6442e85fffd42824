"""Means with their intervals, and what a paired comparison says of a claim."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

Says = Literal["agrees", "disagrees", "undecided"]


class Interval(NamedTuple):
    """A mean and the half width of its 95 % interval, by Student's t; infinite for a single value."""

    mean: float
    half: float


def interval(values: Sequence[float]) -> Interval:
    """Of independent values. Raises ValueError for none."""
    if not values:
        raise ValueError("the mean of no values")
    if len(values) == 1:
        return Interval(values[0], math.inf)
    from scipy.stats import t

    width = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(statistics.mean(values), width)


def verdict(differences: Sequence[float]) -> Says:
    """Of paired differences that the claim says are positive: whether their mean's interval leaves zero out."""
    mean, half = interval(differences)
    if abs(mean) <= half:
        return "undecided"
    return "agrees" if mean > 0 else "disagrees"


def ratio_interval(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of two means of paired values, and its 95 % interval, by the interval of the logarithms."""
    mean, half = interval([math.log(a / b) for a, b in zip(over, under, strict=True)])
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half) if half < math.inf else math.inf


def told(values: Sequence[float], unit: str = "%") -> str:
    """Mean, and the half width of the interval if there is one."""
    mean, half = interval(values)
    return f"{mean:.2f} {unit}" + ("" if half == math.inf else f" ± {half:.2f}")
