"""What a subject of the table is, and the small network, images and labels that subjects share.

A point t moves all that a subject can be differentiated by: its components move the parameters, the images and the rest
along fixed directions, a few hundredths for each unit, so little that no ReLU and no maximum changes sides between the
points that differences are taken from.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import alexnet_func as af
from alexnet_func.arch import LRN, Arch, Conv, Dropout, HeNormal, Linear, MaxPool, Normal, ReLU
from parity.compositions.transforms import Function, readout, wave

# Every kind of layer, with few enough activations that none lies near its kink.
NET = Arch(
    name="net",
    image_size=9,
    in_channels=2,
    num_classes=4,
    pooled_size=2,
    features=(
        *(Conv(4, 3, stride=2, padding=1, weight=HeNormal()), ReLU(), LRN(3, 0.1, 0.75, 1.0, "sum")),
        *(MaxPool(3, 2, ceil_mode=True), Conv(4, 3, padding=1, groups=2, weight=HeNormal()), ReLU()),
    ),
    classifier=(Dropout(0.3), Linear(5, weight=HeNormal()), ReLU(), Dropout(0.4), Linear(None, weight=Normal(0.7))),
)
N = 3
SIZE = 3
KEY = af.random.key(3)


class Subject(NamedTuple):
    """A public function, by name, as `function(t [SIZE], key) -> [2]`.

    `refused` are the transforms under which it raises a documented error, each with words of it; `left_out` those that
    are not tried, each with the reason. `rounding` is by how much a compiled or exported one in float32 may round
    otherwise.
    """

    name: str
    function: Function
    quick: bool = False
    refused: Mapping[str, str] = {}
    left_out: Mapping[str, str] = {}
    rounding: float = 0.0


def moved(tree: Any, by: Tensor, seed: int, share: float = 0.03) -> Any:
    """Every floating tensor of `tree`, plus `by` times a direction of its own."""
    leaves, spec = pytree.tree_flatten(tree)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaves[i] = leaf + by * share * wave(tuple(leaf.shape), 10 * seed + i)
    return pytree.tree_unflatten(leaves, spec)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normals in float64."""
    return af.random.normal(af.random.key(seed), shape).double()


PARAMS = af.init(KEY, NET, dtype=torch.float64)
X, Y = normal(1, N, 2, 9, 9), torch.tensor([0, 3, 1])
LOSS = functools.partial(af.loss_fn, arch=NET)


def net(call: Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Any]) -> Function:
    """Of parameters, images, a number that t moves, and a key."""
    return lambda t, key: readout(call(moved(PARAMS, t[0], 1), moved(X, t[1], 2), 0.5 + 0.1 * t[2], key))
