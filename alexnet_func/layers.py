"""Layers as data: frozen records of what a layer is, and of how its parameters start.

Nothing here computes. Records compare and hash by value, and raise ValueError where a field makes no sense. Fields are
plain Python values: a NumPy or torch scalar is refused, since it would not come back from JSON as it was.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args


@dataclass(frozen=True)
class Normal:
    """Draw from N(0, std^2)."""

    std: float

    def __post_init__(self) -> None:
        check_fields(self, std=NON_NEGATIVE_NUMBER)


@dataclass(frozen=True)
class HeNormal:
    """Draw from N(0, 2 / fan_in): He et al. 2015, equation 10."""


@dataclass(frozen=True)
class CenteredHeNormal:
    """Draw as `HeNormal` and take from each unit's weights their mean, so that it ignores what its inputs share.

    After a ReLU all inputs have a positive mean, which would otherwise grow from layer to layer until all images look
    alike: Huang et al. 2017, "Centered weight normalization", of which this is the start alone.
    """


@dataclass(frozen=True)
class FanInUniform:
    """Draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of torch's Conv2d and Linear."""


@dataclass(frozen=True)
class Constant:
    """Fill with one value."""

    value: float

    def __post_init__(self) -> None:
        check_fields(self, value=NUMBER)


Init = Normal | HeNormal | CenteredHeNormal | FanInUniform | Constant


@dataclass(frozen=True)
class Conv:
    """A 2-d convolution with bias; `padding` zeros on every side."""

    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    weight: Init = FanInUniform()
    bias: Init = FanInUniform()

    def __post_init__(self) -> None:
        check_fields(self, out_channels=POSITIVE, kernel_size=POSITIVE, stride=POSITIVE, groups=POSITIVE)
        check_fields(self, padding=NON_NEGATIVE, weight=INIT, bias=INIT)


@dataclass(frozen=True)
class Linear:
    """An affine layer; `out_features=None` means the arch's `num_classes`."""

    out_features: int | None
    weight: Init = FanInUniform()
    bias: Init = FanInUniform()

    def __post_init__(self) -> None:
        check_fields(self, out_features=POSITIVE_OR_NONE, weight=INIT, bias=INIT)


@dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""


@dataclass(frozen=True)
class Tanh:
    """The hyperbolic tangent, which networks had before ReLU (Krizhevsky et al. 2012, section 3.1).

    Being bounded it also suits private training (Papernot et al. 2021, "Tempered sigmoid activations").
    """


@dataclass(frozen=True)
class LRN:
    """Local response normalisation across channels: `x / (k + a * sum(x_j^2 over the window))^beta`.

    `convention` says what `alpha` means: with "sum" a = alpha, the formula of the 2012 paper, section
    3.3; with "mean" a = alpha / size, as Caffe and `torch.nn.LocalResponseNorm` have it.
    """

    size: int
    alpha: float
    beta: float
    k: float
    convention: Literal["sum", "mean"]

    def __post_init__(self) -> None:
        check_fields(self, size=POSITIVE, alpha=NON_NEGATIVE_NUMBER, beta=NON_NEGATIVE_NUMBER, k=NON_NEGATIVE_NUMBER)
        check_fields(self, "LRN {}", convention=one_of("sum", "mean"))


@dataclass(frozen=True)
class MaxPool:
    """Max pooling without padding; `ceil_mode` lets the last window overhang the border."""

    kernel_size: int
    stride: int
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        check_fields(self, kernel_size=POSITIVE, stride=POSITIVE, ceil_mode=BOOL)


@dataclass(frozen=True)
class AdaptiveAvgPool:
    """Average pooling to `output_size` x `output_size`, whatever comes in."""

    output_size: int

    def __post_init__(self) -> None:
        check_fields(self, output_size=POSITIVE)


@dataclass(frozen=True)
class Flatten:
    """[C, H, W] to [C*H*W]."""


@dataclass(frozen=True)
class Dropout:
    """Zero each value with probability `rate`, of [0, 1), and divide the kept ones by `1 - rate`."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, "dropout {}", rate=PROBABILITY)


Layer = Conv | Linear | ReLU | Tanh | LRN | MaxPool | AdaptiveAvgPool | Flatten | Dropout


class Rule(NamedTuple):
    """What a kind of field accepts, in words and as a predicate. A bool is no number, and types are exact."""

    accepted: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def one_of(*names: str) -> Rule:
    """The rule of a field that takes one of a few strings."""
    return Rule("must be " + " or ".join(f'"{name}"' for name in names), lambda v: type(v) is str and v in names)


POSITIVE = Rule("must be a positive integer", lambda v: type(v) is int and v > 0)
POSITIVE_OR_NONE = Rule("must be a positive integer or None", lambda v: v is None or POSITIVE.holds(v))
NON_NEGATIVE = Rule("must be a non-negative integer", lambda v: type(v) is int and v >= 0)
NUMBER = Rule("must be a finite number", _is_number)
NON_NEGATIVE_NUMBER = Rule("must be a finite non-negative number", lambda v: _is_number(v) and v >= 0)
PROBABILITY = Rule("must lie in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
BOOL = Rule("must be a bool", lambda v: type(v) is bool)
STRING = Rule("must be a string", lambda v: type(v) is str)
TUPLE = Rule("must be a tuple of layers", lambda v: type(v) is tuple)
INIT = Rule("must be an initialisation such as Normal(0.01)", lambda v: type(v) in get_args(Init))


def check_fields(record: Any, subject: str = "{} of {}", /, **rules: Rule) -> None:
    """Raises ValueError for the first field that breaks its rule; `subject` says what it is in the error."""
    for name, rule in rules.items():
        value = getattr(record, name)
        if not rule.holds(value):
            raise ValueError(f"{subject.format(name, type(record).__name__)} {rule.accepted}, got {value!r}")
