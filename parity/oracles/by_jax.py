"""The same in JAX's own operations, differentiated by `jax.grad`, dropout masks by `jax.random`, training by optax."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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
from parity.inputs import MOMENTUM

Arrays = Mapping[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]  # x [N, C, H, W] and y [N]
Rule = Literal["sgd", "adamw"]
Hyper = tuple[float, float]  # learning rate and weight decay
Keep = Callable[[str, float, tuple[int, ...]], Any]  # a dropout layer's mask, or None, by its name, rate and shape


def loss_and_gradients(
    arch: Arch, params: Arrays, x: np.ndarray, y: np.ndarray, keeps: Arrays
) -> dict[str, np.ndarray]:
    """As `by_numpy.loss_and_gradients`, in float64."""
    with jax.enable_x64(True):

        def loss(p: dict[str, jax.Array], images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = _forward(arch, p, images, lambda name, *_: keeps.get(name))
            return _cross_entropy(logits, jnp.asarray(y)), logits

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
        name: np.stack([np.asarray(_mask(k, i, rate, shape)) for k in keys])
        for i, (name, (rate, shape)) in enumerate(rates_and_shapes.items())
    }


class Trained(NamedTuple):
    """What K steps made: their losses [K], each before its update, and the parameters after them.

    `by_params` and `by_hyper` are the derivatives of the loss of these parameters on the batch `query`, without
    dropout, by the parameters before the first step and by the learning rate and weight decay.
    """

    losses: np.ndarray
    params: dict[str, np.ndarray]
    by_params: dict[str, np.ndarray]
    by_hyper: tuple[np.ndarray, np.ndarray]


def training(
    arch: Arch, rule: Rule, hyper: Hyper, params: Arrays, batches: Batch, query: Batch, key: np.ndarray
) -> Trained:
    """Steps of optax in float64, one on each of the `batches` x [K, N, C, H, W] and y [K, N], and derivatives of them.

    `rule` is SGD with `MOMENTUM`, the decay added to the gradient, or AdamW. `key` is raw, uint32 [2]: step i draws
    its masks from `fold_in(key, i)`, as `alexnet_func.train` and `alexnet_func.forward` promise. `by_params` is the
    gradient of MAML, second order and all: Finn, Abbeel, Levine 2017, section 2.2.
    """
    with jax.enable_x64(True):
        found = _training(arch, rule, hyper, dict(params), batches, query, key)
        return jax.tree.map(np.asarray, found)


# The compiler's own optimisations take 10 seconds and would pay for longer runs than these.
@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def _training(arch: Arch, rule: Rule, hyper: Any, params: Any, batches: Any, query: Any, key: Any) -> Trained:
    def final_loss(params: Any, hyper: Any) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        trained, losses = _steps(arch, rule, hyper, params, batches, key)
        x, y = query
        return _cross_entropy(_forward(arch, trained, x, lambda *_: None), y), (trained, losses)

    (by_params, by_hyper), (trained, losses) = jax.grad(final_loss, (0, 1), has_aux=True)(params, hyper)
    return Trained(losses, trained, by_params, by_hyper)


def _steps(arch: Arch, rule: Rule, hyper: Any, params: Any, batches: Any, key: Any) -> tuple[Any, jax.Array]:
    import optax

    rate, decay = hyper
    if rule == "sgd":
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum=MOMENTUM))
    else:
        # The root of a zero second moment has no finite slope, so where a mask leaves a weight no gradient optax's
        # derivative would be NaN. This keeps it finite, and is lost in the rounding of every other second moment.
        optimizer = optax.adamw(rate, weight_decay=decay, eps_root=1e-300)

    def step(carried: Any, given: Any) -> tuple[Any, jax.Array]:
        p, opt_state = carried
        i, x, y = given
        keep = _keep_by(arch, jax.random.fold_in(key, i), len(x))
        loss, grads = jax.value_and_grad(lambda q: _cross_entropy(_forward(arch, q, x, keep), y))(p)
        updates, opt_state = optimizer.update(grads, opt_state, p)
        return (optax.apply_updates(p, updates), opt_state), loss

    carried = (params, optimizer.init(params))
    (trained, _), losses = lax.scan(step, carried, (jnp.arange(len(batches[0])), *batches))
    return trained, losses


def _keep_by(arch: Arch, key: jax.Array, count: int) -> Keep:
    """Masks for `count` examples, each from its own key."""
    keys = jax.random.split(key, count)
    sections = {"features": arch.features, "classifier": arch.classifier}
    names = [f"{s}.{i}" for s, layers in sections.items() for i, kind in enumerate(layers) if isinstance(kind, Dropout)]
    return lambda name, rate, shape: jax.vmap(lambda k: _mask(k, names.index(name), rate, shape[1:]))(keys)


def _mask(key: jax.Array, i: int, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """What the i-th dropout layer keeps of an example. For a float64 probability JAX would draw other bits."""
    return jax.random.bernoulli(jax.random.fold_in(key, i), np.float32(1 - rate), shape)


def _cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def _forward(arch: Arch, params: Mapping[str, jax.Array], x: jax.Array, keep: Keep) -> jax.Array:
    for i, layer in enumerate(arch.features):
        x = _layer(f"features.{i}", layer, x, params, keep)
    if arch.pooled_size is not None:
        x = _adaptive_average(x, arch.pooled_size)
    x = x.reshape(len(x), -1)
    for i, layer in enumerate(arch.classifier):
        x = _layer(f"classifier.{i}", layer, x, params, keep)
    return x


def _layer(name: str, layer: Any, x: jax.Array, params: Mapping[str, jax.Array], keep: Keep) -> jax.Array:
    match layer:
        case Conv():
            margins = [(layer.padding, layer.padding)] * 2
            strides = (layer.stride, layer.stride)
            out = lax.conv_general_dilated(
                x, params[f"{name}.weight"], strides, margins, feature_group_count=layer.groups
            )
            return out + params[f"{name}.bias"][:, None, None]
        case LocallyConnected():
            k = layer.kernel_size
            margins = [(layer.padding, layer.padding)] * 2
            kernels = params[
                f"{name}.weight"
            ]  # [rows, columns, O, C, k, k], which JAX takes as [O, C k k, rows, columns]
            by_patch = kernels.reshape(*kernels.shape[:3], -1).transpose(2, 3, 0, 1)
            dims = ("NCHW", "OIHW", "NCHW")
            out = lax.conv_general_dilated_local(
                x, by_patch, (layer.stride,) * 2, margins, (k, k), dimension_numbers=dims
            )
            return out + params[f"{name}.bias"]
        case Linear():
            return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]
        case ReLU():
            return jax.nn.relu(x)
        case Tanh():
            return jnp.tanh(x)
        case LRN():
            alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size
            around = (layer.size // 2, (layer.size - 1) // 2)
            pads = [(0, 0), around, (0, 0), (0, 0)]
            towers = [
                lax.reduce_window(tower**2, 0.0, lax.add, (1, layer.size, 1, 1), (1, 1, 1, 1), pads)
                for tower in jnp.split(x, layer.groups, 1)
            ]
            return x / (layer.k + alpha * jnp.concatenate(towers, 1)) ** layer.beta
        case WithinChannelLRN():
            alpha = layer.alpha if layer.convention == "sum" else layer.alpha / layer.size**2
            around = (layer.size // 2, (layer.size - 1) // 2)
            window = (1, 1, layer.size, layer.size)
            total = lax.reduce_window(x**2, 0.0, lax.add, window, (1, 1, 1, 1), [(0, 0), (0, 0), around, around])
            return x / (layer.k + alpha * total) ** layer.beta
        case MaxPool() | AvgPool():
            k, stride = layer.kernel_size, layer.stride
            pads = [(0, _overhang(side, k, stride) if layer.ceil_mode else 0) for side in x.shape[2:]]
            windows = ((1, 1, k, k), (1, 1, stride, stride), [(0, 0), (0, 0), *pads])
            if isinstance(layer, MaxPool):
                return lax.reduce_window(x, -jnp.inf, lax.max, *windows)
            return lax.reduce_window(x, 0.0, lax.add, *windows) / lax.reduce_window(x * 0 + 1, 0.0, lax.add, *windows)
        case ZeroPad():
            return jnp.pad(x, ((0, 0), (0, 0), *[(layer.before, layer.after)] * 2))
        case Dropout():
            kept = keep(name, layer.rate, x.shape)
            if layer.convention == "classic":
                return x * (1 - layer.rate) if kept is None else jnp.where(kept, x, 0)
            return x if kept is None else jnp.where(kept, x / (1 - layer.rate), 0)
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
