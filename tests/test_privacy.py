import math

import pytest
import torch

import alexnet_func as af
from alexnet_func import optim, per_sample, privacy, train
from alexnet_func.arch import LRN, Arch, Conv, Linear, ReLU
from tests.conftest import ARCHS, TINY, images, tiny_loss


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, TINY, dtype=torch.float64)


@pytest.fixture(scope="module")
def batch():
    return images(TINY, 6, torch.float64)


def noise_of(params, key):
    """What the docstring promises: standard normals, tensor i from `fold_in(second half of the key, i)`."""
    noise_key = af.random.split(key)[1]
    return {
        name: af.random.normal(af.random.fold_in(noise_key, i), tuple(p.shape)).double()
        for i, (name, p) in enumerate(params.items())
    }


@pytest.mark.parametrize("options", [{}, {"method": "vmap"}, {"chunk_size": 4}])
def test_gradient_is_the_clipped_sum_and_noise_by_definition(params, batch, key, options):
    weights = torch.tensor([1.0, 1, 0, 1, 1, 1])
    grad_fn = privacy.dp_grad_fn(0.5, 1.3, 4.0, arch=TINY, **options)
    grads, metrics = grad_fn(params, (*batch, weights), key)
    keys = af.random.split(af.random.split(key)[0], 6)
    each = [torch.func.grad(tiny_loss)(params, (x, y), key=k) for x, y, k in zip(*batch, keys, strict=True)]
    norms = torch.stack([torch.stack([g.square().sum() for g in one.values()]).sum().sqrt() for one in each])
    noise = noise_of(params, key)
    for name in params:
        clipped = sum(w * one[name] * min(1, 0.5 / n) for w, one, n in zip(weights, each, norms, strict=True))
        torch.testing.assert_close(grads[name], (clipped + 1.3 * 0.5 * noise[name]) / 4, rtol=1e-10, atol=1e-13)
    losses = torch.stack([tiny_loss(params, (x, y), key=k) for x, y, k in zip(*batch, keys, strict=True)])
    torch.testing.assert_close(metrics["loss"], (losses * weights).sum() / 5)
    assert metrics["count"] == 5
    torch.testing.assert_close(metrics["clipped"].double(), ((norms > 0.5) * weights).double().sum() / 5)


def test_without_bound_and_noise_it_is_the_plain_step(params, batch, key):
    grad_fn = privacy.dp_grad_fn(1e9, 0.0, 6.0, arch=TINY)
    grads, metrics = grad_fn(params, batch, key)
    loss_key = af.random.split(key)[0]
    plain = torch.func.grad(tiny_loss)(params, batch, key=loss_key)
    for name, g in plain.items():
        torch.testing.assert_close(grads[name], g, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(metrics["loss"], tiny_loss(params, batch, key=loss_key))


def test_padding_changes_nothing(params, batch, key):
    x, y = batch
    grad_fn = privacy.dp_grad_fn(0.5, 1.0, 4.0, arch=TINY)
    padded = (torch.cat([x, x[:3]]), torch.cat([y, y[:3]]), torch.tensor([1.0] * 6 + [0.0] * 3))
    (ours, metrics), (expected, others) = grad_fn(params, padded, key), grad_fn(params, batch, key)
    for name, g in expected.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(metrics, others)
    nobody = grad_fn(params, (x, y, torch.zeros(6)), key)
    for name, noise in noise_of(params, key).items():
        torch.testing.assert_close(nobody[0][name], 0.5 * noise / 4, rtol=1e-10, atol=1e-13)
    assert nobody[1]["loss"] == 0


@pytest.mark.slow  # as tests/app/test_private.py shows in a fourth of the time
@pytest.mark.compiled
def test_a_private_step_compiles_once_for_every_sample(params, key):
    x, y = images(TINY, 20, torch.float64)
    optimizer = optim.sgd(0.1, momentum=0.9)
    step = train.make_step(None, optimizer, grad_fn=privacy.dp_grad_fn(0.5, 1.0, 6.0, arch=TINY))
    eager, donated = (train.create_state(params, optimizer, key=key) for _ in range(2))
    compiled = train.compile_step(step, donate=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for k in af.random.split(key, 3):
            index, weights = privacy.poisson_sample(k, 20, 0.3, 12)
            sample = (x[index], y[index], weights)
            (eager, _), (donated, _) = step(eager, sample), compiled(donated, sample)
    for name, p in eager.params.items():
        # The noise is float32, and its last bit depends on how the inverse error function is computed.
        torch.testing.assert_close(donated.params[name], p, rtol=1e-5, atol=1e-6)


# The guarantee: one example, whatever it holds, changes the sum of a step by at most max_norm.


def adversary(x, kind):
    """One image to be put in the place of another."""
    made = {
        "huge": lambda: x * 1e18,
        "large": lambda: x * 1e6,
        "constant": lambda: torch.full_like(x, 1e5),
        "nan": lambda: torch.full_like(x, torch.nan),
        "one inf": lambda: torch.cat([x.flatten()[:-1], x.new_tensor([torch.inf])]).view_as(x),
        "tiny": lambda: x * 1e-30,
    }
    return made[kind]()


KINDS = ("huge", "large", "constant", "nan", "one inf", "tiny")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"method": "vmap"}, {"chunk_size": 2}, {"views": 2}], ids=str)
def test_one_example_changes_the_sum_by_at_most_the_bound(key, options, dtype, kind):
    held_by_every_layer(af.init(key, TINY, dtype=dtype), TINY, options, kind, key)


