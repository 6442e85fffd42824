"""How each kind of data is trained, as data."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from alexnet_func.data.preprocess import COLOURED, Augmentation, Normalization

OptimizerName = Literal["sgd", "adamw", "muon"]


def check_range(name: str, value: int | float | None, least: int | float, most: int | float = math.inf) -> None:
    """Raises ValueError, in the words of the command line, unless the value is None or lies in [least, most]."""
    option = f"--{name.replace('_', '-')}"
    if value is not None and not value >= least:
        raise ValueError(f"{option} must be at least {least}, got {value}")
    if value is not None and not (value <= most and math.isfinite(value)):
        raise ValueError(f"{option} must be {'finite' if most == math.inf else f'at most {most}'}, got {value}")


class Group(NamedTuple):
    """Parameters of names that a pattern matches, as in 'features.0.*', and how they are trained apart from the rest.

    Their rate is that of the run times `rate`, and from each of the `drops`, a share of the run, times its scale too;
    their decay is the run's times `decay`.
    """

    pattern: str
    rate: float = 1.0
    decay: float = 1.0
    drops: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """Arch, optimiser, length and augmentation; the defaults are those for --data and what `suited` makes of them.

    Raises ValueError for a number out of its range, and for the paper's form of anything but SGD.
    """

    arch: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")]
    """A network's name, such as alexnet, alexnet_small (32x32 images) or alexnet_145, or a file of an arch as JSON
    (NAME.json)."""
    epochs: Annotated[int, tyro.conf.arg(metavar="N")]
    """Passes over the training images."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")]
    """Images a step."""
    lr: Annotated[float, tyro.conf.arg(metavar="F")]
    """Peak learning rate."""
    momentum: Annotated[float, tyro.conf.arg(metavar="F")]
    """Momentum of the velocity, and AdamW's b1."""
    weight_decay: Annotated[float, tyro.conf.arg(metavar="F")]
    """Decay added to the gradient, or AdamW's."""
    schedule: Literal["constant", "cosine", "linear", "step"]
    """How the rate falls; cosine and linear warm up for a tenth of the run, step divides by ten three times."""
    augmentation: Augmentation
    """none: the middle of each image; shift: by up to an eighth of the side; shift-flip: and mirroring; reflect-flip:
    by up to a sixteenth into its reflection, and mirroring; crop-flip: a random crop of a larger image, and mirroring;
    resized-flip: a crop of random size and shape; paper: crop, flip and colour noise; source: the same as the source
    code of 2012 has it, where 32 images share a crop."""
    normalization: Normalization = "moments"
    """moments: channels less their mean, over their deviation; mean-image: pixels of 0..255 less those of the mean
    image, as cuda-convnet."""
    form: tyro.conf.Suppress[Literal["torch", "paper"]] = "torch"
    groups: tyro.conf.Suppress[tuple[Group, ...]] = ()
    noise_share: tyro.conf.Suppress[float | None] = None
    optimizer: OptimizerName = "sgd"
    """SGD with momentum, or AdamW, or muon: orthogonalised momentum for all weights but the last layer's, AdamW at a
    twentieth of the rate for those and the biases. Each comes with a rate, momentum and decay of its own."""
    label_smoothing: Annotated[float, tyro.conf.arg(metavar="F")] = 0.0
    """Share of each label that is spread evenly over all classes."""
    views: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Augmented views of each image in a step, over which its loss is the mean; None: one."""
    ema: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Decay, a step, of an average of the parameters, which is then evaluated in their place; None: no average."""
    freeze: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATTERN")] = ()
    """Parameters that stay as they are, as in 'features.*'."""
    dp_epsilon: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Train with differential privacy (DP-SGD): all steps together spend so much. Noise follows from it."""
    dp_delta: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """The delta that goes with it; None: the largest power of ten below one in the number of training images."""
    dp_max_norm: Annotated[float, tyro.conf.arg(metavar="F")] = 1.0
    """What the gradient of each image is clipped to."""
    dp_quantile: Annotated[float | None, tyro.conf.arg(metavar="F")] = None
    """Adaptive clipping: the bound goes from --dp-max-norm to this quantile of the gradients' norms."""
    dp_audit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Leave each of N training images out or in by a coin, and tell in the end how much epsilon they prove at least."""

    def __post_init__(self) -> None:
        check_range("epochs", self.epochs, 1, 10**6)
        check_range("batch_size", self.batch_size, 1, 2**31 - 1)
        check_range("lr", self.lr, 0)
        check_range("weight_decay", self.weight_decay, 0)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum must lie in [0, 1), got {self.momentum}")
        if self.form == "paper" and self.optimizer != "sgd":
            raise ValueError(f"the paper's recipe is one of SGD: it does not go with {self.optimizer}")
        if self.groups and self.freeze:
            raise ValueError("--freeze does not go with a recipe that trains groups of layers each at its own rate")
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        check_range("views", self.views, 1, 1024)
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"--ema must lie in [0, 1), got {self.ema}")
        self._check_private()

    def _check_private(self) -> None:
        for name in ("dp_epsilon", "dp_max_norm", "dp_delta"):
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and not 0 < value < (1 if name == "dp_delta" else math.inf):
                raise ValueError(f"{option} must lie in (0, {1 if name == 'dp_delta' else 'inf'}), got {value}")
        if self.dp_quantile is not None and not 0 < self.dp_quantile < 1:
            raise ValueError(f"--dp-quantile must lie in (0, 1), got {self.dp_quantile}")
        check_range("dp_audit", self.dp_audit, 2)
        for name in ("dp_delta", "dp_quantile", "dp_audit"):
            if self.dp_epsilon is None and getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --dp-epsilon: how much may be spent?")
        if self.dp_epsilon is not None and self.augmentation in COLOURED:
            raise ValueError("--dp-epsilon does not go with the paper's colour noise, which follows from all images")
        if self.dp_epsilon is not None and self.label_smoothing:
            raise ValueError("--dp-epsilon clips gradients of the plain loss: it needs --label-smoothing 0")
        if self.dp_epsilon is not None and self.normalization == "mean-image":
            raise ValueError("--dp-epsilon does not go with the mean image, which follows from all images")


# What learns CIFAR-10 soonest on two CPU cores, of what was tried (docs/accuracy.md): in about 10, 30 and 60 minutes.
FAST = Recipe(
    *("alexnet_small", 7, 250, 0.1, 0.6, 0.03, "linear", "reflect-flip"), optimizer="muon", label_smoothing=0.2
)
CIFAR = replace(FAST, epochs=20)
BEST = replace(FAST, epochs=40)

# 99.5 % in the mean of five seeds; SGD with ALEXNET_CIFAR took 15 epochs and twice the time (docs/accuracy.md).
DIGITS = replace(FAST, epochs=6, batch_size=64, lr=0.05, augmentation="shift", label_smoothing=0.0)
PHOTOGRAPHS = Recipe("alexnet", 90, 128, 0.01, 0.9, 5e-4, "cosine", "crop-flip")

# Krizhevsky et al. 2012, section 5, with the rate divided by ten three times over 90 epochs, at even distances.
PAPER = Recipe("alexnet_2012", 90, 128, 0.01, 0.9, 5e-4, "step", "paper", form="paper")

# Net 145 as its parameter file logs the run of 2012 (`layer-params-145.cfg`): 91 epochs; rates divided by ten at 25 and
# 51, and at 79 but for conv1, which is slowed at 67, when colour noise ends too, and stopped at 72. Biases: 0.02
# throughout, and no decay.
_CONV1_145 = ((25 / 91, 0.1), (51 / 91, 0.1), (67 / 91, 0.1), (72 / 91, 0.0))
SOURCE_145 = Recipe(
    *("alexnet_145", 91, 128, 0.01, 0.9, 5e-4, "constant", "source", "mean-image", "paper"),
    groups=(
        Group("features.1.weight", drops=_CONV1_145),
        Group("features.1.bias", rate=2.0, decay=0.0, drops=((72 / 91, 0.0),)),
        Group("*.bias", rate=2.0, decay=0.0),
        Group("*.weight", drops=((25 / 91, 0.1), (51 / 91, 0.1), (79 / 91, 0.1))),
    ),
    noise_share=67 / 91,
)

# Caffe's bvlc_alexnet (solver.prototxt): 450,000 steps of 256 images, which are 90 epochs of ImageNet; divided by ten
# every 100,000; biases at twice the rate and without decay (train_val.prototxt).
_CAFFE_DROPS = tuple((100 * i / 450, 0.1) for i in range(1, 5))
CAFFE = Recipe(
    *("bvlc_alexnet", 90, 256, 0.01, 0.9, 5e-4, "constant", "crop-flip", "mean-image", "paper"),
    groups=(Group("*.bias", rate=2.0, decay=0.0, drops=_CAFFE_DROPS), Group("*.weight", drops=_CAFFE_DROPS)),
)


def _cuda_convnet(network: str, fall: tuple[int, ...], decays: dict[str, float], *, crops: bool = False) -> Recipe:
    """A parameter file of cuda-convnet: the rate falls tenfold after each of so many epochs but the last.

    Decays are those of weights by layers, as multiples of 0.004.
    """
    total = sum(fall)
    drops = tuple((sum(fall[: i + 1]) / total, 0.1) for i in range(len(fall) - 1))
    groups = (Group(f"{layers}.weight", decay=decay, drops=drops) for layers, decay in decays.items())
    augmentation: Augmentation = "crop-flip" if crops else "none"
    how = ("constant", augmentation, "mean-image", "paper")
    bias = Group("*.bias", rate=2.0, decay=0.0)
    return Recipe(f"cuda_convnet_{network}", total, 128, 0.001, 0.9, 0.004, *how, groups=(bias, *groups))  # type: ignore[arg-type]


# `layer-params-*.cfg` of cuda-convnet. Biases keep their rate of 0.002. The two last are trained on four fifths of the
# images until their error rests, then on all: here on all from the start, for as many steps.
CUDA_CONVNET = {
    "26": _cuda_convnet("26", (8, 2), {"features.*": 1.0, "classifier.*": 7.5}),
    "19": _cuda_convnet("19", (120, 10, 10), {"features.*": 1.0, "classifier.*": 750.0}),
    "18": _cuda_convnet("18", (120, 10, 10), {"features.*": 1.0, "classifier.*": 250.0}),
    "13": _cuda_convnet(
        "13", (120, 10, 10), {"features.[03]": 0.0, "features.*": 1.0, "classifier.*": 1.0}, crops=True
    ),
    "11": _cuda_convnet(
        "11", (430, 10, 10), {"features.[04]": 0.0, "features.*": 1.0, "classifier.*": 2.5}, crops=True
    ),
}

Name = Literal[
    "fast",
    "best",
    "paper",
    "145",
    "caffe",
    "cuda_convnet_26",
    "cuda_convnet_19",
    "cuda_convnet_18",
    "cuda_convnet_13",
    "cuda_convnet_11",
]
BY_NAME: dict[str, Recipe] = {
    "fast": FAST,
    "best": BEST,
    "paper": PAPER,
    "145": SOURCE_145,
    "caffe": CAFFE,
    **{f"cuda_convnet_{name}": recipe for name, recipe in CUDA_CONVNET.items()},
}

BY_DATA = {"digits": DIGITS, "cifar10": CIFAR, "cifar100": CIFAR, "imagenet": PHOTOGRAPHS}

# A folder of fewer images than LARGE is shown for about STEPS steps of 32 images, by AdamW.
LARGE, STEPS = 20_000, 1_000
_OF_32 = ("alexnet_cifar", "alexnet_small")


def by_data(data: str, name: str | None = None, arch: str | None = None, images: int | None = None) -> Recipe:
    """The named recipe, or the one for that data. A folder holds photographs unless `arch` is for small images.

    One of few training `images` has a recipe of its own: at the rates and batches of large ones it would diverge, or
    end before it had learned.
    """
    if name is not None:
        return BY_NAME[name]
    small = arch if arch in _OF_32 else None
    large = BY_DATA.get(data, PHOTOGRAPHS if small is None else replace(CIFAR, arch=small))
    if data in BY_DATA or images is None or images >= LARGE:
        return large
    batch = min(32, max(1, images // 4))
    epochs = min(100, max(10, math.ceil(STEPS * batch / max(1, images))))
    return replace(
        large,
        optimizer="adamw",
        lr=1e-4 if small is None else 3e-4,
        momentum=0.9,
        weight_decay=0.05,
        batch_size=batch,
        epochs=epochs,
    )


def suited(
    recipe: Recipe, optimizer: OptimizerName | None = None, *, private: bool = False, split: bool = False
) -> Recipe:
    """A recipe that is not named, as the run's other options would have it.

    Another optimiser comes with rate, momentum and decay of its own. What Muon trains is by SGD where images are
    clipped one by one, which has not been tried with Muon, or where ranks split its weights; and a private loss is
    that of labels as they are.
    """
    if optimizer is None and recipe.optimizer == "muon" and (private or split):
        optimizer = "sgd"
    if optimizer is not None and optimizer != recipe.optimizer:
        recipe = replace(recipe, optimizer=optimizer, **_own(optimizer, recipe.arch in _OF_32))
    return replace(recipe, label_smoothing=0.0) if private else recipe


def _own(optimizer: OptimizerName, small: bool) -> dict[str, Any]:
    match optimizer:
        case "sgd":
            return {"lr": 0.02 if small else 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine"}
        case "adamw":
            return {"lr": 1e-3 if small else 1e-4, "momentum": 0.9, "weight_decay": 0.05}
        case "muon":
            return {"lr": 0.05, "momentum": 0.6, "weight_decay": 0.03}


def choose(data: str, name: str | None = None, images: int | None = None, **changes: Any) -> Recipe:
    """`by_data`, with those of its fields changed that are not None."""
    given = {field: value for field, value in changes.items() if value is not None}
    base = by_data(data, name, given.get("arch"), images)
    if name is None:
        base = suited(base, given.get("optimizer"), private="dp_epsilon" in given)
    return replace(base, **given)
