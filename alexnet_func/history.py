"""The networks as their own source code has them: cuda-convnet's of 2011 for CIFAR-10, and those of 2012 for ImageNet.

Sources: the layer files of cuda-convnet (`example-layers/layers-80sec.cfg`, `-18pct`, `-19pct`, `-conv-local-13pct` and
`-conv-local-11pct.cfg`), and of the code of 2012 that the Computer History Museum released in 2025
(`layers/layers-145.cfg` and `layer-params-145.cfg`, 145-half, 147, 148). All of them round sizes up, start biases at 0
unless told otherwise, read images of 0..255 less the mean image, and have classic dropout. `bvlc_alexnet` is Caffe's.
"""

from alexnet_func.layers import (
    LRN,
    AvgPool,
    Constant,
    Conv,
    Dropout,
    Layer,
    Linear,
    LocallyConnected,
    MaxPool,
    Normal,
    ReLU,
    WithinChannelLRN,
    ZeroPad,
)
from alexnet_func.structure import Arch

__all__ = [
    "ALEXNET_145",
    "ALEXNET_145_HALF",
    "ALEXNET_147",
    "ALEXNET_148",
    "BVLC_ALEXNET",
    "CUDA_CONVNET_11",
    "CUDA_CONVNET_13",
    "CUDA_CONVNET_18",
    "CUDA_CONVNET_19",
    "CUDA_CONVNET_26",
    "NETWORKS",
]

_ZERO, _ONE = Constant(0.0), Constant(1.0)
_SMALL, _WIDE = Normal(0.01), Normal(0.03)  # initW

# Type "cmrnorm": scale 0.0001 is divided by the size (layer.py, NormLayerParser), minDiv 2; a tower sees its channels.
_TOWERS_LRN = LRN(size=5, alpha=1e-4, beta=0.75, k=2.0, convention="mean", groups=2)
# Type "rnorm": scale 0.001 is divided by the square of the size, minDiv 1 by default.
_SAME_MAP_LRN = WithinChannelLRN(size=5, alpha=1e-3, beta=0.75, k=1.0, convention="mean")
_POOL = MaxPool(3, 2, ceil_mode=True)


def _hidden(units: int) -> tuple[Layer, ...]:
    """fc2048a and b, and hs1a and b: both towers read both, so that they are one layer; keep=0.5."""
    return Linear(units, weight=_SMALL, bias=_ONE), ReLU(), Dropout(0.5, "classic")


# layers-145.cfg. Two towers a and b are groups; conv3 and the linear layers read both. The last windows of conv1
# overhang by three pixels. Activations come after pooling where the file has the neuron on the pooling layer.
ALEXNET_145 = Arch(
    name="alexnet_145",
    image_size=224,
    features=(
        *(ZeroPad(0, 3), Conv(96, 11, stride=4, weight=_SMALL, bias=_ZERO), _TOWERS_LRN, _POOL, ReLU()),
        *(Conv(256, 5, padding=2, groups=2, weight=_SMALL, bias=_ONE), ReLU(), _TOWERS_LRN, _SAME_MAP_LRN, _POOL),
        *(Conv(384, 3, padding=1, weight=_WIDE, bias=_ZERO), ReLU()),
        *(Conv(384, 3, padding=1, groups=2, weight=_WIDE, bias=_ONE), ReLU()),
        *(Conv(256, 3, padding=1, groups=2, weight=_WIDE, bias=_ONE), _POOL, ReLU()),
    ),
    classifier=(*_hidden(4096), *_hidden(4096), Linear(None, weight=_SMALL, bias=_ZERO)),
)

_ONE_TOWER_LRN = LRN(size=5, alpha=1e-4, beta=0.75, k=2.0, convention="mean")

# layers-145-half.cfg: one tower, but with the 256 kernels of both in conv5 and with linear layers of the same size.
ALEXNET_145_HALF = ALEXNET_145.replace(
    name="alexnet_145_half",
    features=(
        *(ZeroPad(0, 3), Conv(48, 11, stride=4, weight=_SMALL, bias=_ZERO), _ONE_TOWER_LRN, _POOL, ReLU()),
        *(Conv(128, 5, padding=2, weight=_SMALL, bias=_ONE), ReLU(), _ONE_TOWER_LRN, _SAME_MAP_LRN, _POOL),
        *(Conv(192, 3, padding=1, weight=_WIDE, bias=_ZERO), ReLU()),
        *(Conv(192, 3, padding=1, weight=_WIDE, bias=_ONE), ReLU()),
        *(Conv(256, 3, padding=1, weight=_WIDE, bias=_ONE), _POOL, ReLU()),
    ),
)

_POOL_APART = MaxPool(2, 2, ceil_mode=True)

# layers-147.cfg: pooling windows that do not overlap; without padding in conv5 they end at 6x6 all the same.
ALEXNET_147 = ALEXNET_145.replace(
    name="alexnet_147",
    features=(
        *(ZeroPad(0, 3), Conv(96, 11, stride=4, weight=_SMALL, bias=_ZERO), _TOWERS_LRN, _POOL_APART, ReLU()),
        *(Conv(256, 5, padding=1, groups=2, weight=_SMALL, bias=_ONE), ReLU()),
        *(_TOWERS_LRN, _SAME_MAP_LRN, _POOL_APART),
        *(Conv(384, 3, padding=1, weight=_WIDE, bias=_ZERO), ReLU()),
        *(Conv(384, 3, padding=1, groups=2, weight=_WIDE, bias=_ONE), ReLU()),
        *(Conv(256, 3, groups=2, weight=_WIDE, bias=_ONE), _POOL_APART, ReLU()),
    ),
)