@pytest.mark.parametrize("kind", KINDS)
def test_one_example_changes_the_sum_of_alexnet_cifar_by_at_most_the_bound(key, kind):
    arch = af.arch.ALEXNET_CIFAR
    held_by_every_layer(af.init(key, arch), arch, {}, kind, key)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"method": "vmap"}, {"views": 2}], ids=str)
def test_so_it_does_in_every_dtype_by_every_route(key, options, dtype, kind):
    arch = af.arch.ALEXNET_CIFAR
    held_by_every_layer(af.init(key, arch, dtype=dtype), arch, options, kind, key)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch.image_size > 32], ids=lambda arch: arch.name)
def test_one_example_changes_the_sum_of_large_networks_by_at_most_the_bound(key, arch, kind):
    held_by_every_layer(af.init(key, arch), arch, {}, kind, key)


def size(tensors):
    return torch.stack([t.double().square().sum() for t in tensors.values()]).sum().sqrt()


def held_by_every_layer(params, arch, options, kind, key):
    bound = 0.7
    x, y = images(arch, 3, next(iter(params.values())).dtype)
    other = torch.cat([adversary(x[:1], kind), x[1:]])
    if "views" in options:
        x, other = (torch.stack([t, t.flip(-1)], 1) for t in (x, other))
    grad_fn = privacy.dp_grad_fn(bound, 0.0, 1.0, arch=arch, **options)
    without = grad_fn(params, (x, y, torch.tensor([0.0, 1, 1])), key)[0]
    for given in (x, other):
        with_it, metrics = grad_fn(params, (given, y, torch.ones(3)), key)
        change = size({name: g.double() - without[name].double() for name, g in with_it.items()})
        # The sum with its noise is rounded to the parameters' dtype, which tells no more of anyone.
        rounded = torch.finfo(x.dtype).eps * (size(with_it) + size(without)) if x.dtype == torch.bfloat16 else 0
        assert change <= bound * (1 + 1e-5) + rounded
        assert metrics["loss"].isfinite()
    if kind in ("nan", "one inf"):
        assert metrics["nonfinite"] == 1
        assert change == 0


def test_a_layer_whose_squares_vanish_holds_its_bound_too(key):
    """Large inputs and output gradients whose squares are below the smallest number: LRN makes such from pixels."""
    features = (Conv(512, 3, padding=1), LRN(5, 1e-4, 0.75, 1.0, "mean"), ReLU())
    arch = Arch("s", image_size=4, num_classes=3, features=features, classifier=(Linear(None),))
    params = af.init(key, arch)
    x = 1e17 * torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    bounds = dict.fromkeys(params, 1e-6)
    for bound in (bounds, 1e-6):
        grads, _ = privacy.dp_grad_fn(bound, 0.0, 1.0, arch=arch)(params, (x, torch.tensor([1])), key)
        assert all(g.double().norm() <= 1e-6 * (1 + 1e-5) for g in grads.values())


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_by_layer_holds_for_adversaries(params, batch, key, kind):
    x, y = batch
    other = torch.cat([adversary(x[:1], kind), x[1:]])
    bounds = {name: 10.0 ** -(i + 1) for i, name in enumerate(params)}
    grad_fn = privacy.dp_grad_fn(bounds, 0.0, 1.0, arch=TINY)
    alone = (other, y, torch.tensor([1.0, 0, 0, 0, 0, 0]))
    for name, g in grad_fn(params, alone, key)[0].items():
        assert g.norm() <= bounds[name] * (1 + 1e-5)


@pytest.mark.parametrize("make", [optim.sgd, optim.adamw])
def test_bfloat16_parameters_stay_so(key, batch, make):
    params = af.init(key, TINY, dtype=torch.bfloat16)
    optimizer = make(0.1)
    step = train.make_step(None, optimizer, grad_fn=privacy.dp_grad_fn(1.0, 1.0, 4.0, arch=TINY))
    state, _ = step(train.create_state(params, optimizer, key=key), batch)
    assert {p.dtype for p in state.params.values()} == {torch.bfloat16}


