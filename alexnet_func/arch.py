"""The named networks, each an `Arch` with the source of every choice in which it differs from the others.

Such a choice is a field of a record of `layers`, all of which this room exposes, as it does `structure`. The networks
of the source code of 2011 and 2012 are in `history`.
"""

from alexnet_func import history
from alexnet_func.history import (
    ALEXNET_145,
    ALEXNET_145_HALF,
    ALEXNET_147,
    ALEXNET_148,
    BVLC_ALEXNET,
    CUDA_CONVNET_11,
    CUDA_CONVNET_13,
    CUDA_CONVNET_18,
    CUDA_CONVNET_19,
    CUDA_CONVNET_26,
)
from alexnet_func.layers import (
    LRN,
    AdaptiveAvgPool,
    AvgPool,
    CenteredHeNormal,
    Constant,
    Conv,
    Dropout,
    FanInUniform,
    Flatten,
    HeNormal,
    Init,
    Layer,
    Linear,
    LocallyConnected,
    MaxPool,
    Normal,
    ReLU,
    Tanh,
    WithinChannelLRN,
    ZeroPad,
)
from alexnet_func.structure import Arch, Placed, Shape, param_shapes, place

__all__ = [
    "ALEXNET",
    "ALEXNET_145",
    "ALEXNET_145_HALF",
    "ALEXNET_147",
    "ALEXNET_148",
    "ALEXNET_2012",
    "ALEXNET_CIFAR",
    "ALEXNET_SMALL",
    "BVLC_ALEXNET",
    "CAFFENET",
    "CUDA_CONVNET_11",
    "CUDA_CONVNET_13",
    "CUDA_CONVNET_18",
    "CUDA_CONVNET_19",
    "CUDA_CONVNET_26",
    "LRN",
    "AdaptiveAvgPool",
    "Arch",
    "AvgPool",
    "CenteredHeNormal",
    "Constant",
    "Conv",
    "Dropout",
    "FanInUniform",
    "Flatten",
    "HeNormal",
    "Init",
    "Layer",
    "Linear",
    "LocallyConnected",
    "MaxPool",
    "Normal",
    "Placed",
    "ReLU",
    "Shape",
    "Tanh",
    "WithinChannelLRN",
    "ZeroPad",
    "get",
    "param_shapes",
    "place",
]

# torchvision's single-tower network, after Krizhevsky, "One weird trick for parallelizing convolutional
# neural networks" (2014), as torchvision.models.alexnet builds it: dropout before the linear layers,
# no LRN, torch's default initialisation, average pooling so that other image sizes fit.
ALEXNET = Arch(
    name="alexnet",
    image_size=224,
    features=(
        *(Conv(64, 11, stride=4, padding=2), ReLU(), MaxPool(3, 2)),
        *(Conv(192, 5, padding=2), ReLU(), MaxPool(3, 2)),
        *(Conv(384, 3, padding=1), ReLU()),
        *(Conv(256, 3, padding=1), ReLU()),
        *(Conv(256, 3, padding=1), ReLU(), MaxPool(3, 2)),
    ),
    pooled_size=6,
    classifier=(
        *(Dropout(0.5), Linear(4096), ReLU()),
        *(Dropout(0.5), Linear(4096), ReLU()),
        Linear(None),
    ),
)

_GAUSSIAN = Normal(0.01)  # section 5: "zero-mean Gaussian distribution with standard deviation 0.01"
_ZERO, _ONE = Constant(0.0), Constant(1.0)  # section 5: ones in conv 2, 4, 5 and the hidden linear layers
_PAPER_LRN = LRN(size=5, alpha=1e-4, beta=0.75, k=2.0, convention="sum")  # section 3.3

# Krizhevsky, Sutskever, Hinton 2012: groups of two where the paper's two GPUs did not talk (section 3.5);
# LRN after ReLU and before pooling (3.5); overlapping 3/2 pooling (3.4); dropout after the ReLU of the two
# hidden linear layers (4.2). The paper's 55x55 maps need padding 2 on its 224x224 images.
ALEXNET_2012 = Arch(
    name="alexnet_2012",
    image_size=224,
    features=(
        *(Conv(96, 11, stride=4, padding=2, weight=_GAUSSIAN, bias=_ZERO), ReLU(), _PAPER_LRN, MaxPool(3, 2)),
        *(Conv(256, 5, padding=2, groups=2, weight=_GAUSSIAN, bias=_ONE), ReLU(), _PAPER_LRN, MaxPool(3, 2)),
        *(Conv(384, 3, padding=1, weight=_GAUSSIAN, bias=_ZERO), ReLU()),
        *(Conv(384, 3, padding=1, groups=2, weight=_GAUSSIAN, bias=_ONE), ReLU()),
        *(Conv(256, 3, padding=1, groups=2, weight=_GAUSSIAN, bias=_ONE), ReLU(), MaxPool(3, 2)),
    ),
    classifier=(
        *(Linear(4096, weight=_GAUSSIAN, bias=_ONE), ReLU(), Dropout(0.5)),
        *(Linear(4096, weight=_GAUSSIAN, bias=_ONE), ReLU(), Dropout(0.5)),
        Linear(None, weight=_GAUSSIAN, bias=_ZERO),
    ),
)

