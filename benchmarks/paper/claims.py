"""Sections 3.3, 3.4, 4.1 and 4.2 of the paper as paired comparisons: the same seeds with and without.

Augmentation and dropout are against overfitting, for which a network must see its images often: their pairs train on a
tenth of CIFAR-10's images for five times the epochs.
"""

from typing import NamedTuple

from alexnet_func.arch import LRN, Arch, AvgPool, Constant, Dropout, Linear, MaxPool, Normal
from alexnet_func.history import CUDA_CONVNET_26
from benchmarks.paper import statistics
from benchmarks.paper.trials import Setting, Trial, outcomes

EPOCHS = 30
TENTH = 5_000

# cuda-convnet's smallest network, with hidden units enough for dropout to leave some.
_HIDDEN = Linear(512, weight=Normal(0.03), bias=Constant(0.0))
BASE = CUDA_CONVNET_26.replace(name="claims", classifier=(_HIDDEN, *CUDA_CONVNET_26.classifier[1:]))
_NINE_MAPS = LRN(size=9, alpha=1e-3, beta=0.75, k=1.0, convention="mean")


def _after_pooling(layers: tuple, kinds: tuple[type, ...]) -> tuple:
    """With a normalisation across nine maps, as the paper's CIFAR-10 network has, after the first two poolings."""
    found: list = []
    for layer in layers:
        found.append(layer)
        if isinstance(layer, kinds) and sum(isinstance(at, LRN) for at in found) < 2:
            found.append(_NINE_MAPS)
    return tuple(found)


def _apart(layers: tuple) -> tuple:
    """With pooling windows of 2x2 pixels, two apart, instead of 3x3."""
    kinds = (MaxPool, AvgPool)
    return tuple(type(at)(2, 2, ceil_mode=True) if isinstance(at, kinds) else at for at in layers)


NORMALIZED = BASE.replace(name="claims_normalized", features=_after_pooling(BASE.features, (MaxPool, AvgPool)))
APART = BASE.replace(name="claims_apart", features=_apart(BASE.features))
DROPPED = BASE.replace(
    name="claims_dropout", classifier=(*BASE.classifier[:2], Dropout(0.5, "classic"), *BASE.classifier[2:])
)


class Claim(NamedTuple):
    """What the paper says lowers the error, with its size, and the two trainings: with it and without.

    `images` are those that both train on, all unless given.
    """

    section: str
    what: str
    paper: str
    with_it: tuple[Arch, tuple[str, ...]]
    without: tuple[Arch, tuple[str, ...]]
    images: int | None = None


_PLAIN = (BASE, ())
_OVERFIT = '"substantial overfitting" without'
CLAIMS = (
    Claim("3.3", "normalisation across maps", "13 % to 11 % on CIFAR-10", (NORMALIZED, ()), _PLAIN),
    Claim("3.4", "overlapping pooling", "by 0.4 points on ImageNet", _PLAIN, (APART, ())),
    Claim("4.1", "shifts and mirror images", _OVERFIT, (BASE, ("shift-flip",)), _PLAIN, TENTH),
    Claim("4.2", "dropout", _OVERFIT, (DROPPED, ()), _PLAIN, TENTH),
)


def run(setting: Setting, epochs: int = EPOCHS) -> str:
    """Markdown. Pairs on a tenth of the images train for five times the epochs."""
    sides = {(side, claim.images) for claim in CLAIMS for side in (claim.with_it, claim.without)}
    names = {each: _trial(*each, setting, epochs) for each in sorted(sides, key=repr)}
    found = dict(zip(names, outcomes(list(names.values()), setting), strict=True))
    rows = [
        row(claim, found[claim.with_it, claim.images].errors, found[claim.without, claim.images].errors)
        for claim in CLAIMS
    ]
    head = "| section | what | paper | images | error with it | without | lower by, 95 % interval | |"
    return "\n".join([head, "|---|---|---|---|---:|---:|---:|---|", *rows])


def row(claim: Claim, ours: tuple[float, ...], theirs: tuple[float, ...]) -> str:
    """A line of the table, of errors by seed."""
    lower = [b - a for a, b in zip(ours, theirs, strict=True)]
    images = "all" if claim.images is None else f"{claim.images:,}"
    cells = [claim.section, claim.what, claim.paper, images, statistics.told(ours), statistics.told(theirs)]
    return f"| {' | '.join([*cells, statistics.told(lower, 'points'), statistics.verdict(lower)])} |"


def _trial(side: tuple[Arch, tuple[str, ...]], images: int | None, setting: Setting, epochs: int) -> Trial:
    arch, augmentation = side
    setting.runs.mkdir(parents=True, exist_ok=True)
    file = setting.runs / f"{arch.name}.json"
    file.write_text(arch.to_json())
    epochs = epochs if images is None else 5 * epochs
    words = ["--recipe", "cuda_convnet_26", "--arch", str(file), "--epochs", str(epochs)]
    words += ["--augmentation", *augmentation] if augmentation else []
    words += ["--limit", str(images)] if images else []
    name = "-".join((arch.name, *augmentation, f"{epochs}-epochs-of-{images or 'all'}"))
    return Trial(name, tuple(words))
