import functools

import pytest
import torch
import torchvision
from torch.func import grad, vmap

import alexnet_func as af
from alexnet_func import factors, per_sample
from alexnet_func.arch import LRN
from parity import criteria
from tests.conftest import ARCHS, TINY, images, tiny_loss

ROUTES = ["layerwise", "vmap"]


def looped(params, batch, key, arch=TINY):
    """The oracle: `grad` of each example's loss in turn."""
    keys = [None] * len(batch[1]) if key is None else af.random.split(key, len(batch[1]))
    loss = grad(functools.partial(af.loss_fn, arch=arch))
    with torch.no_grad():
        each = [loss(params, (x, y), key=k) for x, y, k in zip(*batch, keys, strict=True)]
    return {name: torch.stack([g[name] for g in each]) for name in params}


def norms_of(grads):
    return torch.stack([g.double().flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()


def unscaled(part, squares):
    return torch.ones_like(part.losses), None


def close(ours, theirs):
    """Within 1e-12 relative, tensor by tensor."""
    verdict = criteria.close(ours, theirs)
    assert verdict.passed, verdict.detail


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, TINY, dtype=torch.float64)


@pytest.fixture(scope="module")
def batch():
    return images(TINY, 5, torch.float64)


@pytest.fixture(scope="module")
def loop(params, batch, key):
    return {dropout: looped(params, batch, key if dropout else None) for dropout in (False, True)}


@pytest.fixture(scope="module")
def direction(params, key):
    keys = af.random.split(af.random.fold_in(key, 9), len(params))
    return {n: af.random.normal(k, tuple(p.shape)).double() for k, (n, p) in zip(keys, params.items(), strict=True)}


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 9])
@pytest.mark.parametrize("method", [*ROUTES, "auto"])
def test_every_function_is_a_loop_over_the_examples(params, batch, loop, direction, key, method, chunk_size, dropout):
    expected = loop[dropout]
    options = {
        "arch": TINY,
        "key": key if dropout else None,
        "method": method,
        "chunk_size": chunk_size,
    }
    close(per_sample.grads(params, batch, **options), expected)
    norms = norms_of(expected)
    close({"": per_sample.norms(params, batch, **options)}, {"": norms})
    by_name = {name: g.flatten(1).norm(dim=1) for name, g in expected.items()}
    close(per_sample.layer_norms(params, batch, **options), by_name)
    products = sum((g * direction[name]).flatten(1).sum(1) for name, g in expected.items())
    close({"": per_sample.dots(params, batch, direction, **options)}, {"": products})

    bound = norms.median()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]).double()
    scale = weights * (bound / norms).clamp(max=1)
    clipped = {name: torch.tensordot(scale, g, 1) for name, g in expected.items()}
    for max_norm in (bound, float(bound)):
        ours, found = per_sample.clipped_sum(params, batch, max_norm, weights=weights, **options)
        close({"norms": found, **ours}, {"norms": norms, **clipped})
    losses = [tiny_loss(params, (x[None], y[None])) for x, y in zip(*batch, strict=True)]
    if not dropout:
        close({"": per_sample.scaled_sum(params, batch, unscaled, **options)[2]}, {"": torch.stack(losses)})


@pytest.mark.parametrize("form", ["gram", "instantiated", "patches"])
def test_every_form_of_a_convolutions_norm_is_the_same(params, batch, loop, monkeypatch, form):
    monkeypatch.setattr(factors, "by_products", lambda at, views: form == "gram")
    if form == "patches":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    expected = {name: g.flatten(1).norm(dim=1) for name, g in loop[False].items()}
    close(per_sample.layer_norms(params, batch, arch=TINY), expected)
    close(per_sample.grads(params, batch, arch=TINY), loop[False])
    bound = float(norms_of(loop[False]).median())
    clipped, _ = per_sample.clipped_sum(params, batch, bound, arch=TINY)
    scale = (bound / norms_of(loop[False])).clamp(max=1)
    close(clipped, {name: torch.tensordot(scale, g, 1) for name, g in loop[False].items()})