_CAFFE_LRN = LRN(size=5, alpha=1e-4, beta=0.75, k=1.0, convention="mean")
_CAFFE_HIDDEN = Normal(0.005)

# Caffe's bvlc_reference_caffenet (train_val.prototxt, BSD): 227x227 crops without padding, pooling before
# LRN and with Caffe's ceil mode, narrower initial weights in fc6 and fc7.
CAFFENET = Arch(
    name="caffenet",
    image_size=227,
    features=(
        *(Conv(96, 11, stride=4, weight=_GAUSSIAN, bias=_ZERO), ReLU(), MaxPool(3, 2, ceil_mode=True), _CAFFE_LRN),
        Conv(256, 5, padding=2, groups=2, weight=_GAUSSIAN, bias=_ONE),
        *(ReLU(), MaxPool(3, 2, ceil_mode=True), _CAFFE_LRN),
        *(Conv(384, 3, padding=1, weight=_GAUSSIAN, bias=_ZERO), ReLU()),
        *(Conv(384, 3, padding=1, groups=2, weight=_GAUSSIAN, bias=_ONE), ReLU()),
        *(Conv(256, 3, padding=1, groups=2, weight=_GAUSSIAN, bias=_ONE), ReLU(), MaxPool(3, 2, ceil_mode=True)),
    ),
    classifier=(
        *(Linear(4096, weight=_CAFFE_HIDDEN, bias=_ONE), ReLU(), Dropout(0.5)),
        *(Linear(4096, weight=_CAFFE_HIDDEN, bias=_ONE), ReLU(), Dropout(0.5)),
        Linear(None, weight=_GAUSSIAN, bias=_ZERO),
    ),
)

_HE, _CENTERED = HeNormal(), CenteredHeNormal()

# Ours: ALEXNET's widths and overlapping pooling on 32x32 images, with a 3x3 stem (an 11x11 kernel at stride 4
# would leave 7x7 maps) and smaller linear layers. Without centred weights the logits of two images correlate by 0.96 at
# the start, with them by 0.6. Dropout is gentle, for runs of ten epochs: with 0.5 one epoch ends two points lower.
ALEXNET_CIFAR = Arch(
    name="alexnet_cifar",
    image_size=32,
    num_classes=10,
    features=(
        *(Conv(64, 3, padding=1, weight=_HE, bias=_ZERO), ReLU(), MaxPool(3, 2, ceil_mode=True)),
        *(Conv(192, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU(), MaxPool(3, 2, ceil_mode=True)),
        *(Conv(384, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU()),
        *(Conv(256, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU()),
        *(Conv(256, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU(), MaxPool(3, 2, ceil_mode=True)),
    ),
    classifier=(
        *(Dropout(0.2), Linear(1024, weight=_CENTERED, bias=_ZERO), ReLU()),
        *(Dropout(0.2), Linear(1024, weight=_CENTERED, bias=_ZERO), ReLU()),
        Linear(None, weight=_GAUSSIAN, bias=_ZERO),
    ),
)

# Ours: what learns 32x32 images soonest, for the operations it takes, of all AlexNets that were tried
# (docs/accuracy.md). Pooling after the first, second and fifth convolution as in 2012; windows do not overlap and the
# first layer has no padding, so that maps have 30, 15 and 7 pixels a side; no dropout, for runs of some ten epochs.
ALEXNET_SMALL = Arch(
    name="alexnet_small",
    image_size=32,
    num_classes=10,
    features=(
        *(Conv(64, 3, weight=_CENTERED, bias=_ZERO), ReLU(), MaxPool(2, 2)),
        *(Conv(128, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU(), MaxPool(2, 2)),
        *(Conv(256, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU()),
        *(Conv(256, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU()),
        *(Conv(256, 3, padding=1, weight=_CENTERED, bias=_ZERO), ReLU(), MaxPool(2, 2)),
    ),
    classifier=(
        *(Linear(256, weight=_CENTERED, bias=_ZERO), ReLU()),
        *(Linear(256, weight=_CENTERED, bias=_ZERO), ReLU()),
        Linear(None, weight=_GAUSSIAN, bias=_ZERO),
    ),
)

_NAMED = (ALEXNET, ALEXNET_2012, CAFFENET, ALEXNET_CIFAR, ALEXNET_SMALL, *history.NETWORKS)
_BY_NAME = {arch.name: arch for arch in _NAMED}


def get(name: str) -> Arch:
    """Returns the network of a name: "alexnet", "alexnet_2012", "caffenet", "alexnet_cifar", "alexnet_small" or one of
    `history`.

    Raises ValueError for another name.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown arch {name!r}; there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
