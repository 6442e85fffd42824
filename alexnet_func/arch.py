"""An AlexNet as data: `Arch`, where its layers lie, and the four named variants.

Nothing here computes with tensors. An `Arch` is frozen and hashable, compares by value and goes to and from JSON;
`model` reads it. Every choice in which the historical networks differ is a field of a record of `layers`, all of which
this room exposes, with its source beside the variant that sets it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from dataclasses import replace as _replace
from typing import Any, NamedTuple

from alexnet_func.layers import (
    LRN,
    POSITIVE,
    POSITIVE_OR_NONE,
    STRING,
    TUPLE,
    AdaptiveAvgPool,
    CenteredHeNormal,
    Constant,
    Conv,
    Dropout,
    FanInUniform,
    Flatten,
    HeNormal,
    Layer,
    Linear,
    MaxPool,
    Normal,
    ReLU,
    Tanh,
    check_fields,
)
from alexnet_func.layers import (
    Init as Init,
)

Shape = tuple[int, ...]


class Placed(NamedTuple):
    """A layer where an arch puts it: its name as in a state dict, and the shapes of one example."""

    name: str
    layer: Layer
    in_shape: Shape
    out_shape: Shape


_FEATURE_KINDS = (Conv, ReLU, Tanh, LRN, MaxPool, AdaptiveAvgPool, Dropout)
_CLASSIFIER_KINDS = (Linear, ReLU, Tanh, Dropout)


@dataclass(frozen=True)
class Arch:
    """An AlexNet: `features`, then average pooling to `pooled_size` (None: none), then `classifier`.

    `image_size` is the side of the square images it was designed for. Without average pooling the
    first linear layer fixes the size of the feature maps, and with it the image sizes accepted.

    Raises ValueError for fields that make no sense, alone or together.
    """

    name: str
    image_size: int
    features: tuple[Layer, ...]
    classifier: tuple[Layer, ...]
    pooled_size: int | None = None
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        check_fields(self, "Arch: {}", name=STRING, features=TUPLE, classifier=TUPLE, pooled_size=POSITIVE_OR_NONE)
        check_fields(self, "Arch: {}", image_size=POSITIVE, in_channels=POSITIVE, num_classes=POSITIVE)
        last = self.classifier[-1] if self.classifier else None
        if not (isinstance(last, Linear) and last.out_features is None):
            raise ValueError(f"the last layer of {self.name} must be Linear(None), got {last}")
        for section, kinds in (("features", _FEATURE_KINDS), ("classifier", _CLASSIFIER_KINDS)):
            for layer in getattr(self, section):
                if type(layer) not in kinds:
                    raise ValueError(f"{section} of {self.name} may not hold {layer!r}")
        place(self, _native_shape(self))

    def __repr__(self) -> str:
        # The layers of a default argument would fill a screen of `help`.
        return self.name.upper() if _VARIANTS.get(self.name) == self else str(self)

    def __str__(self) -> str:
        return f"Arch({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in fields(self))})"

    def replace(self, **changes: Any) -> "Arch":
        """A copy with some fields changed, for example `ALEXNET.replace(num_classes=10)`."""
        return _replace(self, **changes)

    def to_json(self) -> str:
        """The arch as JSON text; `from_json` reads it back to an equal arch."""
        return json.dumps(_encode(self))

    @staticmethod
    def from_json(text: str) -> "Arch":
        """The arch that `to_json` wrote. Raises ValueError for anything else."""
        try:
            arch = _decode(json.loads(text))
        except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"not the JSON of an arch: {error}") from error
        if not isinstance(arch, Arch):
            raise ValueError(f"not the JSON of an arch but of {type(arch).__name__}")
        return arch


def place(arch: Arch, image_shape: Shape) -> tuple[Placed, ...]:
    """Every layer of `arch` in order, with its input and output shape for an image [C, H, W].

    Raises ValueError where the channels differ from the arch's or the image has a size for which
    some layer has no output or the first linear layer the wrong number of inputs.
    """
    _check_image(arch, image_shape)
    placed = []
    shape = image_shape
    for name, layer in _named_layers(arch):
        out_shape = _out_shape(arch, layer, shape)
        placed.append(Placed(name, layer, shape, out_shape))
        shape = out_shape
    return tuple(placed)


def param_shapes(arch: Arch) -> dict[str, Shape]:
    """The name and shape of every parameter, in the order of the layers."""
    shapes: dict[str, Shape] = {}
    for name, layer, in_shape, out_shape in place(arch, _native_shape(arch)):
        match layer:
            case Conv(kernel_size=k, groups=groups):
                shapes[f"{name}.weight"] = (out_shape[0], in_shape[0] // groups, k, k)
            case Linear():
                shapes[f"{name}.weight"] = (out_shape[0], in_shape[0])
            case _:
                continue
        shapes[f"{name}.bias"] = out_shape[:1]
    return shapes


def get(name: str) -> Arch:
    """The named variant: "alexnet", "alexnet_2012", "caffenet" or "alexnet_cifar"."""
    if name not in _VARIANTS:
        raise ValueError(f"unknown arch {name!r}; there are {', '.join(_VARIANTS)}")
    return _VARIANTS[name]


def _native_shape(arch: Arch) -> Shape:
    return (arch.in_channels, arch.image_size, arch.image_size)


def _named_layers(arch: Arch) -> Iterator[tuple[str, Layer]]:
    yield from ((f"features.{i}", layer) for i, layer in enumerate(arch.features))
    if arch.pooled_size is not None:
        yield "avgpool", AdaptiveAvgPool(arch.pooled_size)
    yield "flatten", Flatten()
    yield from ((f"classifier.{i}", layer) for i, layer in enumerate(arch.classifier))


def _out_shape(arch: Arch, layer: Layer, shape: Shape) -> Shape:
    match layer:
        case Conv(out_channels, kernel, stride, padding, groups):
            if shape[0] % groups or out_channels % groups:
                raise ValueError(f"{groups} groups do not divide {shape[0]} and {out_channels} channels")
            return (out_channels, *((side + 2 * padding - kernel) // stride + 1 for side in shape[1:]))
        case MaxPool(kernel, stride, ceil_mode):
            return (shape[0], *(_pooled_side(side, kernel, stride, ceil_mode) for side in shape[1:]))
        case AdaptiveAvgPool(size):
            return (shape[0], size, size)
        case Flatten():
            return (shape[0] * shape[1] * shape[2],)
        case Linear(out_features):
            return (arch.num_classes if out_features is None else out_features,)
        case _:
            return shape


def _pooled_side(side: int, kernel: int, stride: int, ceil_mode: bool) -> int:
    if side < kernel and not (ceil_mode and side > 0):
        return 0
    steps = side - kernel + (stride - 1 if ceil_mode else 0)
    count = steps // stride + 1
    # A window that would start beyond the last pixel is dropped, as torch does.
    return count - 1 if ceil_mode and (count - 1) * stride >= side else count


def _feature_shape(arch: Arch, image_shape: Shape) -> Shape:
    """What `features` makes of an image; where a layer has no output, that layer's shape, a side below 1."""
    shape = image_shape
    for layer in arch.features:
        shape = _out_shape(arch, layer, shape)
        if min(shape) < 1:
            break
    return shape


