"""Layers as data: frozen records of what a layer is, and of how its parameters start.

Nothing here computes. Records compare and hash by value, and raise ValueError where a field makes no sense.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Normal:
    """Draw from N(0, std^2)."""

    std: float


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
        _check_positive(self, "out_channels", "kernel_size", "stride", "groups")
        if self.padding < 0:
            raise ValueError(f"padding of Conv must not be negative, got {self.padding}")


@dataclass(frozen=True)
class Linear:
    """An affine layer; `out_features=None` means the arch's `num_classes`."""

    out_features: int | None
    weight: Init = FanInUniform()
    bias: Init = FanInUniform()

    def __post_init__(self) -> None:
        if self.out_features is not None:
            _check_positive(self, "out_features")


@dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""


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
        _check_positive(self, "size")
        if self.convention not in ("sum", "mean"):
            raise ValueError(f'LRN convention must be "sum" or "mean", got {self.convention!r}')


@dataclass(frozen=True)
class MaxPool:
    """Max pooling without padding; `ceil_mode` lets the last window overhang the border."""

    kernel_size: int
    stride: int
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        _check_positive(self, "kernel_size", "stride")


@dataclass(frozen=True)
class AdaptiveAvgPool:
    """Average pooling to `output_size` x `output_size`, whatever comes in."""

    output_size: int

    def __post_init__(self) -> None:
        _check_positive(self, "output_size")


@dataclass(frozen=True)
class Flatten:
    """[C, H, W] to [C*H*W]."""


@dataclass(frozen=True)
class Dropout:
    """Zero each value with probability `rate` and divide the kept ones by `1 - rate`.

    Raises ValueError for a rate outside [0, 1).
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout rate must lie in [0, 1), got {self.rate}")


Layer = Conv | Linear | ReLU | LRN | MaxPool | AdaptiveAvgPool | Flatten | Dropout


def _check_positive(record: Any, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} of {type(record).__name__} must be a positive integer, got {value!r}")