# layers-148.cfg: no normalisation.
ALEXNET_148 = ALEXNET_145.replace(
    name="alexnet_148",
    features=tuple(layer for layer in ALEXNET_145.features if layer not in (_TOWERS_LRN, _SAME_MAP_LRN)),
)

_CAFFE_LRN = LRN(size=5, alpha=1e-4, beta=0.75, k=1.0, convention="mean")
_TENTH = Constant(0.1)
_CAFFE_HIDDEN = Normal(0.005)

# Caffe's bvlc_alexnet (train_val.prototxt): 227x227 crops without padding, LRN before pooling, biases of 0.1.
BVLC_ALEXNET = Arch(
    name="bvlc_alexnet",
    image_size=227,
    features=(
        *(Conv(96, 11, stride=4, weight=_SMALL, bias=_ZERO), ReLU(), _CAFFE_LRN, _POOL),
        *(Conv(256, 5, padding=2, groups=2, weight=_SMALL, bias=_TENTH), ReLU(), _CAFFE_LRN, _POOL),
        *(Conv(384, 3, padding=1, weight=_SMALL, bias=_ZERO), ReLU()),
        *(Conv(384, 3, padding=1, groups=2, weight=_SMALL, bias=_TENTH), ReLU()),
        *(Conv(256, 3, padding=1, groups=2, weight=_SMALL, bias=_TENTH), ReLU(), _POOL),
    ),
    classifier=(
        *(Linear(4096, weight=_CAFFE_HIDDEN, bias=_TENTH), ReLU(), Dropout(0.5)),
        *(Linear(4096, weight=_CAFFE_HIDDEN, bias=_TENTH), ReLU(), Dropout(0.5)),
        Linear(None, weight=_SMALL, bias=_ZERO),
    ),
)

_FIRST = Normal(0.0001)
_AVERAGE = AvgPool(3, 2, ceil_mode=True)
_THREE_BY_THREE_LRN = WithinChannelLRN(size=3, alpha=5e-5, beta=0.75, k=1.0, convention="mean")


def _small(channels: int, weight: Normal = _SMALL) -> Conv:
    return Conv(channels, 5, padding=2, weight=weight, bias=_ZERO)


# layers-80sec.cfg: 26 % error after 80 seconds of a GTX 580.
CUDA_CONVNET_26 = Arch(
    name="cuda_convnet_26",
    image_size=32,
    num_classes=10,
    features=(
        *(_small(32, _FIRST), _POOL, ReLU()),
        *(_small(32), ReLU(), _AVERAGE),
        *(_small(64), ReLU(), _AVERAGE),
    ),
    classifier=(
        *(Linear(64, weight=Normal(0.1), bias=_ZERO), ReLU()),
        Linear(None, weight=Normal(0.1), bias=_ZERO),
    ),
)

# layers-19pct.cfg.
CUDA_CONVNET_19 = CUDA_CONVNET_26.replace(name="cuda_convnet_19", classifier=(Linear(None, weight=_SMALL, bias=_ZERO),))

# layers-18pct.cfg: normalised after the first two poolings, over 3x3 pixels of the same map.
CUDA_CONVNET_18 = CUDA_CONVNET_19.replace(
    name="cuda_convnet_18",
    features=(
        *(_small(32, _FIRST), _POOL, ReLU(), _THREE_BY_THREE_LRN),
        *(_small(32), ReLU(), _AVERAGE, _THREE_BY_THREE_LRN),
        *(_small(64), ReLU(), _AVERAGE),
    ),
)


def _local(channels: int) -> tuple[Layer, ...]:
    return LocallyConnected(channels, 3, padding=1, weight=Normal(0.04), bias=_ZERO), ReLU()


# layers-conv-local-13pct.cfg: two locally connected layers, and crops of 24x24. The paper's 13 % of section 3.3.
CUDA_CONVNET_13 = Arch(
    name="cuda_convnet_13",
    image_size=24,
    num_classes=10,
    features=(
        *(_small(64, _FIRST), ReLU(), _POOL),
        *(_small(64), ReLU(), _POOL),
        *(*_local(32), *_local(32)),
    ),
    classifier=(Linear(None, weight=_SMALL, bias=_ZERO),),
)

_NINE_MAPS_LRN = LRN(size=9, alpha=1e-3, beta=0.75, k=1.0, convention="mean")

# layers-conv-local-11pct.cfg: with normalisation across maps, the paper's 11 %.
CUDA_CONVNET_11 = CUDA_CONVNET_13.replace(
    name="cuda_convnet_11",
    features=(
        *(_small(64, _FIRST), ReLU(), _POOL, _NINE_MAPS_LRN),
        *(_small(64), ReLU(), _NINE_MAPS_LRN, _POOL),
        *(*_local(64), *_local(32)),
    ),
)

NETWORKS = (
    *(ALEXNET_145, ALEXNET_145_HALF, ALEXNET_147, ALEXNET_148, BVLC_ALEXNET),
    *(CUDA_CONVNET_26, CUDA_CONVNET_19, CUDA_CONVNET_18, CUDA_CONVNET_13, CUDA_CONVNET_11),
)