def test_noise_goes_by_the_order_of_the_parameters_by_either_method(params, batch, key):
    turned = dict(reversed(params.items()))
    one, other = (
        privacy.dp_grad_fn(1.0, 1.0, 4.0, arch=TINY, method=m)(turned, batch, key)[0] for m in ("auto", "vmap")
    )
    for name, g in one.items():
        torch.testing.assert_close(g, other[name], rtol=1e-9, atol=1e-12)


def test_sums_are_taken_without_tf32(params, batch, key):
    seen = []

    def loss(p, example, key=None):
        seen.append(torch.backends.cudnn.allow_tf32)
        return tiny_loss(p, example)

    with af.precision.tf32(True):
        privacy.dp_grad_fn(1.0, 0.0, 4.0, loss_fn=loss)(params, batch, key)
    assert seen == [False]
    with pytest.raises(ValueError, match="need full float32 products"):
        privacy.dp_grad_fn(1.0, 0.0, 4.0, loss_fn=train.with_precision(tiny_loss, "tf32"))


def test_clipping_by_layer_holds_every_layers_own_bound(params, batch, key):
    bounds = {name: 0.05 * (i + 1) for i, name in enumerate(params)}
    grads, metrics = privacy.dp_grad_fn(bounds, 2.0, 4.0, arch=TINY)(params, batch, key)
    keys = af.random.split(af.random.split(key)[0], 6)
    each = [torch.func.grad(tiny_loss)(params, (x, y), key=k) for x, y, k in zip(*batch, keys, strict=True)]
    noise, sensitivity = noise_of(params, key), math.sqrt(sum(b**2 for b in bounds.values()))
    for name, bound in bounds.items():
        total = sum(g[name] * min(1, bound / g[name].norm()) for g in each)
        torch.testing.assert_close(grads[name], (total + 2 * sensitivity * noise[name]) / 4, rtol=1e-10, atol=1e-13)
    clipped = [any(g[name].norm() > bound for name, bound in bounds.items()) for g in each]
    assert metrics["clipped"] == pytest.approx(sum(clipped) / 6)


def test_one_bad_image_leaves_the_others_update(params, batch, key):
    x, y = batch
    bad = x.clone()
    bad[2] = torch.nan
    grad_fn = privacy.dp_grad_fn(0.5, 1.0, 4.0, arch=TINY)
    ours, metrics = grad_fn(params, (bad, y), key)
    theirs, others = grad_fn(params, (x, y, torch.tensor([1.0, 1, 0, 1, 1, 1])), key)
    for name, g in theirs.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(metrics["loss"], others["loss"])
    assert (metrics["count"], metrics["nonfinite"]) == (6, 1)
    clipped, norms = per_sample.clipped_sum(params, (bad, y), 0.5, arch=TINY, nonfinite="zero")
    assert norms.isfinite().tolist() == [True, True, False, True, True, True]
    good = per_sample.clipped_sum(params, (x[[0, 1, 3, 4, 5]], y[[0, 1, 3, 4, 5]]), 0.5, arch=TINY)[0]
    for name, g in good.items():
        torch.testing.assert_close(clipped[name], g, rtol=1e-12, atol=1e-14)


# Adaptive clipping, by Andrew et al. 2021, algorithm 1 and theorem 1.


def test_an_adaptive_step_is_the_papers(params, batch, key):
    optimizer, step = privacy.adaptive(
        optim.sgd(0.1), 1.3, 4.0, arch=TINY, max_norm=0.5, quantile=0.3, rate=0.7, count_deviation=0.9
    )
    state = train.create_state(params, optimizer, key=key)
    assert state.opt_state["max_norm"] == 0.5
    weights = torch.tensor([1.0, 1, 0, 1, 1, 1])
    after, metrics = step(state, (*batch, weights))
    step_key = af.random.fold_in(key, 0)
    for_gradients = (1.3**-2 - (2 * 0.9) ** -2) ** -0.5
    plain = train.make_step(None, optim.sgd(0.1), grad_fn=privacy.dp_grad_fn(0.5, for_gradients, 4.0, arch=TINY))
    expected, others = plain(state._replace(opt_state={}), (*batch, weights))
    for name, p in expected.params.items():
        torch.testing.assert_close(after.params[name], p, rtol=1e-6, atol=1e-8)  # the bound is float32
    keys = af.random.split(af.random.split(step_key)[0], 6)
    norms = per_sample.norms(params, batch, arch=TINY, key=keys)
    noise_key = af.random.split(step_key)[1]
    noise = float(af.random.normal(af.random.fold_in(noise_key, len(params)), ()))
    counted = sum(w * ((n <= 0.5).double() - 0.5) for w, n in zip(weights, norms, strict=True))
    share = (counted + 0.9 * noise) / 4 + 0.5
    assert after.opt_state["max_norm"].item() == pytest.approx(0.5 * math.exp(-0.7 * (share - 0.3)), rel=1e-6)
    assert metrics["max_norm"] == 0.5
    torch.testing.assert_close({name: metrics[name] for name in others}, others)


