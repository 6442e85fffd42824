"""AlexNet as two functions, `init` and `forward`, and `walk`, the one traversal of an `Arch`.

Parameters are a dict from state-dict names to tensors; randomness is a key. There is no module, no
mode flag and no global generator, so every `torch.func` transform and `torch.compile` applies.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

from alexnet_func import continuous, local, ops, random
from alexnet_func.arch import (
    ALEXNET,
    LRN,
    AdaptiveAvgPool,
    Arch,
    AvgPool,
    CenteredHeNormal,
    Constant,
    Conv,
    Dropout,
    FanInUniform,
    Flatten,
    HeNormal,
    Init,
    Linear,
    LocallyConnected,
    MaxPool,
    Normal,
    Placed,
    ReLU,
    Shape,
    Tanh,
    WithinChannelLRN,
    ZeroPad,
    param_shapes,
    place,
)
from alexnet_func.checks import check_named_tensors
from alexnet_func.layers import Weighted
from alexnet_func.structure import fan_in

__all__ = [
    "PLAIN",
    "Params",
    "activations",
    "dropout_noise",
    "forward",
    "init",
    "walk",
]

Params = dict[str, Tensor]

# A layer function takes the placed layer, its input and its operands: weight and bias for layers that have them, the
# uniform noise for Dropout, but in evaluation, and nothing for the rest.
LayerFn = Callable[..., Tensor]
Table = Mapping[type, LayerFn]


def _dropout(at: Placed, x: Tensor, noise: Tensor | None = None) -> Tensor:
    if at.layer.convention == "classic":  # type: ignore[union-attr]
        return ops.classic_dropout(x, noise, at.layer.rate)  # type: ignore[union-attr]
    assert noise is not None  # in evaluation `walk` passes over the layer
    return ops.dropout(x, noise, at.layer.rate)  # type: ignore[union-attr]


PLAIN: Table = {
    Conv: lambda at, x, weight, bias: F.conv2d(
        x, weight, bias, stride=at.layer.stride, padding=at.layer.padding, groups=at.layer.groups
    ),
    LocallyConnected: local.locally_connected,
    Linear: lambda at, x, weight, bias: F.linear(x, weight, bias),
    ReLU: lambda at, x: F.relu(x),
    Tanh: lambda at, x: x.tanh(),
    LRN: lambda at, x: ops.local_response_norm(x, at.layer),
    WithinChannelLRN: lambda at, x: ops.within_channel_response_norm(x, at.layer),
    MaxPool: lambda at, x: F.max_pool2d(x, at.layer.kernel_size, at.layer.stride, ceil_mode=at.layer.ceil_mode),
    AvgPool: lambda at, x: F.avg_pool2d(
        x, at.layer.kernel_size, at.layer.stride, ceil_mode=at.layer.ceil_mode, count_include_pad=False
    ),
    AdaptiveAvgPool: lambda at, x: x if at.in_shape == at.out_shape else F.adaptive_avg_pool2d(x, at.layer.output_size),
    ZeroPad: lambda at, x: F.pad(x, (at.layer.before, at.layer.after) * 2),
    Flatten: lambda at, x: x.flatten(-3),
    Dropout: _dropout,
}


def init(
    key: random.Key,
    arch: Arch = ALEXNET,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Params:
    """Draws the initial parameters of `arch` as its records say, on `device` (default: the key's).

    The i-th tensor is drawn in float32 from `fold_in(key, i)` and cast to `dtype`. The names and shapes are
    `param_shapes(arch)`: those of the state dict of `interop.to_module(params, arch)`.

    Examples:
        >>> small = arch.replace(features=arch.features[:3], classifier=arch.classifier[-1:])
        >>> {name: list(p.shape) for name, p in af.init(key, small).items()}
        {'features.0.weight': [64, 3, 3, 3], 'features.0.bias': [64],
         'classifier.0.weight': [10, 16384], 'classifier.0.bias': [10]}
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype, got {dtype}")
    random.check_key(key)
    key = key.to(device) if device is not None else key
    inits = {
        f"{at.name}.{kind}": (rule, fan_in(at))
        for at in place(arch, (arch.in_channels, arch.image_size, arch.image_size))
        if isinstance(at.layer, Weighted)
        for kind, rule in (("weight", at.layer.weight), ("bias", at.layer.bias))
    }
    shapes = param_shapes(arch)
    return {
        name: _draw(random.fold_in(key, i), *inits[name], shape).to(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }


def forward(
    params: Params,
    x: Float[Tensor, "*n c h w"],
    *,
    arch: Arch = ALEXNET,
    key: Int32[Tensor, "*k 2"] | None = None,
    table: Table = PLAIN,
) -> Float[Tensor, "*n classes"]:
    """Computes the logits [N, classes] of images `x` [N, C, H, W], or [classes] of one image [C, H, W].

    `key=None` is evaluation. With a key, dropout masks are drawn from it: on a batch the i-th example's key is
    `split(key, N)[i]`, or row i of a key of shape [N, 2], so that `forward` on a batch equals `vmap(forward)` over
    examples and keys, and an example's masks do not depend on who shares its batch. The i-th dropout layer
    keeps a value where `bernoulli(fold_in(example_key, i), 1 - rate, shape)`.

    `x` is cast to the parameters' dtype, which the logits have. In evaluation `ALEXNET` gives the bits of
    `torchvision.models.alexnet`. Another `table` of layer functions (see `routes`) computes the same to rounding.

    Raises TypeError for integer images or something that is no key; ValueError for images of another shape than
    the arch takes, for parameters that are missing, unknown, misshapen, of mixed dtype or on another device.

    Examples:
        >>> af.forward(params, batch[0], arch=arch).shape
        torch.Size([4, 10])
        >>> with_dropout = af.forward(params, batch[0], arch=arch, key=key)
        >>> third = af.forward(params, batch[0][2], arch=arch, key=af.random.split(key, 4)[2])
        >>> torch.allclose(with_dropout[2], third, atol=1e-4)
        True
    """
    check_inputs(arch, params, x, key)
    dtype = next(iter(params.values())).dtype
    return walk(arch, params, x.to(dtype), key, table)


def activations(params: Params, x: Float[Tensor, "*n c h w"], *, arch: Arch = ALEXNET) -> dict[str, Tensor]:
    """Returns what every layer makes of `x` in evaluation, by its name and in order; the last is `forward(params, x)`.

    The paper's figure 4 compares images by what the last hidden layer gives, here `activations(...)["classifier.5"]`,
    [N, 4096] in ALEXNET. Errors as `forward` raises them.

    Examples:
        >>> found = af.model.activations(params, batch[0], arch=arch)
        >>> list(found)[:3], found["classifier.5"].shape
        (['features.0', 'features.1', 'features.2'], torch.Size([4, 1024]))
    """
    found: dict[str, Tensor] = {}

    def kept(layer_fn: LayerFn) -> LayerFn:
        def call(at: Placed, x: Tensor, *operands: Tensor) -> Tensor:
            found[at.name] = layer_fn(at, x, *operands)
            return found[at.name]

        return call

    forward(params, x, arch=arch, table={kind: kept(layer_fn) for kind, layer_fn in PLAIN.items()})
    return found


def walk(arch: Arch, params: Params, x: Tensor, key: Tensor | None, table: Table) -> Tensor:
    """Applies `table[type(layer)](placed, x, *operands)` for every layer of `arch` in turn.

    The one loop over layers: taps for per-sample gradients, or faster equivalents, are other tables. Without a key
    dropout layers are passed over, but those of the classic convention, which get no noise.
    Arguments are those of `forward`, unchecked.

    Examples:
        >>> smooth = {**af.model.PLAIN, af.arch.ReLU: lambda at, x: torch.nn.functional.softplus(x)}
        >>> af.model.walk(arch, params, batch[0], None, smooth).shape
        torch.Size([4, 10])
    """
    layers = place(arch, tuple(x.shape[-3:]))
    noise = {} if key is None else dropout_noise(layers, key, batch=x.shape[:-3])
    for at in layers:
        operands: tuple[Tensor, ...] = ()
        if isinstance(at.layer, Weighted):
            operands = (params[f"{at.name}.weight"], params[f"{at.name}.bias"])
        elif isinstance(at.layer, Dropout):
            if key is None and at.layer.convention == "inverted":
                continue
            operands = () if key is None else (noise[at.name],)
        x = table[type(at.layer)](at, x, *operands)
    return x


def dropout_noise(
    layers: tuple[Placed, ...], key: Int32[Tensor, "*k 2"], batch: Sequence[int]
) -> dict[str, Float[Tensor, "..."]]:
    """Draws the uniforms of every dropout layer in `layers` by name, each [*batch, *shape].

    See `forward` for which key makes which.

    One call derives all keys and one draws all noise: compiling the cipher is what costs.

    Examples:
        >>> layers = af.arch.place(arch, (3, 32, 32))
        >>> noise = af.model.dropout_noise(layers, key, batch=(4,))
        >>> {name: list(uniforms.shape) for name, uniforms in noise.items()}
        {'classifier.0': [4, 4096], 'classifier.3': [4, 1024]}
    """
    sites = [at for at in layers if isinstance(at.layer, Dropout)]
    if not sites:
        return {}
    if batch and key.dim() == 1:
        key = random.split(key, batch[0])
    sizes = [math.prod(at.in_shape) for at in sites]
    flat = continuous.uniform_segments(key, sizes).split(sizes, dim=-1)
    return {at.name: noise.reshape(*batch, *at.in_shape) for at, noise in zip(sites, flat, strict=True)}


def _draw(key: Tensor, rule: Init, inputs: int, shape: Shape) -> Tensor:
    match rule:
        case Normal(std):
            return random.normal(key, shape) * std
        case HeNormal():
            return random.normal(key, shape) * math.sqrt(2 / inputs)
        case CenteredHeNormal():
            units = (random.normal(key, shape) * math.sqrt(2 / inputs)).view(-1, inputs)
            return (units - units.mean(1, keepdim=True)).view(shape)
        case FanInUniform():
            return (random.uniform(key, shape) * 2 - 1) / math.sqrt(inputs)
        case Constant(value):
            return torch.full(shape, value, device=key.device)


def check_inputs(arch: Arch, params: Params, x: Tensor, key: Tensor | None) -> None:
    """Raises TypeError or ValueError, as `forward` promises, unless these fit one another."""
    _check_params(arch, params)
    check_images(arch, params, x, key)


def _check_params(arch: Arch, params: Params) -> None:
    what = f"params of {arch.name}"
    check_named_tensors(param_shapes(arch), params, what)
    for attribute in ("dtype", "device"):
        found = {str(getattr(value, attribute)) for value in params.values()}
        if len(found) > 1:
            raise ValueError(f"{what} must share one {attribute}, got {', '.join(sorted(found))}")


def check_images(arch: Arch, params: Params, x: Tensor, key: Tensor | None) -> None:
    """Raises TypeError or ValueError unless the images and the key are what `arch` takes, on the params' device."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"x must be a floating tensor of images, got {given}; scale integer images first, as in x / 255"
        )
    if x.dim() not in (3, 4):
        raise ValueError(f"x must be [C, H, W] or [N, C, H, W], got {list(x.shape)}")
    place(arch, tuple(x.shape[-3:]))
    device = next(iter(params.values())).device
    if x.device != device:
        raise ValueError(f"params are on {device} but x is on {x.device}")
    if key is not None:
        random.check_key(key, rows=x.shape[0] if x.dim() == 4 else None)
        if key.device != device:
            raise ValueError(f"params are on {device} but key is on {key.device}")
