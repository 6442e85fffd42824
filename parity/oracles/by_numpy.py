"""Forward and hand-derived backward in NumPy float64, sharing no code with torch.

A layer is a function of its record, its input and its operands that returns its output and a function from the
gradient of the output to the gradients of the input and of the operands.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from alexnet_func.arch import (
    LRN,
    Arch,
    AvgPool,
    Conv,
    Dropout,
    Linear,
    LocallyConnected,
    MaxPool,
    ReLU,
    Tanh,
    WithinChannelLRN,
    ZeroPad,
)

Array = np.ndarray
Backward = Callable[[Array], tuple[Array, ...]]


def loss_and_gradients(
    arch: Arch, params: Mapping[str, Array], x: Array, y: Array, keeps: Mapping[str, Array]
) -> dict[str, Array]:
    """Logits, mean cross-entropy, and its gradients by parameter and, as "input", by x [N, C, H, W].

    `keeps` holds the boolean mask [N, ...] of each dropout layer by name; a layer without one is passed over.
    """
    backwards: list[tuple[str, Backward]] = []

    def apply(name: str, result: tuple[Array, Backward]) -> Array:
        backwards.append((name, result[1]))
        return result[0]

    h = x
    for i, layer in enumerate(arch.features):
        h = _layer(f"features.{i}", layer, h, params, keeps, apply)
    if arch.pooled_size is not None:
        h = apply("avgpool", _adaptive_average(h, arch.pooled_size))
    maps = h.shape
    h = apply("flatten", (h.reshape(len(h), -1), lambda g: (g.reshape(maps),)))
    for i, layer in enumerate(arch.classifier):
        h = _layer(f"classifier.{i}", layer, h, params, keeps, apply)

    loss, gradient = _cross_entropy(h, y)
    results = {"logits": h, "loss": np.asarray(loss)}
    gradients: dict[str, Array] = {}
    for name, backward in reversed(backwards):
        gradient, *operands = backward(gradient)
        gradients |= {f"{name}.{kind}": g for kind, g in zip(("weight", "bias"), operands, strict=False)}
    return {**results, **{name: gradients[name] for name in params}, "input": gradient}


def _layer(
    name: str,
    layer: Any,
    x: Array,
    params: Mapping[str, Array],
    keeps: Mapping[str, Array],
    apply: Callable[[str, tuple[Array, Backward]], Array],
) -> Array:
    match layer:
        case Conv():
            return apply(name, _convolution(layer, x, params[f"{name}.weight"], params[f"{name}.bias"]))
        case LocallyConnected():
            return apply(name, _local(layer, x, params[f"{name}.weight"], params[f"{name}.bias"]))
        case Linear():
            return apply(name, _linear(x, params[f"{name}.weight"], params[f"{name}.bias"]))
        case ReLU():
            return apply(name, (np.maximum(x, 0), lambda g: (g * (x > 0),)))
        case Tanh():
            return apply(name, (np.tanh(x), lambda g: (g * (1 - np.tanh(x) ** 2),)))
        case LRN():
            return apply(name, _response_norm(layer, x))
        case WithinChannelLRN():
            return apply(name, _within_channel_norm(layer, x))
        case MaxPool():
            return apply(name, _max_pool(layer, x))
        case AvgPool():
            return apply(name, _average_pool(layer, x))
        case ZeroPad(before, after):
            inner = slice(before, before + x.shape[2]), slice(before, before + x.shape[3])
            margins = (before, after)
            return apply(name, (np.pad(x, ((0, 0), (0, 0), margins, margins)), lambda g: (g[:, :, *inner],)))
        case Dropout():
            factor = _dropout_factor(layer, keeps.get(name))
            return apply(name, (x * factor, lambda g: (g * factor,)))
    raise TypeError(f"no NumPy rule for {layer}")


def _convolution(layer: Conv, x: Array, weight: Array, bias: Array) -> tuple[Array, Backward]:
    k, stride, pad, groups = layer.kernel_size, layer.stride, layer.padding, layer.groups
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, (k, k), (2, 3))[:, :, ::stride, ::stride]
    n, channels, rows, columns = windows.shape[:4]
    # [groups, N * rows * columns, channels of a group * k * k]
    patches = windows.reshape(n, groups, channels // groups, rows, columns, k, k).transpose(1, 0, 3, 4, 2, 5, 6)
    patches = patches.reshape(groups, n * rows * columns, -1)
    kernels = weight.reshape(groups, len(weight) // groups, -1)
    out = (patches @ kernels.transpose(0, 2, 1)).reshape(groups, n, rows, columns, -1)
    out = out.transpose(1, 0, 4, 2, 3).reshape(n, len(weight), rows, columns) + bias[:, None, None]

    def backward(g: Array) -> tuple[Array, ...]:
        by_group = (
            g.reshape(n, groups, -1, rows, columns).transpose(1, 0, 3, 4, 2).reshape(groups, n * rows * columns, -1)
        )
        kernel_gradient = (by_group.transpose(0, 2, 1) @ patches).reshape(weight.shape)
        pieces = (by_group @ kernels).reshape(groups, n, rows, columns, channels // groups, k, k)
        pieces = pieces.transpose(1, 0, 4, 2, 3, 5, 6).reshape(n, channels, rows, columns, k, k)
        total = np.zeros_like(padded)
        for i in range(k):
            for j in range(k):
                total[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride] += pieces[..., i, j]
        inner = total[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]]
        return inner, kernel_gradient, g.sum((0, 2, 3))

    return out, backward


def _linear(x: Array, weight: Array, bias: Array) -> tuple[Array, Backward]:
    return x @ weight.T + bias, lambda g: (g @ weight, g.T @ x, g.sum(0))


def _local(layer: LocallyConnected, x: Array, weight: Array, bias: Array) -> tuple[Array, Backward]:
    """One position after the other."""
    k, stride, pad = layer.kernel_size, layer.stride, layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = weight.shape[:2]
    sites = [
        (r, c, np.s_[:, :, r * stride : r * stride + k, c * stride : c * stride + k])
        for r in range(rows)
        for c in range(columns)
    ]
    out = np.empty((len(x), *bias.shape))
    for r, c, window in sites:
        out[:, :, r, c] = np.einsum("nchw,ochw->no", padded[window], weight[r, c]) + bias[:, r, c]

    def backward(g: Array) -> tuple[Array, ...]:
        total, kernels = np.zeros_like(padded), np.empty_like(weight)
        for r, c, window in sites:
            total[window] += np.einsum("no,ochw->nchw", g[:, :, r, c], weight[r, c])
            kernels[r, c] = np.einsum("no,nchw->ochw", g[:, :, r, c], padded[window])
        return total[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]], kernels, g.sum(0)

    return out, backward


def _dropout_factor(layer: Dropout, keep: Array | None) -> Array | float:
    kept = 1 - layer.rate
    if layer.convention == "classic":
        return kept if keep is None else keep
    return 1.0 if keep is None else keep / kept


def _response_norm(layer: LRN, x: Array) -> tuple[Array, Backward]:
    alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size
    before, after = layer.size // 2, (layer.size - 1) // 2

    def window_sum(values: Array, left: int, right: int) -> Array:
        groups = np.split(values, layer.groups, 1)
        padded = [np.pad(group, ((0, 0), (left, right), (0, 0), (0, 0))) for group in groups]
        return np.concatenate([sliding_window_view(p, left + right + 1, 1).sum(-1) for p in padded], 1)

    return _normalized(layer, alpha, x, lambda v: window_sum(v, before, after), lambda v: window_sum(v, after, before))


def _within_channel_norm(layer: WithinChannelLRN, x: Array) -> tuple[Array, Backward]:
    alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size**2
    before, after = layer.size // 2, (layer.size - 1) // 2

    def window_sum(values: Array, left: int, right: int) -> Array:
        padded = np.pad(values, ((0, 0), (0, 0), (left, right), (left, right)))
        return sliding_window_view(padded, (left + right + 1,) * 2, (2, 3)).sum((-2, -1))

    return _normalized(layer, alpha, x, lambda v: window_sum(v, before, after), lambda v: window_sum(v, after, before))


def _normalized(
    layer: LRN | WithinChannelLRN, alpha: float, x: Array, total: Callable[[Array], Array], mirrored: Any
) -> tuple[Array, Backward]:
    """`x / (k + alpha * total(x^2))^beta`; `mirrored` sums over those whose windows hold a value."""
    scale = layer.k + alpha * total(x**2)
    out = x * scale**-layer.beta

    def backward(g: Array) -> tuple[Array, ...]:
        through_scale = mirrored(g * x * scale ** (-layer.beta - 1))
        return (g * scale**-layer.beta - 2 * alpha * layer.beta * x * through_scale,)

    return out, backward


def _max_pool(layer: MaxPool, x: Array) -> tuple[Array, Backward]:
    k, stride = layer.kernel_size, layer.stride
    sides = [_pooled_side(side, k, stride, layer.ceil_mode) for side in x.shape[2:]]
    overhang = [max(0, (count - 1) * stride + k - side) for count, side in zip(sides, x.shape[2:], strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), (0, overhang[0]), (0, overhang[1])), constant_values=-np.inf)
    windows = sliding_window_view(padded, (k, k), (2, 3))[:, :, ::stride, ::stride][:, :, : sides[0], : sides[1]]
    flat = windows.reshape(*windows.shape[:4], k * k)
    best = flat.argmax(-1)

    def backward(g: Array) -> tuple[Array, ...]:
        total = np.zeros_like(padded)
        n, c, rows, columns = np.indices(best.shape)
        np.add.at(total, (n, c, rows * stride + best // k, columns * stride + best % k), g)
        return (total[:, :, : x.shape[2], : x.shape[3]],)

    return np.take_along_axis(flat, best[..., None], -1)[..., 0], backward


def _average_pool(layer: AvgPool, x: Array) -> tuple[Array, Backward]:
    k, stride = layer.kernel_size, layer.stride
    rows, columns = (_pooled_side(side, k, stride, layer.ceil_mode) for side in x.shape[2:])
    windows = [
        (r, c, np.s_[:, :, r * stride : r * stride + k, c * stride : c * stride + k])
        for r in range(rows)
        for c in range(columns)
    ]
    out = np.empty((*x.shape[:2], rows, columns))
    for r, c, window in windows:
        out[:, :, r, c] = x[window].mean((2, 3))

    def backward(g: Array) -> tuple[Array, ...]:
        total = np.zeros_like(x)
        for r, c, window in windows:
            total[window] += g[:, :, r, c, None, None] / total[window][0, 0].size
        return (total,)

    return out, backward


def _pooled_side(side: int, kernel: int, stride: int, ceil_mode: bool) -> int:
    """How many windows there are; in ceil mode those too that begin on a pixel and end beyond the last one."""
    starts = range(0, side, stride)
    return sum(1 for start in starts if start + kernel <= side or (ceil_mode and start + kernel - stride < side))


def _adaptive_average(x: Array, size: int) -> tuple[Array, Backward]:
    def bounds(side: int) -> list[slice]:
        return [slice(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]

    regions = [(i, j, r, c) for i, r in enumerate(bounds(x.shape[2])) for j, c in enumerate(bounds(x.shape[3]))]
    out = np.empty((*x.shape[:2], size, size))
    for i, j, r, c in regions:
        out[:, :, i, j] = x[:, :, r, c].mean((2, 3))

    def backward(g: Array) -> tuple[Array, ...]:
        total = np.zeros_like(x)
        for i, j, r, c in regions:
            count = (r.stop - r.start) * (c.stop - c.start)
            total[:, :, r, c] += g[:, :, i, j, None, None] / count
        return (total,)

    return out, backward


def _cross_entropy(logits: Array, y: Array) -> tuple[float, Array]:
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    chosen = np.zeros_like(logits)
    chosen[np.arange(len(y)), y] = 1
    return -(log_p * chosen).sum() / len(y), (np.exp(log_p) - chosen) / len(y)