@pytest.mark.parametrize("quantile", [0.2, 0.8])
def test_the_bound_goes_to_the_quantile_from_far(params, key, quantile):
    x, y = images(TINY, 10, torch.float64)
    optimizer, step = privacy.adaptive(
        optim.sgd(0.0), 0.0, 10.0, arch=TINY, max_norm=0.1, quantile=quantile, rate=1.0, count_deviation=1e-9
    )
    state, held = train.create_state(params, optimizer, key=key), []
    for _ in range(50):
        state, metrics = step(state, (x, y))
        held.append(1 - metrics["clipped"].item())
    assert held[0] == 0
    assert sum(held[-25:]) / 25 == pytest.approx(quantile, abs=0.06)


def test_a_bad_image_counts_as_one_that_is_too_long(params, batch, key):
    x, y = batch
    bad = torch.cat([x[:1] * torch.nan, x[1:]])
    optimizer, step = privacy.adaptive(optim.sgd(0.1), 1.0, 6.0, arch=TINY, max_norm=1e6, count_deviation=0.6)
    state = train.create_state(params, optimizer, key=key)
    (one, metrics), (other, _) = step(state, (bad, y)), step(state, (x, y))
    assert metrics["nonfinite"] == 1
    moved = (one.opt_state["max_norm"] / other.opt_state["max_norm"]).log().item()
    assert moved == pytest.approx(0.2 / 6, rel=1e-4)  # one example of six, at the default rate
    assert all(p.isfinite().all() for p in one.params.values())


@pytest.mark.errors
def test_mistakes_of_adaptive_clipping_are_named(params, batch, key):
    with pytest.raises(ValueError, match="count_deviation must lie above half of noise_multiplier"):
        privacy.adaptive(optim.sgd(0.1), 2.0, 10.0)
    with pytest.raises(ValueError, match="count_deviation must lie above half"):
        privacy.adaptive(optim.sgd(0.1), 1.0, 100.0, count_deviation=0.0)
    with pytest.raises(ValueError, match=r"quantile must lie in \[0, 1\], got 1.5"):
        privacy.adaptive(optim.sgd(0.1), 1.0, 100.0, quantile=1.5)
    with pytest.raises(ValueError, match="rate must be positive and finite, got 0"):
        privacy.adaptive(optim.sgd(0.1), 1.0, 100.0, rate=0.0)
    with pytest.raises(TypeError, match=r"optimizer must be an optim\.Optimizer"):
        privacy.adaptive("sgd", 1.0, 100.0)
    _, step = privacy.adaptive(optim.sgd(0.1), 1.0, 100.0, arch=TINY)
    with pytest.raises(ValueError, match=r"make the state with the optimizer that privacy\.adaptive returns"):
        step(train.create_state(params, optim.sgd(0.1), key=key), batch)


@pytest.mark.errors
def test_mistakes_are_named(key):
    with pytest.raises(ValueError, match="max_norm must be positive and finite, got 0"):
        privacy.dp_grad_fn(0, 1.0, 8)
    with pytest.raises(ValueError, match="expected_batch_size must be positive and finite, got -8"):
        privacy.dp_grad_fn(1.0, 1.0, -8)
    with pytest.raises(ValueError, match="noise_multiplier must be finite and not negative, got -1"):
        privacy.dp_grad_fn(1.0, -1, 8)


@pytest.mark.errors
def test_weights_that_void_the_guarantee_are_refused(params, batch, key):
    grad_fn = privacy.dp_grad_fn(0.5, 1.0, 4.0, arch=TINY)
    for wrong in (torch.full((6,), 100.0), torch.tensor([1.0, 1, 1, 1, 1, -1]), torch.full((6,), torch.nan)):
        with pytest.raises(ValueError, match="weights must be 0 or 1, as another one voids the guarantee"):
            grad_fn(params, (*batch, wrong), key)
    with pytest.raises(TypeError, match="weights must be floating-point zeros and ones"):
        grad_fn(params, (*batch, batch[1]), key)
    with pytest.raises(ValueError, match="max_norm must name every parameter"):
        privacy.dp_grad_fn({"a": 1.0}, 1.0, 4.0, arch=TINY)(params, batch, key)
    with pytest.raises(ValueError, match=r"features.0.bias must be positive and finite, got 0"):
        privacy.dp_grad_fn({"features.0.bias": 0.0}, 1.0, 4.0)
    with pytest.raises(ValueError, match='nonfinite must be "propagate" or "zero"'):
        per_sample.clipped_sum(params, batch, 1.0, arch=TINY, nonfinite="skip")
