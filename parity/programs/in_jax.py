"""Trains a small network with dropout and momentum, and differentiates that by the learning rate: in JAX and optax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, grad, jit, lax, random, value_and_grad, vmap

Params = dict[str, Array]
Batch = tuple[Array, Array]

STEPS, EXAMPLES, RATE, MOMENTUM = 10, 16, 0.05, 0.9
DROPPED = (0.2, 0.5)
WEIGHTS = {
    "features.0": (16, 1, 4, 4),
    "features.3": (16, 16, 4, 4),
    "classifier.1": (64, 256),
    "classifier.4": (10, 64),
}


def init(key: Array) -> Params:
    def draw(i: int, shape: tuple[int, ...], fan_in: int) -> Array:
        drawn = random.uniform(random.fold_in(key, i), shape, "float32", minval=-1)
        return (drawn / math.sqrt(fan_in)).astype("float64")

    params = {}
    for i, (name, shape) in enumerate(WEIGHTS.items()):
        params[f"{name}.weight"] = draw(2 * i, shape, math.prod(shape[1:]))
        params[f"{name}.bias"] = draw(2 * i + 1, shape[:1], math.prod(shape[1:]))
    return params


def forward(params: Params, x: Array, *, key: Array | None = None) -> Array:
    def conv(name: str, x: Array, stride: int) -> Array:
        x = lax.conv_general_dilated(x, params[f"{name}.weight"], (stride, stride), [(1, 1), (1, 1)])
        return x + params[f"{name}.bias"][:, None, None]

    def linear(name: str, x: Array) -> Array:
        return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def dropout(i: int, x: Array) -> Array:
        def keep(key: Array) -> Array:
            return random.bernoulli(random.fold_in(key, i), jnp.float32(1 - DROPPED[i]), x.shape[1:])

        return x if key is None else jnp.where(vmap(keep)(random.split(key, len(x))), x / (1 - DROPPED[i]), 0)

    x = jax.nn.relu(conv("features.0", x, stride=2))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jax.nn.relu(conv("features.3", x, stride=1)).reshape(len(x), -1)
    x = jax.nn.relu(linear("classifier.1", dropout(0, x)))
    return linear("classifier.4", dropout(1, x))


def loss(params: Params, batch: Batch, *, key: Array | None = None) -> Array:
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(forward(params, x, key=key), y).mean()


def train(params: Params, rate: Array, batch: Batch, key: Array) -> tuple[Params, Array]:
    optimizer = optax.sgd(rate, momentum=MOMENTUM)

    def step(state: Any, _: None) -> tuple[Any, Array]:
        i, params, opt_state = state
        value, grads = value_and_grad(loss)(params, batch, key=random.fold_in(key, i))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (i + 1, optax.apply_updates(params, updates), opt_state), value

    state = (0, params, optimizer.init(params))
    (_, params, _), losses = lax.scan(step, state, length=STEPS)
    return params, losses


def final_loss(rate: Array, params: Params, batch: Batch, key: Array) -> tuple[Array, Any]:
    trained, losses = train(params, rate, batch, key)
    return loss(trained, batch), {"losses": losses, **trained}


def run(key: Array) -> dict[str, Array]:
    init_key, image_key, label_key, key = random.split(key, 4)
    x = random.uniform(image_key, (EXAMPLES, 1, 20, 20), "float32").astype("float64")
    y = random.randint(label_key, (EXAMPLES,), 0, 10, "int32")
    hypergradient = grad(final_loss, has_aux=True)
    by_rate, found = hypergradient(jnp.float64(RATE), init(init_key), (x, y), key)
    return {"by learning rate": by_rate, **found}


if __name__ == "__main__":
    with jax.enable_x64(True):
        found = jit(run)(random.key(0))
    print("losses", *(f"{value:.6f}" for value in found["losses"]))
    print(f"by the learning rate {found['by learning rate']:.6f}")
