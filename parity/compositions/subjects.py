"""The functions that transforms must go through, as data: a point t moves all that they can be differentiated by.

Components of t move the parameters, the images and the rest along fixed directions, a few hundredths for each unit: so
little that no ReLU and no maximum changes sides between the points that differences are taken from.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import alexnet_func as af
from alexnet_func.arch import LRN, Arch, Conv, Dropout, HeNormal, Linear, MaxPool, Normal, ReLU
from alexnet_func.data import augment
from parity.compositions.transforms import TRANSFORMS, Function, readout, wave

# Every kind of layer, with few enough activations that none lies near its kink.
NET = Arch(
    name="net",
    image_size=9,
    in_channels=2,
    num_classes=4,
    pooled_size=2,
    features=(
        *(Conv(4, 3, stride=2, padding=1, weight=HeNormal()), ReLU(), LRN(3, 0.1, 0.75, 1.0, "sum")),
        *(MaxPool(3, 2, ceil_mode=True), Conv(4, 3, padding=1, groups=2, weight=HeNormal()), ReLU()),
    ),
    classifier=(Dropout(0.3), Linear(5, weight=HeNormal()), ReLU(), Dropout(0.4), Linear(None, weight=Normal(0.7))),
)
N = 3
SIZE = 3
KEY = af.random.key(3)


class Subject(NamedTuple):
    """A public function, by name, as `function(t [SIZE], key) -> [2]`.

    `refused` are the transforms under which it raises a documented error, each with words of it; `left_out` those that
    are not tried, each with the reason. `rounding` is by how much a compiled or exported one in float32 may round
    otherwise.
    """

    name: str
    function: Function
    quick: bool = False
    refused: Mapping[str, str] = {}
    left_out: Mapping[str, str] = {}
    rounding: float = 0.0


def moved(tree: Any, by: Tensor, seed: int, share: float = 0.03) -> Any:
    """Every floating tensor of `tree`, plus `by` times a direction of its own."""
    leaves, spec = pytree.tree_flatten(tree)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaves[i] = leaf + by * share * wave(tuple(leaf.shape), 10 * seed + i)
    return pytree.tree_unflatten(leaves, spec)


def _normal(seed: int, *shape: int) -> Tensor:
    return af.random.normal(af.random.key(seed), shape).double()


PARAMS = af.init(KEY, NET, dtype=torch.float64)
X, Y = _normal(1, N, 2, 9, 9), torch.tensor([0, 3, 1])
LOSS = functools.partial(af.loss_fn, arch=NET)


def _objective(key: Tensor | None = None) -> Callable[[Any], Tensor]:
    return lambda params: LOSS(params, (X, Y), key=key)


def _net(call: Callable[[dict[str, Tensor], Tensor, Tensor, Tensor], Any]) -> Function:
    """Of parameters, images, a number that t moves, and a key."""
    return lambda t, key: readout(call(moved(PARAMS, t[0], 1), moved(X, t[1], 2), 0.5 + 0.1 * t[2], key))


# torch.export has two tracers, and neither takes all of torch.func; torch.compile, whose column stands beside, does.
_INNER = {"export": "torch.export takes no grad, vjp or vmap inside a function"}
_COUNTED = {"autograd": "a count has no graph, which torch's own error says"}


def network() -> Iterator[Subject]:
    """`model`, `losses`, `ops`, `routes`, `interop`, and of `train` what differentiates nothing."""
    lifted, _, buffers = af.interop.from_module(af.interop.to_module(PARAMS, NET))
    layer = LRN(3, 0.1, 0.75, 1.0, "mean")
    yield Subject("init", lambda t, key: readout(af.init(key, NET)) * t.sum(), rounding=2e-7)
    yield Subject("forward", _net(lambda p, x, s, key: af.forward(p, x * s, arch=NET, key=key)), quick=True)
    yield Subject("loss_fn", _net(lambda p, x, s, key: LOSS(p, (x * s, Y), key=key)), quick=True)
    yield Subject("model.activations", _net(lambda p, x, s, key: af.model.activations(p, x * s, arch=NET)))
    yield Subject(
        "routes.SPACE_TO_DEPTH",
        _net(lambda p, x, s, key: af.forward(p, x * s, arch=NET, key=key, table=af.routes.SPACE_TO_DEPTH)),
    )
    yield Subject("interop.from_module", _net(lambda p, x, s, key: lifted(p, buffers, x * s)))
    yield Subject(
        "losses.cross_entropy",
        lambda t, key: readout(af.losses.cross_entropy(moved(_normal(4, N, 4), t[0], 5, 1.0), Y)),
    )
    yield Subject(
        "losses.accuracy",
        lambda t, key: readout(af.losses.accuracy(moved(_normal(4, N, 4), t[0], 5), Y)),
        left_out=_COUNTED,
    )
    yield Subject(
        "losses.confusion_matrix",
        lambda t, key: readout(af.losses.confusion_matrix(Y, Y.flip(0), 4) + 0 * t.sum()),
        left_out=_COUNTED,
    )
    yield Subject(
        "train.create_state",
        _net(lambda p, x, s, key: af.train.create_state(p, af.optim.averaged(af.optim.sgd(0.1), 0.9), key=key)),
    )
    yield Subject("train.totals", _net(lambda p, x, s, key: af.train.totals(_classified(s), p, [(x, Y)])))
    yield Subject("ops.local_response_norm", _net(lambda p, x, s, key: af.ops.local_response_norm(x * s, layer)))
    yield Subject("ops.dropout", _net(lambda p, x, s, key: af.ops.dropout(x * s, af.random.uniform(key, X.shape), 0.4)))


def _updated(optimizer: Callable[[Tensor], af.optim.Optimizer], **entries: Any) -> Function:
    """An update by parameters, gradients and state (t[0], t[1]), and by a setting (t[2]).

    The gradient of the bias stays zero, and with it what its moments were: where square roots have no derivative.
    """
    params = {"weight": _normal(1, 3, 2), "bias": _normal(2, 4)}
    grads = {"weight": _normal(3, 3, 2), "bias": torch.zeros(4).double()}

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
    yield Subject("optim.global_norm", _net(lambda p, x, s, key: af.optim.global_norm({"x": x * s})))
    yield Subject("optim.orthogonalized", _net(lambda p, x, s, key: af.optim.orthogonalized(x[0, 0, :3] * s)))


def _trained(params: Any, x: Tensor, s: Tensor, key: Tensor, steps: int = 2, **options: Any) -> Any:
    optimizer = af.optim.sgd(0.1 * s, momentum=0.9 * s, weight_decay=0.01 * s)
    step = af.train.make_step(options.pop("loss_fn", LOSS), optimizer, **options)
    state = af.train.create_state(params, optimizer, key=key)
    for _ in range(steps):
        state, metrics = step(state, (x, Y))
    return state.params, state.opt_state, metrics


_NUMBERS = "use train.totals"
_SLOPES = [name for name, transform in TRANSFORMS.items() if transform.order or name == "vmap"]


def training() -> Iterator[Subject]:
    """`train` and the functions that make its gradient."""
    yield Subject("train.make_step", _net(_trained), quick=True)
    yield Subject(
        "train.make_step, bf16",
        _net(functools.partial(_trained, loss_fn=af.train.with_precision(LOSS, "bf16"))),
        left_out=dict.fromkeys(
            _SLOPES, "rounds to 8 bits, which neither differences nor another order of summation survive"
        ),
    )
    for kind in ("compiled", "donated"):
        step = af.train.compile_step(af.train.make_step(LOSS, af.optim.sgd(0.1)), donate=kind == "donated")
        words = f"a {kind} step cannot be differentiated, mapped or traced"

        def run(p: Any, x: Tensor, s: Tensor, key: Tensor, step: Any = step) -> Any:
            return step(af.train.create_state(p, af.optim.sgd(0.1), key=key), (x * s, Y))

        yield Subject(
            f"train.compile_step, {kind}",
            _net(run),
            quick=kind == "donated",
            refused=dict.fromkeys(TRANSFORMS, words),
        )
    yield Subject(
        "train.evaluate",
        _net(lambda p, x, s, key: torch.tensor(af.train.evaluate(_classified(s), p, [(x, Y)])[0]) + 0 * s),
        refused=dict.fromkeys(TRANSFORMS, _NUMBERS),
        left_out={"autograd": "gives Python numbers, which carry no gradient that could be lost"},
    )
    grad_fns: Mapping[str, Callable[[Tensor], Any]] = {
        "parallel.grad_fn": lambda s: af.parallel.grad_fn(LOSS),
        "privacy.dp_grad_fn": lambda s: af.privacy.dp_grad_fn(0.5, 0.3, 3.0, arch=NET),
        "privacy.dp_grad_fn, vmap": lambda s: af.privacy.dp_grad_fn(0.5, 0.3, 3.0, arch=NET, method="vmap"),
    }
    for name, make in grad_fns.items():

        def gradient(p: Any, x: Tensor, s: Tensor, key: Tensor, make: Any = make) -> Any:
            return make(s)(p, (x * s, Y), key)

        yield Subject(name, _net(gradient))


def _classified(scale: Tensor) -> Callable[[Any, Tensor], Tensor]:
    return lambda params, x: af.forward(params, x * scale, arch=NET)


def per_sample() -> Iterator[Subject]:
    """`per_sample`, by both of its ways."""
    calls: Mapping[str, Callable[..., Any]] = {
        "grads": af.per_sample.grads,
        "norms": af.per_sample.norms,
        "layer_norms": af.per_sample.layer_norms,
        "dots": lambda p, batch, **options: af.per_sample.dots(
            p, batch, moved(PARAMS, p["classifier.4.bias"][0], 7), **options
        ),
        "clipped_sum": lambda p, batch, **options: af.per_sample.clipped_sum(p, batch, 1.5, **options),
    }
    methods: tuple[af.per_sample.Method, ...] = ("layerwise", "vmap")
    for method in methods:
        for name, function in calls.items():

            def call(p: Any, x: Tensor, s: Tensor, key: Tensor, f: Any = function, method: Any = method) -> Any:
                return f(p, (x * s, Y), arch=NET, key=key, method=method)

            yield Subject(f"per_sample.{name}, {method}", _net(call), quick=name == "norms" and method == "layerwise")


def ensembles() -> Iterator[Subject]:
    """`ensemble`."""
    members = af.ensemble.init(af.random.split(KEY, 2), NET, dtype=torch.float64)

    def of(call: Callable[[Any, Tensor, Tensor, Tensor], Any]) -> Function:
        return lambda t, key: readout(call(moved(members, t[0], 1), moved(X, t[1], 2), 0.5 + 0.1 * t[2], key))

    def trained(p: Any, x: Tensor, s: Tensor, key: Tensor) -> Any:
        optimizer = af.ensemble.optimizer(lambda rate: af.optim.sgd(rate, 0.9), torch.stack([0.1 * s, 0.2 * s]))
        step = af.train.make_step(None, optimizer, grad_fn=af.ensemble.grad_fn(LOSS))
        return step(af.train.create_state(p, optimizer, key=key), (x, Y))

    e = af.ensemble
    yield Subject(
        "ensemble.init", lambda t, key: readout(e.init(af.random.split(key, 2), NET)) * t.sum(), rounding=2e-7
    )
    yield Subject("ensemble.stack, unstack", of(lambda p, x, s, key: e.unstack(e.stack(e.unstack(p)))))
    yield Subject("ensemble.forward", of(lambda p, x, s, key: e.forward(p, x * s, arch=NET, key=key)))
    yield Subject("ensemble.average", of(lambda p, x, s, key: e.average(p, x * s, arch=NET)))
    yield Subject("ensemble.grad_fn, optimizer", of(trained))


def curvature() -> Iterator[Subject]:
    """`curvature`."""
    c = af.curvature
    direction = moved({name: torch.zeros_like(p) for name, p in PARAMS.items()}, torch.ones(()).double(), 9, 1.0)

    def hvp(p: Any, x: Tensor, s: Tensor, key: Tensor) -> Any:
        return c.hvp(lambda q: LOSS(q, (x, Y), key=key), p, {name: v * s for name, v in direction.items()})

    def ggn(p: Any, x: Tensor, s: Tensor, key: Tensor) -> Any:
        v = {name: v * s for name, v in direction.items()}
        return c.ggn_vp(
            lambda q: af.forward(q, x, arch=NET, key=key), lambda logits: af.losses.cross_entropy(logits, Y), p, v
        )

    def largest(p: Any, x: Tensor, s: Tensor, key: Tensor) -> Any:
        return c.top_eigenvalues(lambda q: LOSS(q, (x * s, Y)), p, 1, key=KEY, iterations=4)

    branches = "branches on values"
    yield Subject("curvature.hvp", _net(hvp))
    yield Subject("curvature.ggn_vp", _net(ggn))
    yield Subject(
        "curvature.fisher_diagonal", _net(lambda p, x, s, key: c.fisher_diagonal(p, (x * s, Y), arch=NET, key=key))
    )
    yield Subject(
        "curvature.gradient_noise_scale",
        _net(lambda p, x, s, key: c.gradient_noise_scale(p, (x * s, Y), arch=NET, key=key)[2:]),
    )
    yield Subject("curvature.empirical_ntk", _net(lambda p, x, s, key: c.empirical_ntk(p, x[:2] * s, x[2:], arch=NET)))
    yield Subject(
        "curvature.top_eigenvalues",
        _net(largest),
        refused=dict.fromkeys(
            ("vmap", "vmap(grad)", "grad(vmap)", "jacfwd", "hessian", "compile(grad)", "make_fx", "export"),
            branches,
        ),
    )


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
        "uniform_segments": lambda key: r.uniform_segments(r.split(key), (3, 2)),
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
        lambda t, key: readout(a.pca_noise(key, moved(floats[0], t[0], 1), moved(_normal(3, 3, 3), t[1], 2))),
    )


def subjects() -> Iterator[Subject]:
    """All of them."""
    for room in (network, optimizers, random):
        yield from room()
    for room in (training, per_sample, ensembles, curvature, augmentation):
        for subject in room():
            refused = "export" in subject.refused
            yield subject if refused else subject._replace(left_out={**_INNER, **subject.left_out})