def test_the_cheaper_form_is_chosen_from_shapes():
    chosen = {
        arch.name: [
            factors.by_products(at, 1)
            for at in af.arch.place(arch, (3, arch.image_size, arch.image_size))
            if isinstance(at.layer, af.arch.Conv)
        ]
        for arch in ARCHS
    }
    assert chosen["alexnet"] == chosen["alexnet_2012"] == chosen["caffenet"] == [False, False, True, True, True]
    assert chosen["alexnet_cifar"] == [False, True, True, True, True]


@pytest.mark.parametrize(
    "arch",
    [pytest.param(arch, id=arch.name, marks=[pytest.mark.slow] if arch.image_size > 32 else []) for arch in ARCHS],
)
def test_routes_are_within_the_loops_error_on_the_named_networks_with_dropout(arch, key):
    """The error against float64 of at most twice the loop's own; norms within 1e-5."""
    params = af.init(key, arch)
    wide = {name: p.double() for name, p in params.items()}
    batch = images(arch, 2)
    exact = looped(wide, (batch[0].double(), batch[1]), key, arch)
    reference = looped(params, batch, key, arch)
    norms = norms_of(exact)
    for method in ROUTES:
        options = {"arch": arch, "key": key, "method": method}
        verdict = criteria.budget(per_sample.grads(params, batch, **options), reference, exact)
        assert verdict.passed, f"{method}: {verdict.detail}"
        torch.testing.assert_close(per_sample.norms(params, batch, **options).double(), norms, rtol=1e-5, atol=0)
        clipped, _ = per_sample.clipped_sum(params, batch, float(norms.mean()), **options)
        scale = (norms.mean() / norms).clamp(max=1)
        sums = [{n: torch.tensordot(scale.to(g.dtype), g, 1) for n, g in gs.items()} for gs in (reference, exact)]
        verdict = criteria.budget(clipped, *sums)
        assert verdict.passed, f"{method}: {verdict.detail}"


@pytest.mark.parametrize("method", ROUTES)
def test_without_clipping_the_sum_is_n_times_the_batch_gradient(params, batch, key, method):
    clipped, _ = per_sample.clipped_sum(params, batch, torch.inf, arch=TINY, key=key, method=method)
    whole = grad(tiny_loss)(params, batch, key=key)
    close(clipped, {name: len(batch[1]) * g for name, g in whole.items()})


@pytest.mark.parametrize("method", ROUTES)
def test_keys_a_row_are_the_examples_own(params, batch, loop, key, method):
    keys = af.random.split(key, 5)
    ours = per_sample.grads(params, (batch[0][3:], batch[1][3:]), arch=TINY, key=keys[3:], method=method)
    close(ours, {name: g[3:] for name, g in loop[True].items()})


# The table of edge cases in the room's docstring, a test a row.


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_no_examples(params, direction, key, method, chunk_size):
    empty = images(TINY, 0, torch.float64)
    options = {"arch": TINY, "key": key, "method": method, "chunk_size": chunk_size}
    assert {n: g.shape for n, g in per_sample.grads(params, empty, **options).items()} == {
        n: (0, *p.shape) for n, p in params.items()
    }
    assert per_sample.norms(params, empty, **options).shape == (0,)
    assert per_sample.dots(params, empty, direction, **options).shape == (0,)
    assert {len(norms) for norms in per_sample.layer_norms(params, empty, **options).values()} == {0}
    clipped, norms = per_sample.clipped_sum(params, empty, 1.0, **options)
    assert norms.shape == (0,)
    assert all(torch.equal(clipped[name], torch.zeros_like(p)) for name, p in params.items())


@pytest.mark.parametrize("method", ROUTES)
def test_one_example(params, batch, loop, method):
    one = (batch[0][:1], batch[1][:1])
    close(per_sample.grads(params, one, arch=TINY, method=method), {n: g[:1] for n, g in loop[False].items()})


