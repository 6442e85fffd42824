"""The same in JAX's own operations, differentiated by `jax.grad`, and dropout masks drawn by `jax.random`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_func.arch import LRN, Arch, Conv, Dropout, Linear, MaxPool, ReLU


def loss_and_gradients(
    arch: Arch, params: Mapping[str, np.ndarray], x: np.ndarray, y: np.ndarray, keeps: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """As `by_numpy.loss_and_gradients`, in float64."""
    with jax.enable_x64(True):

        def loss(p: dict[str, jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = _forward(arch, p, images, keeps)
            log_p = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(log_p, jnp.asarray(y)[:, None], 1).mean(), logits

        differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, logits), (gradients, by_input) = differentiated({n: jnp.asarray(p) for n, p in params.items()}, x)
        found = {"logits": logits, "loss": value, **{n: gradients[n] for n in params}, "input": by_input}
        return {name: np.asarray(array) for name, array in found.items()}


def masks(
    rates_and_shapes: Mapping[str, tuple[float, tuple[int, ...]]], key: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """What each dropout layer, its rate and shape by name, keeps of `count` examples under a raw key, uint32 [2]."""
    keys = jax.random.split(jnp.asarray(key), count)
    return {
        name: np.stack([np.asarray(jax.random.bernoulli(jax.random.fold_in(k, i), 1 - rate, shape)) for k in keys])
        for i, (name, (rate, shape)) in enumerate(rates_and_shapes.items())
    }


def _forward(arch: Arch, params: Mapping[str, jax.Array], x: jax.Array, keeps: Mapping[str, Any]) -> jax.Array:
    for i, layer in enumerate(arch.features):
        x = _layer(f"features.{i}", layer, x, params, keeps)
    if arch.pooled_size is not None:
        x = _adaptive_average(x, arch.pooled_size)
    x = x.reshape(len(x), -1)
    for i, layer in enumerate(arch.classifier):
        x = _layer(f"classifier.{i}", layer, x, params, keeps)
    return x


def _layer(name: str, layer: Any, x: jax.Array, params: Mapping[str, jax.Array], keeps: Mapping[str, Any]) -> jax.Array:
    match layer:
        case Conv():
            margins = [(layer.padding, layer.padding)] * 2
            strides = (layer.stride, layer.stride)
            out = lax.conv_general_dilated(
                x, params[f"{name}.weight"], strides, margins, feature_group_count=layer.groups
            )
            return out + params[f"{name}.bias"][:, None, None]
        case Linear():
            return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]
        case ReLU():
            return jax.nn.relu(x)
        case LRN():
            alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size
            around = (layer.size // 2, (layer.size - 1) // 2)
            pads = [(0, 0), around, (0, 0), (0, 0)]
            total = lax.reduce_window(x**2, 0.0, lax.add, (1, layer.size, 1, 1), (1, 1, 1, 1), pads)
            return x / (layer.k + alpha * total) ** layer.beta
        case MaxPool():
            k, stride = layer.kernel_size, layer.stride
            pads = [(0, _overhang(side, k, stride) if layer.ceil_mode else 0) for side in x.shape[2:]]
            return lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 1, k, k), (1, 1, stride, stride), [(0, 0), (0, 0), *pads]
            )
        case Dropout() if name in keeps:
            return jnp.where(keeps[name], x / (1 - layer.rate), 0)
        case Dropout():
            return x
    raise TypeError(f"no JAX rule for {layer}")


def _overhang(side: int, kernel: int, stride: int) -> int:
    """By how much a last window overhangs that begins inside and that plain mode would leave out."""
    rest = (side - kernel) % stride
    missing = stride - rest if rest else 0
    return missing if missing < kernel else 0


def _adaptive_average(x: jax.Array, size: int) -> jax.Array:
    def weights(side: int) -> np.ndarray:
        w = np.zeros((size, side))
        for i in range(size):
            start, stop = i * side // size, -(-(i + 1) * side // size)
            w[i, start:stop] = 1 / (stop - start)
        return w

    return jnp.einsum("ih,nchw,jw->ncij", weights(x.shape[2]), x, weights(x.shape[3]))
