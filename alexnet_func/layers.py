"""Layers as data: frozen records of what a layer is, and of how its parameters start.

Nothing here computes. Records compare and hash by value, and raise ValueError where a field makes no sense (`fields`).
"""

from dataclasses import dataclass
from typing import Literal, get_args

from alexnet_func.fields import (
    BOOL,
    NON_NEGATIVE,
    NON_NEGATIVE_NUMBER,
    NUMBER,
    POSITIVE,
    POSITIVE_OR_NONE,
    PROBABILITY,
    Rule,
    check_fields,
    one_of,
)


@dataclass(frozen=True)
class Normal:
    """Draws from N(0, std^2)."""

    std: float

    def __post_init__(self) -> None:
        check_fields(self, std=NON_NEGATIVE_NUMBER)


@dataclass(frozen=True)
class HeNormal:
    """Draws from N(0, 2 / fan_in): He et al. 2015, equation 10."""


@dataclass(frozen=True)
class CenteredHeNormal:
    """Draws as `HeNormal` and takes from each unit's weights their mean, so that it ignores what its inputs share.

    After a ReLU all inputs have a positive mean, which would otherwise grow from layer to layer until all images look
    alike: Huang et al. 2017, "Centered weight normalization", of which this is the start alone.
    """


@dataclass(frozen=True)
class FanInUniform:
    """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the default of torch's Conv2d and Linear."""


@dataclass(frozen=True)
class Constant:
    """Fills the tensor with one `value`."""

    value: float

    def __post_init__(self) -> None:
        check_fields(self, value=NUMBER)


Init = Normal | HeNormal | CenteredHeNormal | FanInUniform | Constant

INIT = Rule("must be an initialisation such as Normal(0.01)", lambda v: type(v) in get_args(Init))


@dataclass(frozen=True)
class Conv:
    """Applies a 2-d convolution with bias and `padding` zeros on every side."""

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
class LocallyConnected:
    """Applies a convolution whose weights are not shared: every position of the output has its own, and its own bias.

    The paper's CIFAR-10 networks end in two of these (Krizhevsky 2011, "cuda-convnet", type "local"). An image of
    another size would have other positions: the arch's `image_size` is the only one that is taken.
    """

    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    weight: Init = FanInUniform()
    bias: Init = FanInUniform()

    def __post_init__(self) -> None:
        check_fields(self, out_channels=POSITIVE, kernel_size=POSITIVE, stride=POSITIVE)
        check_fields(self, padding=NON_NEGATIVE, weight=INIT, bias=INIT)


@dataclass(frozen=True)
class Linear:
    """Applies an affine map; `out_features=None` means the arch's `num_classes`."""

    out_features: int | None
    weight: Init = FanInUniform()
    bias: Init = FanInUniform()

    def __post_init__(self) -> None:
        check_fields(self, out_features=POSITIVE_OR_NONE, weight=INIT, bias=INIT)


@dataclass(frozen=True)
class ReLU:
    """Computes max(x, 0)."""


@dataclass(frozen=True)
class Tanh:
    """Computes the hyperbolic tangent, which networks had before ReLU (Krizhevsky et al. 2012, section 3.1).

    Being bounded it also suits private training (Papernot et al. 2021, "Tempered sigmoid activations").
    """


@dataclass(frozen=True)
class LRN:
    """Applies local response normalisation across channels: `x / (k + a * sum(x_j^2 over the window))^beta`.

    `convention` says what `alpha` means: with "sum" a = alpha, the formula of the 2012 paper, section
    3.3; with "mean" a = alpha / size, as Caffe and `torch.nn.LocalResponseNorm` have it. Windows end at the border of
    each of the `groups`, as many channels in a row each: with 2, a tower of the 2012 source sees its own alone.
    """

    size: int
    alpha: float
    beta: float
    k: float
    convention: Literal["sum", "mean"]
    groups: int = 1

    def __post_init__(self) -> None:
        check_fields(self, size=POSITIVE, alpha=NON_NEGATIVE_NUMBER, beta=NON_NEGATIVE_NUMBER, k=NON_NEGATIVE_NUMBER)
        check_fields(self, "LRN {}", convention=one_of("sum", "mean"), groups=POSITIVE)


@dataclass(frozen=True)
class WithinChannelLRN:
    """Applies local response normalisation over the `size` x `size` pixels around each one of the same channel.

    `x / (k + a * sum(x_j^2 over the window))^beta`, a = alpha ("sum") or alpha / size^2 ("mean"); pixels beyond the
    border count as zero. Type "rnorm" of cuda-convnet, with "mean"; Caffe's WITHIN_CHANNEL.
    """

    size: int
    alpha: float
    beta: float
    k: float
    convention: Literal["sum", "mean"]

    def __post_init__(self) -> None:
        check_fields(self, size=POSITIVE, alpha=NON_NEGATIVE_NUMBER, beta=NON_NEGATIVE_NUMBER, k=NON_NEGATIVE_NUMBER)
        check_fields(self, convention=one_of("sum", "mean"))


@dataclass(frozen=True)
class MaxPool:
    """Applies max pooling without padding; `ceil_mode` lets the last window overhang the border."""

    kernel_size: int
    stride: int
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        check_fields(self, kernel_size=POSITIVE, stride=POSITIVE, ceil_mode=BOOL)


@dataclass(frozen=True)
class AvgPool:
    """Applies average pooling without padding.

    A window that overhangs with `ceil_mode` is divided by its pixels that exist. Pooling "avg" of cuda-convnet, which
    always rounds sizes up.
    """

    kernel_size: int
    stride: int
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        check_fields(self, kernel_size=POSITIVE, stride=POSITIVE, ceil_mode=BOOL)


@dataclass(frozen=True)
class AdaptiveAvgPool:
    """Applies average pooling to `output_size` x `output_size`, whatever comes in."""

    output_size: int

    def __post_init__(self) -> None:
        check_fields(self, output_size=POSITIVE)


@dataclass(frozen=True)
class ZeroPad:
    """Adds `before` zeros above and to the left, and `after` below and to the right.

    A convolution of cuda-convnet rounds its size up, so that its last windows overhang the image by pixels that count
    as zero: `ZeroPad(0, 3), Conv(48, 11, stride=4)` takes 224 pixels to 55 positions.
    """

    before: int
    after: int

    def __post_init__(self) -> None:
        check_fields(self, before=NON_NEGATIVE, after=NON_NEGATIVE)


@dataclass(frozen=True)
class Flatten:
    """Reshapes [C, H, W] to [C*H*W]."""


@dataclass(frozen=True)
class Dropout:
    """Zeroes each value with probability `rate`, of [0, 1).

    Values that are kept are divided by `1 - rate`, and evaluation changes none, in the "inverted" convention. In the
    "classic" one they stay as they are, and evaluation multiplies all by `1 - rate`: Krizhevsky et al. 2012, section
    4.2. Both have the same expectation in training as in evaluation.
    """

    rate: float = 0.5
    convention: Literal["inverted", "classic"] = "inverted"

    def __post_init__(self) -> None:
        check_fields(self, "dropout {}", rate=PROBABILITY, convention=one_of("inverted", "classic"))


Weighted = Conv | LocallyConnected | Linear  # layers with a weight and a bias

Layer = (
    Weighted | ReLU | Tanh | LRN | WithinChannelLRN | MaxPool | AvgPool | AdaptiveAvgPool | ZeroPad | Flatten | Dropout
)