@pytest.mark.parametrize("method", ROUTES)
def test_a_zero_gradient_has_norm_zero_and_scale_one(params, batch, method):
    # Logits that are certain of the label: its probability rounds to one, the others' to zero.
    certain = {name: torch.zeros_like(p) for name, p in params.items()}
    certain["classifier.4.bias"][2] = 1e4
    sure = (batch[0], torch.full_like(batch[1], 2))
    for max_norm in (0.0, 1.0, torch.inf):
        clipped, norms = per_sample.clipped_sum(certain, sure, max_norm, arch=TINY, method=method)
        assert torch.equal(norms, torch.zeros(5).double())
        assert all(not g.any() for g in clipped.values())


@pytest.mark.parametrize("method", ROUTES)
def test_a_bound_of_zero_gives_zeros(params, batch, method):
    clipped, norms = per_sample.clipped_sum(params, batch, 0.0, arch=TINY, method=method)
    assert all(not g.any() for g in clipped.values())
    assert norms.min() > 0


@pytest.mark.parametrize("method", ROUTES)
@pytest.mark.parametrize("max_norm", [1.0, torch.inf])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_norms_name_a_non_finite_example_and_the_clipped_sum_is_nan(params, batch, method, max_norm, bad):
    x = batch[0].clone()
    x[3, 0, 4, 4] = bad
    clipped, norms = per_sample.clipped_sum(params, (x, batch[1]), max_norm, arch=TINY, method=method)
    assert norms.isfinite().tolist() == [True, True, True, False, True]
    assert all(g.isnan().any() for g in clipped.values())


@pytest.mark.parametrize("method", ROUTES)
def test_a_norm_that_overflows_does_not_vanish_from_the_clipped_sum(params, batch, method):
    """Finite gradients whose squares are not: scaled by 1 / inf they would be silently left out."""
    arch = TINY.replace(features=tuple(layer for layer in TINY.features if not isinstance(layer, LRN)))
    single = {name.replace("features.4", "features.3"): p.float() for name, p in params.items()}
    x = batch[0].float().clone()
    x[1] *= 1e25
    assert all(g.isfinite().all() for g in per_sample.grads(single, (x, batch[1]), arch=arch, method=method).values())
    clipped, norms = per_sample.clipped_sum(single, (x, batch[1]), 1.0, arch=arch, method=method)
    assert norms.isfinite().tolist() == [True, False, True, True, True]
    assert all(g.isnan().any() for g in clipped.values())


@pytest.mark.errors
@pytest.mark.parametrize("method", ROUTES)
def test_mistakes_are_named(params, batch, direction, key, method):
    x, y = batch
    options = {"arch": TINY, "method": method}
    with pytest.raises(ValueError, match=r"one leading axis of N examples, got shapes \[3, 15, 15\], \[\]"):
        per_sample.norms(params, (x[0], y[0]), **options)
    with pytest.raises(ValueError, match=r"one example, as vmap over examples sees it, is a batch of one: x\[None\]"):
        vmap(lambda image, label: per_sample.norms(params, (image, label), **options))(x, y)
    with pytest.raises(ValueError, match=r"one leading axis of N examples, got shapes \[4, 3, 15, 15\], \[5\]"):
        per_sample.norms(params, (x[:4], y), **options)
    with pytest.raises(ValueError, match="max_norm must not be negative or NaN, got -1"):
        per_sample.clipped_sum(params, batch, -1.0, **options)
    with pytest.raises(ValueError, match="max_norm must not be negative or NaN, got nan"):
        per_sample.clipped_sum(params, batch, float("nan"), **options)
    with pytest.raises(TypeError, match="max_norm must be a number or a scalar tensor, got str"):
        per_sample.clipped_sum(params, batch, "1", **options)
    with pytest.raises(ValueError, match=r"weights must have shape \[5\], one an example, got \[4\]"):
        per_sample.clipped_sum(params, batch, 1.0, weights=torch.ones(4), **options)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        per_sample.norms(params, batch, chunk_size=0, **options)
    with pytest.raises(ValueError, match=r"direction: missing features.0.weight"):
        per_sample.dots(params, batch, {n: d for n, d in direction.items() if n != "features.0.weight"}, **options)
    with pytest.raises(ValueError, match=r"params of tiny: missing features.0.bias"):
        per_sample.norms({n: p for n, p in params.items() if n != "features.0.bias"}, batch, **options)
    with pytest.raises(ValueError, match=r"labels must lie in 0..4, got 0..5"):
        per_sample.norms(params, (x, torch.arange(5) + torch.tensor([0, 0, 0, 0, 1])), **options)
    with pytest.raises(ValueError, match=r"key must have shape \[2\] or \[5, 2\], got \[3, 2\]"):
        per_sample.norms(params, batch, key=af.random.split(key, 3), **options)


