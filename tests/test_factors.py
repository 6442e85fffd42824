"""What follows from a layer's factors: views, products of gradients, and what rounding may hide; against loops."""

import functools

import pytest
import torch
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import alexnet_func as af
from alexnet_func import curvature, factors, per_sample, sketches
from alexnet_func.arch import Conv, Linear, LocallyConnected
from alexnet_func.examples import examples
from tests.conftest import ARCHS, OLD, TINY, images
from tests.test_per_sample import ROUTES, norms_of
from tests.test_per_sample import close as closed

SMALL = [TINY, af.arch.ALEXNET_CIFAR]
LARGE = [pytest.param(arch, id=arch.name, marks=pytest.mark.slow) for arch in ARCHS if arch.image_size > 32]


def close(ours, theirs):
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    if all(t.numel() for t in theirs.values()):
        closed(ours, theirs)


def viewed(arch, n, views):
    x, _ = images(arch, n * views, torch.float64)
    return x.unflatten(0, (n, views)) if n else x.view(0, views, *x.shape[1:]), images(arch, n)[1]


def looped(params, batch, key, arch):
    """The oracle: `grad` of the mean over the views, one example at a time and one view at a time."""
    x, y = batch
    each = []
    keys = [None] * len(y) if key is None else af.random.split(key, len(y))
    for image_views, label, own in zip(x, y, keys, strict=True):
        view_keys = [None] * len(image_views) if own is None else af.random.split(own, len(image_views))

        def loss(p, image_views=image_views, label=label, view_keys=view_keys):
            pairs = zip(image_views, view_keys, strict=True)
            return torch.stack([af.loss_fn(p, (v, label), arch=arch, key=k) for v, k in pairs]).mean()

        each.append(grad(loss)(params))
    return {
        name: torch.stack([g[name] for g in each]) if each else p.new_zeros(0, *p.shape) for name, p in params.items()
    }


@pytest.fixture(scope="module")
def params(key):
    return {arch.name: af.init(key, arch, dtype=torch.float64) for arch in (*SMALL, OLD)}


@pytest.mark.parametrize("views", [1, 3, 16])
@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("arch", [TINY, OLD], ids=lambda arch: arch.name)
def test_an_examples_gradient_is_the_mean_over_its_views(params, key, arch, method, n, views):
    params, batch = params[arch.name], viewed(arch, n, views)
    each = looped(params, batch, key, arch)
    norms = norms_of(each) if n else torch.zeros(0).double()
    options = {"arch": arch, "key": key, "method": method, "views": views, "chunk_size": 3}
    close(per_sample.grads(params, batch, **options), each)
    close({"": per_sample.norms(params, batch, **options)}, {"": norms})
    close(per_sample.layer_norms(params, batch, **options), {n: g.flatten(1).norm(dim=1) for n, g in each.items()})
    along = sum((g * params[name]).flatten(1).sum(1) for name, g in each.items())
    close({"": per_sample.dots(params, batch, params, **options)}, {"": along})
    scale = (0.5 / norms).clamp(max=1)
    clipped, found = per_sample.clipped_sum(params, batch, 0.5, **options)
    close({"norms": found, **clipped}, {"norms": norms, **{k: torch.tensordot(scale, g, 1) for k, g in each.items()}})
    if n:
        diagonal = curvature.fisher_diagonal(params, batch, **options)
        close(diagonal, {name: g.square().mean(0) for name, g in each.items()})