def _check_image(arch: Arch, image_shape: Shape) -> None:
    if len(image_shape) != 3 or image_shape[0] != arch.in_channels:
        raise ValueError(f"{arch.name} takes images [{arch.in_channels}, H, W], got {list(image_shape)}")
    size = f"{image_shape[1]}x{image_shape[2]}"
    maps = _feature_shape(arch, image_shape)
    if min(maps) < 1 and (arch.pooled_size is not None or image_shape == _native_shape(arch)):
        raise ValueError(f"images of {size} are too small for {arch.name}: {_smallest_square(arch)}")
    native = _feature_shape(arch, _native_shape(arch))
    if arch.pooled_size is None and maps != native:
        raise ValueError(
            f"{arch.name} takes images of {arch.image_size}x{arch.image_size}, got {size}: its first linear layer "
            f"reads feature maps of {list(native)}, and this size gives {list(maps)}"
        )


def _smallest_square(arch: Arch) -> str:
    for side in range(1, 1025):
        if min(_feature_shape(arch, (arch.in_channels, side, side))) > 0:
            return f"the smallest square is {side}"
    return "no size up to 1024 gives every layer an output"


_RECORDS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(Arch, Normal, HeNormal, CenteredHeNormal, FanInUniform, Constant),
        *(Conv, Linear, ReLU, Tanh, LRN, MaxPool, AdaptiveAvgPool, Flatten, Dropout),
    )
}


def _encode(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if type(value).__name__ in _RECORDS:
        return {"type": type(value).__name__} | {f.name: _encode(getattr(value, f.name)) for f in fields(value)}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if isinstance(value, dict):
        return _RECORDS[value["type"]](**{k: _decode(v) for k, v in value.items() if k != "type"})
    return value


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

_VARIANTS = {arch.name: arch for arch in (ALEXNET, ALEXNET_2012, CAFFENET, ALEXNET_CIFAR)}