@pytest.mark.errors
def test_mistaken_methods_are_named(params, batch):
    with pytest.raises(ValueError, match=r'method must be "auto", "layerwise" or "vmap", got \'hooks\''):
        per_sample.norms(params, batch, arch=TINY, method="hooks")
    with pytest.raises(ValueError, match='a loss_fn of your own needs "vmap" or "auto"'):
        per_sample.norms(params, batch, loss_fn=tiny_loss, method="layerwise")


# Any pure loss


def test_a_lifted_modules_gradients_are_autograds():
    module = torchvision.models.resnet18(num_classes=7).eval().double()
    forward, params, buffers = af.interop.from_module(module)
    x, y = torch.randn(3, 3, 64, 64).double(), torch.tensor([0, 3, 6])

    def loss(params, example):
        image, label = example
        return af.losses.cross_entropy(forward(params, buffers, image[None]), label[None])

    expected = []
    for image, label in zip(x, y, strict=True):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(image[None]), label[None]).backward()
        expected.append({name: p.grad.clone() for name, p in module.named_parameters()})
    stacked = {name: torch.stack([g[name] for g in expected]) for name in params}
    ours = per_sample.grads(params, (x, y), loss_fn=loss)
    for name, g in stacked.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-9, atol=1e-12)
    norms = per_sample.norms(params, (x, y), loss_fn=loss, chunk_size=2)
    torch.testing.assert_close(norms, norms_of(stacked), rtol=1e-9, atol=0)


def test_a_batch_may_be_any_tree_and_a_loss_is_given_its_examples_key(key):
    params = {"w": torch.randn(4).double()}
    batch = {"u": torch.randn(6, 4).double(), "scale": torch.rand(6).double()}

    def loss(params, example, *, key):
        return (params["w"] * example["u"]).sum() * example["scale"] * af.random.uniform(key)

    keys = af.random.split(key, 6)
    noise = torch.stack([af.random.uniform(k) for k in keys]).double()
    expected = batch["u"] * (batch["scale"] * noise)[:, None]
    close(per_sample.grads(params, batch, loss_fn=loss, key=key, chunk_size=4), {"w": expected})


# Transforms


