"""A network as data: `Arch`, and where its layers lie. The named ones are in `arch`.

Nothing here computes with tensors. An `Arch` is frozen and hashable, compares by value and goes to and from JSON;
`model` reads it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from dataclasses import replace as _replace
from typing import Any, NamedTuple

from alexnet_func.fields import POSITIVE, POSITIVE_OR_NONE, STRING, TUPLE, check_fields
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

Shape = tuple[int, ...]


class Placed(NamedTuple):
    """Says where an arch puts a layer: its name as in a state dict, and the shapes of one example."""

    name: str
    layer: Layer
    in_shape: Shape
    out_shape: Shape


_FEATURE_KINDS = (
    *(Conv, LocallyConnected, ReLU, Tanh, LRN, WithinChannelLRN),
    *(MaxPool, AvgPool, AdaptiveAvgPool, ZeroPad, Dropout),
)
_CLASSIFIER_KINDS = (Linear, ReLU, Tanh, Dropout)


@dataclass(frozen=True)
class Arch:
    """Describes an AlexNet: `features`, then average pooling to `pooled_size` (None: none), then `classifier`.

    `image_size` is the side of the square images it was designed for. Without average pooling the first linear layer
    fixes the size of the feature maps, as a locally connected layer does, and with it the image sizes accepted.

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
        # The layers of a default argument would fill a screen of `help`, which `str` does.
        return f"Arch({self.name!r}, num_classes={self.num_classes}, ...)"

    def __str__(self) -> str:
        return f"Arch({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in fields(self))})"

    def replace(self, **changes: Any) -> "Arch":
        """Returns a copy with some fields changed, for example `ALEXNET.replace(num_classes=10)`."""
        return _replace(self, **changes)

    def to_json(self) -> str:
        """Returns the arch as JSON text; `from_json` reads it back to an equal arch."""
        return json.dumps(_encode(self))

    @staticmethod
    def from_json(text: str) -> "Arch":
        """Returns the arch that `to_json` wrote as `text`. Raises ValueError for anything else."""
        try:
            arch = _decode(json.loads(text))
        except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(f"not the JSON of an arch: {error}") from error
        if not isinstance(arch, Arch):
            raise ValueError(f"not the JSON of an arch but of {type(arch).__name__}")
        return arch


def place(arch: Arch, image_shape: Shape) -> tuple[Placed, ...]:
    """Returns every layer of `arch` in order, with its input and output shape for an image [C, H, W].

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
    """Returns the name and shape of every parameter of `arch`, in the order of the layers."""
    shapes: dict[str, Shape] = {}
    for name, layer, in_shape, out_shape in place(arch, _native_shape(arch)):
        match layer:
            case Conv(kernel_size=k, groups=groups):
                shapes[f"{name}.weight"] = (out_shape[0], in_shape[0] // groups, k, k)
                shapes[f"{name}.bias"] = out_shape[:1]
            case LocallyConnected(kernel_size=k):
                shapes[f"{name}.weight"] = (*out_shape[1:], out_shape[0], in_shape[0], k, k)
                shapes[f"{name}.bias"] = out_shape
            case Linear():
                shapes[f"{name}.weight"] = (out_shape[0], in_shape[0])
                shapes[f"{name}.bias"] = out_shape
    return shapes


def fan_in(at: Placed) -> int:
    """How many inputs an output of a layer with weights has."""
    match at.layer:
        case Conv(kernel_size=k, groups=groups):
            return at.in_shape[0] // groups * k * k
        case LocallyConnected(kernel_size=k):
            return at.in_shape[0] * k * k
        case _:
            return at.in_shape[0]


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
        case LocallyConnected(out_channels, kernel, stride, padding):
            return (out_channels, *((side + 2 * padding - kernel) // stride + 1 for side in shape[1:]))
        case ZeroPad(before, after):
            return (shape[0], *(side + before + after for side in shape[1:]))
        case LRN(groups=groups) if shape[0] % groups:
            raise ValueError(f"{groups} groups of LRN do not divide {shape[0]} channels")
        case MaxPool(kernel, stride, ceil_mode) | AvgPool(kernel, stride, ceil_mode):
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


def _feature_shapes(arch: Arch, image_shape: Shape) -> list[Shape]:
    """What each of `features` makes of an image, as far as the first that has no output, a side below 1."""
    shapes = [image_shape]
    for layer in arch.features:
        shapes.append(_out_shape(arch, layer, shapes[-1]))
        if min(shapes[-1]) < 1:
            break
    return shapes[1:] or shapes


def _check_image(arch: Arch, image_shape: Shape) -> None:
    if len(image_shape) != 3 or image_shape[0] != arch.in_channels:
        raise ValueError(f"{arch.name} takes images [{arch.in_channels}, H, W], got {list(image_shape)}")
    size = f"{image_shape[1]}x{image_shape[2]}"
    shapes, native = _feature_shapes(arch, image_shape), _feature_shapes(arch, _native_shape(arch))
    local = [i for i, layer in enumerate(arch.features) if isinstance(layer, LocallyConnected)]
    if min(shapes[-1]) < 1 and ((arch.pooled_size is not None and not local) or image_shape == _native_shape(arch)):
        raise ValueError(f"images of {size} are too small for {arch.name}: {_smallest_square(arch)}")
    fixed = [(i, "its locally connected layer has weights for") for i in local]
    fixed += [(len(native) - 1, "its first linear layer reads")] if arch.pooled_size is None else []
    for i, why in fixed:
        found = shapes[min(i, len(shapes) - 1)]
        if found != native[i]:
            raise ValueError(
                f"{arch.name} takes images of {arch.image_size}x{arch.image_size}, got {size}: {why} feature maps of "
                f"{list(native[i])}, and this size gives {list(found)}"
            )


def _smallest_square(arch: Arch) -> str:
    for side in range(1, 1025):
        if min(_feature_shapes(arch, (arch.in_channels, side, side))[-1]) > 0:
            return f"the smallest square is {side}"
    return "no size up to 1024 gives every layer an output"


_RECORDS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(Arch, Normal, HeNormal, CenteredHeNormal, FanInUniform, Constant),
        *(Conv, LocallyConnected, Linear, ReLU, Tanh, LRN, WithinChannelLRN),
        *(MaxPool, AvgPool, AdaptiveAvgPool, ZeroPad, Flatten, Dropout),
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