@pytest.mark.parametrize("arch", [pytest.param(af.arch.ALEXNET_CIFAR, id="alexnet_cifar"), *LARGE])
def test_views_of_the_named_networks(key, arch):
    params, batch = af.init(key, arch, dtype=torch.float64), viewed(arch, 2, 3)
    each = looped(params, batch, key, arch)
    options = {"arch": arch, "key": key, "views": 3}
    norms = norms_of(each)
    torch.testing.assert_close(per_sample.norms(params, batch, **options), norms, rtol=1e-10, atol=0)
    clipped, _ = per_sample.clipped_sum(params, batch, float(norms.mean()), **options)
    scale = (norms.mean() / norms).clamp(max=1)
    for name, g in each.items():
        torch.testing.assert_close(clipped[name], torch.tensordot(scale, g, 1), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("form", [True, False])
def test_every_form_of_a_convolutions_norm_takes_views(params, key, monkeypatch, form):
    monkeypatch.setattr(factors, "by_products", lambda at, views: form)
    params, batch = params["tiny"], viewed(TINY, 3, 4)
    norms = per_sample.layer_norms(params, batch, arch=TINY, key=key, views=4)
    each = looped(params, batch, key, TINY)
    close(norms, {name: g.flatten(1).norm(dim=1) for name, g in each.items()})


def test_patches_of_all_views_are_one_matrix_where_nothing_is_looped(params, key, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    params, batch = params["tiny"], viewed(TINY, 3, 4)
    close(per_sample.grads(params, batch, arch=TINY, key=key, views=4), looped(params, batch, key, TINY))


@pytest.mark.errors
def test_mistaken_views_are_named(params, key):
    x, y = viewed(TINY, 3, 4)
    for method in ROUTES:
        ask = functools.partial(per_sample.norms, params["tiny"], arch=TINY, method=method)
        with pytest.raises(
            ValueError, match=r"with views=3 x must be \[N, 3, ...\], every example's views, got \[3, 4"
        ):
            ask((x, y), views=3)
        with pytest.raises(ValueError, match="views must be at least 1, got 0"):
            ask((x, y), views=0)


# Products


def gram_of(one, other):
    rows, columns = ({name: g.flatten(1) for name, g in side.items()} for side in (one, other))
    return {name: r @ columns[name].mT for name, r in rows.items()}


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("chunk_size", [None, 2, 3])
@pytest.mark.parametrize("views", [None, 3])
def test_a_gram_matrix_is_that_of_the_gradients(params, key, method, chunk_size, views):
    params = params["tiny"]
    batch, other = viewed(TINY, 5, views or 1), viewed(TINY, 4, views or 1)
    each, those = looped(params, batch, key, TINY), looped(params, other, key, TINY)
    if views is None:  # whose one view has the key of the example's split
        batch, other = (batch[0][:, 0], batch[1]), (other[0][:, 0], other[1])
        each, those = (per_sample.grads(params, b, arch=TINY, key=key, method="vmap") for b in (batch, other))
    options = {"arch": TINY, "key": key, "method": method, "chunk_size": chunk_size, "views": views}
    own, between = gram_of(each, each), gram_of(each, those)
    close(per_sample.layer_grams(params, batch, **options), own)
    close(per_sample.layer_grams(params, batch, other, **options), between)
    close({"": per_sample.gram(params, batch, **options)}, {"": sum(own.values())})
    close({"": per_sample.gram(params, batch, other, **options)}, {"": sum(between.values())})


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("method", ROUTES)
def test_a_gram_matrix_of_none_or_one(params, n, method):
    params, batch, other = params["tiny"], images(TINY, n, torch.float64), images(TINY, 3, torch.float64)
    assert per_sample.gram(params, batch, other, arch=TINY, method=method).shape == (n, 3)
    assert per_sample.gram(params, other, batch, arch=TINY, method=method).shape == (3, n)
    assert per_sample.gram(params, batch, arch=TINY, method=method, chunk_size=2).shape == (n, n)


@pytest.mark.parametrize("arch", [pytest.param(af.arch.ALEXNET_CIFAR, id="alexnet_cifar"), *LARGE])
def test_gram_matrices_of_the_named_networks_form_few_gradients_at_once(key, arch, monkeypatch):
    params, batch = af.init(key, arch, dtype=torch.float64), images(arch, 3, torch.float64)
    each = per_sample.grads(params, batch, arch=arch, key=key, method="vmap")
    expected = sum(gram_of(each, each).values())
    monkeypatch.setattr(factors, "_FORMED", 2 << 20)
    monkeypatch.setattr(factors, "_FORMED_AGAIN", 1 << 20)
    torch.testing.assert_close(per_sample.gram(params, batch, arch=arch, key=key), expected, rtol=1e-10, atol=1e-12)


def test_a_gram_matrix_can_be_differentiated_and_mapped(params):
    params, batch = params["tiny"], images(TINY, 3, torch.float64)

    def total(p, method):
        return per_sample.gram(p, batch, arch=TINY, method=method).sin().sum()

    ours, theirs = (grad(functools.partial(total, method=method))(params) for method in ROUTES)
    for name, g in theirs.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-9, atol=1e-12)
    members = {name: torch.stack([p, 0.5 * p]) for name, p in params.items()}
    both = vmap(lambda p: per_sample.gram(p, batch, arch=TINY))(members)
    torch.testing.assert_close(both[0], per_sample.gram(params, batch, arch=TINY), rtol=1e-10, atol=1e-12)


# Rounding


def cancelling(layer, scale):
    """Constant inputs, and output gradients that sum to zero but for a little: of a gradient most terms cancel."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, Conv):
        at = af.arch.Placed("", layer, (8, 12, 12), (8, 12, 12))
        a = torch.full((4, 8, 12, 12), scale)
        g = torch.randn(4, 8, 12, 12, generator=generator) * scale
        return factors.Factors(at, a, g - g.mean((2, 3), keepdim=True) + 0.01)
    local = isinstance(layer, LocallyConnected)
    inputs, outputs = ((8, 6, 6), (8, 6, 6)) if local else ((32,), (16,))
    a, g = torch.full((16, *inputs), scale), torch.randn(4, 4, *outputs, generator=generator) * scale
    own = (g - g.mean(1, keepdim=True)).flatten(0, 1) + 0.01
    return factors.Factors(af.arch.Placed("", layer, inputs, outputs), a, own, 4)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e5])
@pytest.mark.parametrize(
    "layer",
    [Conv(8, 3, padding=1), Conv(8, 3, padding=1, groups=2), Linear(16), LocallyConnected(8, 3, padding=1)],
    ids=lambda layer: type(layer).__name__ + str(getattr(layer, "groups", "")),
)
def test_what_rounding_hides_of_a_norm_is_bounded(layer, scale):
    f = cancelling(layer, scale)
    exact = factors.weight_grads(f._replace(a=f.a.double(), g=f.g.double())).flatten(1).square().sum(1)
    upper = factors.weight_squares(f) + factors.hidden_weight_squares(f)
    assert (upper.double() >= exact).all()
    exact = factors.bias_squares(f._replace(g=f.g.double()))
    assert ((factors.bias_squares(f) + factors.hidden_bias_squares(f)).double() >= exact).all()


@pytest.mark.parametrize("arch", SMALL, ids=lambda arch: arch.name)
def test_of_ordinary_gradients_rounding_hides_little(params, arch):
    params = {name: p.float() for name, p in params[arch.name].items()}
    (part,) = examples(params, images(arch, 8), arch=arch)
    squares, hidden = part.squares(), part.hidden()
    assert (sum(hidden.values()) <= 1e-2 * sum(squares.values())).all()


# Some parameters only


TRAINED = {
    "the last layer": lambda name: name.startswith("classifier.4"),
    "biases": lambda name: name.endswith("bias"),
    "one convolution": lambda name: name.startswith("features.4"),
    "one weight": lambda name: name == "features.0.weight",
}


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("which", TRAINED)
def test_of_some_parameters_only_gradients_are_those_of_these(params, key, method, which):
    everything, batch = params["tiny"], viewed(TINY, 4, 3)
    trained = {name: p for name, p in everything.items() if TRAINED[which](name)}
    frozen = {name: p for name, p in everything.items() if name not in trained}
    each = {name: g for name, g in looped(everything, batch, key, TINY).items() if name in trained}
    options = {"arch": TINY, "key": key, "method": method, "views": 3, "chunk_size": 3, "frozen": frozen}
    close(per_sample.grads(trained, batch, **options), each)
    norms = norms_of(each)
    clipped, found = per_sample.clipped_sum(trained, batch, 0.1, **options)
    scale = (0.1 / norms).clamp(max=1)
    close({"norms": found, **clipped}, {"norms": norms, **{k: torch.tensordot(scale, g, 1) for k, g in each.items()}})
    along = sum((g * trained[name]).flatten(1).sum(1) for name, g in each.items())
    close({"": per_sample.dots(trained, batch, trained, **options)}, {"": along})
    close(per_sample.layer_grams(trained, batch, **options), gram_of(each, each))
    close(curvature.fisher_diagonal(trained, batch, **options), {name: g.square().mean(0) for name, g in each.items()})
    del options["key"]
    ours = per_sample.project(trained, batch, key, 32, dropout_key=key, **options)
    torch.testing.assert_close(ours, sketches.of_tensors(key, 32, each), rtol=1e-9, atol=1e-10)


def test_layers_below_the_lowest_trained_one_are_not_differentiated(params):
    class Calls(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found += func is torch.ops.aten.convolution_backward.default
            return func(*args, **(kwargs or {}))

    everything, batch = params["tiny"], images(TINY, 3, torch.float64)
    for prefix, expected in (("classifier", 0), ("features.4", 1), ("features.0", 2)):
        trained = {name: p for name, p in everything.items() if name.startswith(prefix)}
        frozen = {name: p for name, p in everything.items() if name not in trained}
        with Calls() as calls:
            per_sample.norms(trained, batch, arch=TINY, frozen=frozen)
        # A convolution's own gradient is one more call an example; a layer above is passed through once.
        below = calls.found - (0 if prefix == "classifier" else 3 * (not factors.by_products(place_of(prefix), 1)))
        assert below == expected - (prefix != "classifier")


def place_of(name):
    return next(at for at in af.arch.place(TINY, (3, 15, 15)) if at.name == name)


def test_private_noise_and_clipping_are_of_the_trained_alone(params, key):
    everything, batch = params["tiny"], images(TINY, 4, torch.float64)
    trained = {name: p for name, p in everything.items() if name.startswith("classifier")}
    frozen = {name: p for name, p in everything.items() if name not in trained}
    grads, _ = af.privacy.dp_grad_fn(0.5, 0.0, 4.0, arch=TINY, frozen=frozen)(trained, batch, key)
    own = per_sample.clipped_sum(trained, batch, 0.5, arch=TINY, frozen=frozen, key=af.random.split(key)[0])[0]
    assert grads.keys() == trained.keys()
    for name, g in own.items():
        torch.testing.assert_close(grads[name], g / 4, rtol=1e-10, atol=1e-13)


@pytest.mark.errors
def test_a_parameter_that_is_trained_and_frozen_is_named(params):
    everything = params["tiny"]
    with pytest.raises(ValueError, match=r"trained or frozen, and these are both: features\.0\.bias"):
        per_sample.norms(everything, images(TINY, 2), arch=TINY, frozen={"features.0.bias": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"params of tiny: missing features\.4\.weight"):
        per_sample.norms(
            {"features.0.weight": everything["features.0.weight"]},
            images(TINY, 2),
            arch=TINY,
            frozen={
                name: p for name, p in everything.items() if name not in ("features.0.weight", "features.4.weight")
            },
        )