def test_they_are_differentiable(params, batch, key):
    def total(p, method):
        norms = per_sample.norms(p, batch, arch=TINY, key=key, method=method)
        clipped, _ = per_sample.clipped_sum(p, batch, 1.0, arch=TINY, key=key, method=method)
        return norms.sum() + sum(g.square().sum() for g in clipped.values())

    by_func = grad(functools.partial(total, method="layerwise"))(params)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    total(leaves, "layerwise").backward()
    by_vmap = grad(functools.partial(total, method="vmap"))(params)
    for name in params:
        torch.testing.assert_close(by_func[name], by_vmap[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(leaves[name].grad, by_vmap[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ROUTES)
def test_they_map_over_many_models(params, batch, key, method):
    members = [params, {name: 0.5 * p for name, p in params.items()}]
    stacked = {name: torch.stack([m[name] for m in members]) for name in params}

    def both(p):
        norms = per_sample.norms(p, batch, arch=TINY, key=key, method=method)
        return norms, per_sample.clipped_sum(p, batch, 1.0, arch=TINY, key=key, method=method)[0]

    norms, clipped = vmap(both)(stacked)
    for i, member in enumerate(members):
        expected_norms, expected = both(member)
        close({"": norms[i], **{n: g[i] for n, g in clipped.items()}}, {"": expected_norms, **expected})


@pytest.mark.compiled
def test_they_compile_whole(params, batch, loop, key):
    def both(p, x, y, key):
        clipped, norms = per_sample.clipped_sum(p, (x, y), 1.0, arch=TINY, key=key)
        return norms, clipped

    norms, clipped = torch.compile(both, fullgraph=True, options=af.train.compile_options())(params, *batch, key)
    expected_norms, expected = both(params, *batch, key)
    close({"": norms, **clipped}, {"": expected_norms, **expected})
    close({"": norms}, {"": norms_of(loop[True])})


@pytest.mark.parametrize("method", ROUTES)
def test_bfloat16_parameters_give_float32_results(params, batch, key, method):
    half = {name: p.bfloat16() for name, p in params.items()}
    exact = looped({name: p.double() for name, p in half.items()}, batch, key)
    ours = per_sample.grads(half, batch, arch=TINY, key=key, method=method)
    reference = looped(half, batch, key)
    assert {g.dtype for g in ours.values()} == {torch.float32}
    verdict = criteria.budget(ours, reference, exact)
    assert verdict.passed, verdict.detail
    norms = per_sample.norms(half, batch, arch=TINY, key=key, method=method)
    torch.testing.assert_close(norms.double(), norms_of(exact), rtol=0.03, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ROUTES)
def test_on_cuda_they_are_what_they_are_on_a_cpu(params, batch, loop, key, method):
    on_cuda = {name: p.cuda() for name, p in params.items()}
    ours = per_sample.grads(on_cuda, (batch[0].cuda(), batch[1].cuda()), arch=TINY, key=key.cuda(), method=method)
    close({name: g.cpu() for name, g in ours.items()}, loop[True])


# Other libraries' (extra `peers`)


def plain_module(arch, params):
    """As `interop.to_module`, but a plain sequence in training mode without in-place layers, as these libraries ask."""
    module = af.interop.to_module(params, arch)
    layers = [*module.features, *module.avgpool, torch.nn.Flatten(), *module.classifier]
    for layer in layers:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
    return torch.nn.Sequential(*(layer for layer in layers if not isinstance(layer, torch.nn.Dropout))).train()


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("mode", ["hooks", "ew", "functorch"])
def test_opacus_agrees(key, mode):
    opacus = pytest.importorskip("opacus", reason="opacus is not installed: pip install -e '.[peers]'")
    arch = af.arch.ALEXNET_CIFAR
    params = af.init(key, arch, dtype=torch.float64)
    x, y = images(arch, 3, torch.float64)
    wrap = opacus.grad_sample.wrap_model
    module = wrap(plain_module(arch, params), grad_sample_mode=mode, loss_reduction="sum")
    torch.nn.functional.cross_entropy(module(x), y, reduction="sum").backward()
    theirs = {name: p.grad_sample for name, p in zip(params, module.parameters(), strict=True)}
    close(per_sample.grads(params, (x, y), arch=arch), theirs)
    close({"": per_sample.norms(params, (x, y), arch=arch)}, {"": norms_of(theirs)})


@pytest.mark.filterwarnings("ignore")  # theirs
def test_backpack_agrees(key):
    backpack = pytest.importorskip("backpack", reason="backpack is not installed: pip install -e '.[peers]'")
    from backpack import extensions

    arch = af.arch.ALEXNET_CIFAR
    params = af.init(key, arch, dtype=torch.float64)
    x, y = images(arch, 3, torch.float64)
    module = backpack.extend(plain_module(arch, params))
    loss = backpack.extend(torch.nn.CrossEntropyLoss(reduction="sum"))(module(x), y)
    with backpack.backpack(extensions.BatchGrad()):
        loss.backward()
    theirs = {name: p.grad_batch for name, p in zip(params, module.parameters(), strict=True)}
    close(per_sample.grads(params, (x, y), arch=arch), theirs)


def test_a_parameter_without_axes_has_norms_like_any_other():
    """They ended in an IndexError: a temperature, a scale."""
    params = {"scale": torch.tensor(1.5).double(), "w": torch.randn(3).double()}
    x, y = torch.randn(4, 3).double(), torch.randn(4).double()

    def loss(p, example, key=None):
        return (p["scale"] * (p["w"] @ example[0]) - example[1]).square()

    each = [torch.func.grad(loss)(params, example) for example in zip(x, y, strict=True)]
    squares = {name: torch.stack([g[name].square().sum() for g in each]) for name in params}
    norms = sum(squares.values()).sqrt()
    ps = af.per_sample
    torch.testing.assert_close(ps.norms(params, (x, y), loss_fn=loss), norms)
    for name, found in ps.layer_norms(params, (x, y), loss_fn=loss).items():
        torch.testing.assert_close(found, squares[name].sqrt())
    along = torch.stack([sum((g[name] * params[name]).sum() for name in params) for g in each])
    torch.testing.assert_close(ps.dots(params, (x, y), params, loss_fn=loss), along)
    total, _ = ps.clipped_sum(params, (x, y), 1.0, loss_fn=loss)
    for name in params:
        expected = sum(g[name] * min(1, 1 / n) for g, n in zip(each, norms, strict=True))
        torch.testing.assert_close(total[name], expected)
    empty = ps.norms(params, (x[:0], y[:0]), loss_fn=loss)
    assert empty.shape == (0,)
    scale = af.curvature.gradient_noise_scale(params, (x, y), loss_fn=loss).scale
    assert scale.isfinite()
    private = af.privacy.dp_grad_fn(1.0, 0.0, 4.0, loss_fn=loss)
    for name, g in private(params, (x, y), af.random.key(0))[0].items():
        torch.testing.assert_close(g, total[name] / 4)


@pytest.mark.errors
@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_bound_is_looked_at_in_a_tensor_too(wrong):
    params, batch = af.init(af.random.key(0), TINY), images(TINY, 2)
    for bound in (wrong, torch.tensor(wrong), torch.tensor(wrong).double()):
        with pytest.raises(ValueError, match=f"max_norm must not be negative or NaN, got {wrong}"):
            af.per_sample.clipped_sum(params, batch, bound, arch=TINY)
        with pytest.raises(ValueError, match=f"max_norm must be positive and finite, got {wrong}"):
            af.privacy.dp_grad_fn(bound, 1.0, 2.0)
    with pytest.raises(TypeError, match="max_norm must be a number or a scalar tensor, got a tensor"):
        af.per_sample.clipped_sum(params, batch, torch.ones(2), arch=TINY)


def test_derivatives_of_norms_and_of_unclipped_sums_are_finite():
    params, (x, y) = af.init(af.random.key(0), TINY, dtype=torch.float64), images(TINY, 2, torch.float64)
    dead = {name: torch.zeros_like(p) if name == "features.4.weight" else p for name, p in params.items()}

    def total(p, bound):
        clipped, norms = af.per_sample.clipped_sum(p, (x, y), bound, arch=TINY)
        by_layer = af.per_sample.layer_norms(p, (x, y), arch=TINY)
        return sum(t.sum() for t in (*clipped.values(), norms, *by_layer.values()))

    for bound in (float("inf"), 0.5):
        grads = torch.func.grad(total)(dead, bound)
        assert all(g.isfinite().all() for g in grads.values())
