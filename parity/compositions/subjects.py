"""The functions that transforms must go through: the network's, training, and what differentiates by itself."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import alexnet_func as af
from alexnet_func.arch import LRN
from parity.compositions.primitives import augmentation, optimizers, random
from parity.compositions.setting import KEY, LOSS, NET, PARAMS, N, Subject, X, Y, moved, net, normal
from parity.compositions.transforms import TRANSFORMS, Function, readout

# torch.export has two tracers, and neither takes all of torch.func; torch.compile, whose column stands beside, does.
_INNER = {"export": "torch.export takes no grad, vjp or vmap inside a function"}
_COUNTED = {"autograd": "a count has no graph, which torch's own error says"}


def network() -> Iterator[Subject]:
    """`model`, `losses`, `ops`, `routes`, `interop`, and of `train` what differentiates nothing."""
    lifted, _, buffers = af.interop.from_module(af.interop.to_module(PARAMS, NET))
    layer = LRN(3, 0.1, 0.75, 1.0, "mean")
    yield Subject("init", lambda t, key: readout(af.init(key, NET)) * t.sum(), rounding=2e-7)
    yield Subject("forward", net(lambda p, x, s, key: af.forward(p, x * s, arch=NET, key=key)), quick=True)
    yield Subject("loss_fn", net(lambda p, x, s, key: LOSS(p, (x * s, Y), key=key)), quick=True)
    yield Subject("model.activations", net(lambda p, x, s, key: af.model.activations(p, x * s, arch=NET)))
    yield Subject(
        "routes.SPACE_TO_DEPTH",
        net(lambda p, x, s, key: af.forward(p, x * s, arch=NET, key=key, table=af.routes.SPACE_TO_DEPTH)),
    )
    yield Subject("interop.from_module", net(lambda p, x, s, key: lifted(p, buffers, x * s)))
    yield Subject(
        "losses.cross_entropy",
        lambda t, key: readout(af.losses.cross_entropy(moved(normal(4, N, 4), t[0], 5, 1.0), Y)),
    )
    yield Subject(
        "losses.accuracy",
        lambda t, key: readout(af.losses.accuracy(moved(normal(4, N, 4), t[0], 5), Y)),
        left_out=_COUNTED,
    )
    yield Subject(
        "losses.confusion_matrix",
        lambda t, key: readout(af.losses.confusion_matrix(Y, Y.flip(0), 4) + 0 * t.sum()),
        left_out=_COUNTED,
    )
    yield Subject(
        "train.create_state",
        net(lambda p, x, s, key: af.train.create_state(p, af.optim.averaged(af.optim.sgd(0.1), 0.9), key=key)),
    )
    yield Subject("train.totals", net(lambda p, x, s, key: af.train.totals(_classified(s), p, [(x, Y)])))
    yield Subject("ops.local_response_norm", net(lambda p, x, s, key: af.ops.local_response_norm(x * s, layer)))
    within = af.arch.WithinChannelLRN(3, 0.1, 0.75, 2.0, "mean")
    yield Subject(
        "ops.within_channel_response_norm",
        net(lambda p, x, s, key: af.ops.within_channel_response_norm(x * s, within)),
    )
    yield Subject(
        "ops.classic_dropout",
        net(lambda p, x, s, key: af.ops.classic_dropout(x * s, af.random.uniform(key, X.shape), 0.4)),
    )
    yield Subject("ops.dropout", net(lambda p, x, s, key: af.ops.dropout(x * s, af.random.uniform(key, X.shape), 0.4)))


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
    yield Subject("train.make_step", net(_trained), quick=True)
    yield Subject(
        "train.make_step, bf16",
        net(functools.partial(_trained, loss_fn=af.train.with_precision(LOSS, "bf16"))),
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
            net(run),
            quick=kind == "donated",
            refused=dict.fromkeys(TRANSFORMS, words),
        )
    yield Subject(
        "train.evaluate",
        net(lambda p, x, s, key: torch.tensor(af.train.evaluate(_classified(s), p, [(x, Y)])[0]) + 0 * s),
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

        yield Subject(name, net(gradient))
    yield Subject("privacy.adaptive", net(_adapted))


def _adapted(params: Any, x: Tensor, s: Tensor, key: Tensor) -> Any:
    optimizer, step = af.privacy.adaptive(af.optim.sgd(0.1), 0.3, 3.0, arch=NET, max_norm=0.5, count_deviation=0.5)
    state, metrics = step(af.train.create_state(params, optimizer, key=key), (x * s, Y))
    return state.params, state.opt_state, metrics


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
        "clipped_sum, zero": lambda p, batch, **options: af.per_sample.clipped_sum(
            p, batch, 1.5, nonfinite="zero", **options
        ),
        "norms of views": lambda p, batch, **options: af.per_sample.norms(
            p, (torch.stack([batch[0], batch[0].flip(-1)], 1), batch[1]), views=2, **options
        ),
        "gram": af.per_sample.gram,
        "layer_grams": af.per_sample.layer_grams,
        "project": lambda p, batch, key, **options: af.per_sample.project(
            p, batch, KEY, 24, dropout_key=key, **options
        ),
        "norms of some": lambda p, batch, **options: af.per_sample.norms(
            {name: q for name, q in p.items() if "classifier" in name},
            batch,
            frozen={name: q for name, q in p.items() if "classifier" not in name},
            **options,
        ),
    }
    methods: tuple[af.per_sample.Method, ...] = ("layerwise", "vmap")
    for method in methods:
        for name, function in calls.items():

            def call(p: Any, x: Tensor, s: Tensor, key: Tensor, f: Any = function, method: Any = method) -> Any:
                return f(p, (x * s, Y), arch=NET, key=key, method=method)

            yield Subject(f"per_sample.{name}, {method}", net(call), quick=name == "norms" and method == "layerwise")


def influences() -> Iterator[Subject]:
    """`influence`."""
    i = af.influence

    def scores(of: Callable[..., Tensor]) -> Function:
        def call(p: Any, x: Tensor, s: Tensor, key: Tensor) -> Tensor:
            train, asked = (af.per_sample.project(p, (x * s, labels), KEY, 8, arch=NET) for labels in (Y, Y.flip(0)))
            return of(train, asked, 0.1)

        return net(call)

    yield Subject("influence.influence", scores(i.influence))
    yield Subject("influence.relative_influence", scores(i.relative_influence))
    yield Subject(
        "influence.cosines",
        net(lambda p, x, s, key: i.cosines(af.per_sample.gram(p, (x * s, Y), arch=NET)).tril(-1)),
    )
    yield Subject("influence.coherence", net(lambda p, x, s, key: i.coherence(p, (x * s, Y), arch=NET, key=key)))
    yield Subject(
        "influence.gradient_diversity",
        net(lambda p, x, s, key: i.gradient_diversity(p, (x * s, Y), arch=NET, key=key)),
    )
    yield Subject(
        "influence.tracin", net(lambda p, x, s, key: i.tracin([(p, 0.1), (PARAMS, 0.2)], (x * s, Y), (x, Y), arch=NET))
    )


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
    yield Subject("curvature.hvp", net(hvp))
    yield Subject("curvature.ggn_vp", net(ggn))
    yield Subject(
        "curvature.fisher_diagonal", net(lambda p, x, s, key: c.fisher_diagonal(p, (x * s, Y), arch=NET, key=key))
    )
    yield Subject(
        "curvature.gradient_noise_scale",
        net(lambda p, x, s, key: c.gradient_noise_scale(p, (x * s, Y), arch=NET, key=key)[2:]),
    )
    yield Subject("curvature.empirical_ntk", net(lambda p, x, s, key: c.empirical_ntk(p, x[:2] * s, x[2:], arch=NET)))
    yield Subject(
        "curvature.top_eigenvalues",
        net(largest),
        refused=dict.fromkeys(
            ("vmap", "vmap(grad)", "grad(vmap)", "jacfwd", "hessian", "compile(grad)", "make_fx", "export"),
            branches,
        ),
    )


def subjects() -> Iterator[Subject]:
    """All of them."""
    for room in (network, optimizers, random):
        yield from room()
    for room in (training, per_sample, influences, ensembles, curvature, augmentation):
        for subject in room():
            refused = "export" in subject.refused
            yield subject if refused else subject._replace(left_out={**_INNER, **subject.left_out})
