"""Optimisers, random draws and augmentation as subjects: what training is made of beside the network."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import alexnet_func as af
from alexnet_func import continuous
from alexnet_func.data import augment
from parity.compositions.setting import Subject, moved, net, normal
from parity.compositions.transforms import Function, readout


def _updated(optimizer: Callable[[Tensor], af.optim.Optimizer]) -> Function:
    """An update by parameters, gradients and state (t[0], t[1]), and by a setting (t[2]).

    The gradient of the bias stays zero, and with it what its moments were: where square roots have no derivative.
    """
    params = {"weight": normal(1, 3, 2), "bias": normal(2, 4)}
    grads = {"weight": normal(3, 3, 2), "bias": torch.zeros(4).double()}

    def update(t: Tensor, key: Tensor) -> Tensor:
        chosen = optimizer(1 + 0.3 * t[2])
        state = chosen.init(params)
        own = moved(params, t[0], 4, 0.3)
        step = torch.tensor(1)
        weights = moved({"weight": grads["weight"]}, t[1], 5, 0.3)
        for i in range(2):
            own, state = chosen.update({**weights, "bias": grads["bias"]}, state, own, step + i)
        return readout((own, state))

    return update


def optimizers() -> Iterator[Subject]:
    """`optim`: every update, by all that goes in."""
    o = af.optim
    made: Mapping[str, Callable[[Tensor], af.optim.Optimizer]] = {
        "sgd": lambda s: o.sgd(0.1 * s, momentum=0.9 / s, weight_decay=0.05 * s),
        "sgd, nesterov": lambda s: o.sgd(0.1 * s, momentum=0.9 / s, weight_decay=0.05 * s, nesterov=True),
        "sgd, paper": lambda s: o.sgd(0.1 * s, momentum=0.9 / s, weight_decay=0.05 * s, form="paper"),
        "sgd, scheduled": lambda s: o.sgd(o.warmup_cosine(0.1 * s, 2, 9), 0.9, 0.05),
        "adamw": lambda s: o.adamw(0.1 * s, b1=0.8 / s, b2=0.8 / s, eps=1e-3 * s, weight_decay=0.05 * s),
        "muon": lambda s: o.partition(
            lambda name: name, {"weight": o.muon(0.1 * s, 0.9 / s, 0.05 * s), "bias": o.sgd(0.1 * s)}
        ),
        "chain, clip_by_global_norm": lambda s: o.chain(o.clip_by_global_norm(0.7 * s), o.sgd(0.1 * s, 0.9)),
        "masked, add_decayed_weights": lambda s: o.chain(
            o.masked(o.add_decayed_weights(0.1 * s), lambda name: name == "weight"), o.sgd(0.1)
        ),
        "ema": lambda s: o.chain(o.ema(0.8 / s), o.sgd(0.1 * s)),
        "averaged": lambda s: o.averaged(o.sgd(0.1 * s, 0.9), 0.8 / s),
        "accumulate": lambda s: o.accumulate(o.adamw(0.1 * s, eps=1e-3), 2),
    }
    for name, optimizer in made.items():
        yield Subject(f"optim.{name}", _updated(optimizer), quick=name in ("sgd", "adamw"))
    yield Subject("optim.global_norm", net(lambda p, x, s, key: af.optim.global_norm({"x": x * s})))
    yield Subject("optim.orthogonalized", net(lambda p, x, s, key: af.optim.orthogonalized(x[0, 0, :3] * s)))


# Compiled normals go through float64, since inductor's float32 inverse error function is off by 4e-5.
_FLOATS = ("normal", "gumbel", "exponential", "truncated_normal")


def random() -> Iterator[Subject]:
    """`random`: the same numbers inside every transform. Slopes by bounds are float32's, too coarse to difference."""
    r = af.random
    drawn: Mapping[str, Callable[[Tensor], Any]] = {
        "key": lambda key: r.key(7),
        "split": lambda key: r.split(key, (2, 3)),
        "fold_in": lambda key: r.fold_in(key, 9),
        "bits": lambda key: r.bits(key, 5),
        "normal": lambda key: r.normal(key, (5,)),
        "bernoulli": lambda key: r.bernoulli(key, 0.4, (5,)),
        "randint": lambda key: r.randint(key, (5,), -7, 9),
        "permutation": lambda key: r.permutation(key, 6),
        "gumbel": lambda key: r.gumbel(key, (5,)),
        "exponential": lambda key: r.exponential(key, (5,)),
        "uniform": lambda key: r.uniform(key, 5, -1.0, 2.0),
        "truncated_normal": lambda key: r.truncated_normal(key, -1.0, 2.0, (5,)),
        "choice": lambda key: r.choice(key, 7, (5,), replace=False),
        "choice, p": lambda key: r.choice(key, 3, (5,), p=torch.tensor([0.2, 0.3, 0.5])),
        "categorical": lambda key: r.categorical(key, torch.tensor([0.2, 0.3, 0.5]), shape=(5,)),
        "clone, key_data, wrap_key_data": lambda key: r.wrap_key_data(r.key_data(r.clone(key))),
        "uniform_segments": lambda key: continuous.uniform_segments(r.split(key), (3, 2)),
    }
    for name, draw in drawn.items():

        def scaled(t: Tensor, key: Tensor, draw: Any = draw) -> Tensor:
            return readout(draw(key)) * t.sum()

        yield Subject(f"random.{name}", scaled, quick=name == "bits", rounding=2e-7 if name in _FLOATS else 0.0)


def augmentation() -> Iterator[Subject]:
    """`data.augment`."""
    a = augment
    image = af.random.randint(af.random.key(8), (3, 8, 8), 0, 256).to(torch.uint8)
    images = torch.stack([image, image.flip(-1)])
    drawn: Mapping[str, Callable[[Tensor], Any]] = {
        "random_crop": lambda key: a.random_crop(key, image, 5),
        "random_crops": lambda key: a.random_crops(af.random.split(key), images, 5),
        "padded_crop": lambda key: a.padded_crop(key, image, 2),
        "padded_crops": lambda key: a.padded_crops(af.random.split(key), images, 2),
        "resized_crop": lambda key: a.resized_crop(key, image, 5),
        "random_flip": lambda key: a.random_flip(key, image),
        "random_flips": lambda key: a.random_flips(af.random.split(key), images),
        "to_float": lambda key: a.to_float(images),
        "center_crop": lambda key: a.center_crop(images, 5),
        "ten_crop": lambda key: a.ten_crop(images, 5),
        "rgb_components": lambda key: a.rgb_components(images),
    }
    for name, draw in drawn.items():

        def scaled(t: Tensor, key: Tensor, draw: Any = draw) -> Tensor:
            return readout(draw(key)) * t.sum()

        yield Subject(f"augment.{name}", scaled)
    floats = augment.to_float(images).double()
    yield Subject(
        "augment.normalize", lambda t, key: readout(a.normalize(moved(floats, t[0], 1), (0.4,) * 3, (0.2,) * 3))
    )
    yield Subject(
        "augment.pca_noise",
        lambda t, key: readout(a.pca_noise(key, moved(floats[0], t[0], 1), moved(normal(3, 3, 3), t[1], 2))),
    )
