"""AlexNet in jitted JAX: NHWC images, HWIO kernels, donated buffers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_func.arch import Arch, Conv, Linear, MaxPool, ReLU
from benchmarks.cases import Case, Setting

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def check_device(case: Case) -> None:
    """Raises ImportError for a case on CUDA where JAX is one for CPUs, which it would be timed on."""
    if case.device == "cuda" and jax.default_backend() != "gpu":
        raise ImportError(f"this JAX computes on {jax.default_backend()}")


def forward(case: Case, given: Setting) -> Callable[[], Any]:
    """Logits."""
    params, x, _ = _arrays(given)
    run = jax.jit(lambda p, x: _forward(case, given.arch, p, x))
    return lambda: jax.block_until_ready(run(params, x))


def step(case: Case, given: Setting, rate: float) -> Callable[[], Any]:
    """One step of SGD with momentum, parameters and velocity donated; gives the loss."""
    params, x, y = _arrays(given)
    velocity = jax.tree.map(jnp.zeros_like, params)

    def loss(p: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(_forward(case, given.arch, p, x))
        return -jnp.take_along_axis(log_p, y[:, None], 1).mean()

    def one(p: dict, v: dict, x: jax.Array, y: jax.Array) -> tuple[dict, dict, jax.Array]:
        value, grads = jax.value_and_grad(loss)(p, x, y)
        v = jax.tree.map(lambda v, g: 0.9 * v + g, v, grads)
        return jax.tree.map(lambda p, v: p - rate * v, p, v), v, value

    run = jax.jit(one, donate_argnums=(0, 1))

    def call() -> Any:
        nonlocal params, velocity
        params, velocity, value = jax.block_until_ready(run(params, velocity, x, y))
        return value

    return call


def _arrays(given: Setting) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    params = {name: np.array(p.cpu()) for name, p in given.params.items()}
    turned = {name: p.transpose(2, 3, 1, 0) if p.ndim == 4 else p for name, p in params.items()}
    arrays = {name: jnp.array(p) for name, p in turned.items()}
    return arrays, jnp.array(given.x.cpu().numpy().transpose(0, 2, 3, 1)), jnp.array(given.y.cpu().numpy())


def _forward(case: Case, arch: Arch, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    if case.precision == "bf16":
        params, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
    precision = {"float32": "highest", "tf32": "tensorfloat32", "bf16": "default"}[case.precision]
    with jax.default_matmul_precision(precision):
        for i, layer in enumerate(arch.features):
            x = _feature(f"features.{i}", layer, params, x)
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # the average pool keeps 6x6 as it is
        for i, layer in enumerate(arch.classifier):
            name = f"classifier.{i}"
            if isinstance(layer, Linear):
                x = x @ params[f"{name}.weight"].T + params[f"{name}.bias"]
            elif isinstance(layer, ReLU):
                x = jax.nn.relu(x)
    return x.astype(jnp.float32)


def _feature(name: str, layer: Any, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    match layer:
        case Conv(stride=s, padding=p, groups=1):
            out = lax.conv_general_dilated(
                x, params[f"{name}.weight"], (s, s), [(p, p)] * 2, dimension_numbers=_DIMENSIONS
            )
            return out + params[f"{name}.bias"]
        case ReLU():
            return jax.nn.relu(x)
        case MaxPool(kernel_size=k, stride=s, ceil_mode=False):
            return lax.reduce_window(x, -jnp.inf, lax.max, (1, k, k, 1), (1, s, s, 1), "VALID")
    raise TypeError(f"no JAX rule for {layer}")
