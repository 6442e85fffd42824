"""Laws that hold for every arch, on small random ones, in float64."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp, vjp, vmap

import alexnet_func as af
from alexnet_func.arch import (
    LRN,
    Arch,
    AvgPool,
    Conv,
    Dropout,
    HeNormal,
    Linear,
    LocallyConnected,
    MaxPool,
    Normal,
    ReLU,
    Tanh,
    WithinChannelLRN,
    ZeroPad,
)
from parity import criteria, inputs, ours, references
from parity.oracles import by_numpy

laws = settings(max_examples=25)


def archs(draw):
    features, channels = [], 2
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
        channels = groups * draw(st.integers(1, 3))
        kernel, stride, padding = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
        if draw(st.booleans()):
            features.append(ZeroPad(draw(st.integers(0, 2)), draw(st.integers(0, 2))))
        if draw(st.integers(0, 3)) == 0:
            features.append(LocallyConnected(channels, kernel, stride, padding, weight=HeNormal()))
        else:
            features.append(Conv(channels, kernel, stride, padding, groups, weight=HeNormal()))
        features.append(draw(st.sampled_from([ReLU(), Tanh()])))
        convention, size = draw(st.sampled_from(["sum", "mean"])), draw(st.integers(1, 5))
        of_kinds = [LRN(size, 0.1, 0.75, 1.0, convention, groups), WithinChannelLRN(size, 0.1, 0.75, 1.0, convention)]
        if draw(st.booleans()):
            features.append(draw(st.sampled_from(of_kinds)))
        if draw(st.booleans()):
            pool = draw(st.sampled_from([MaxPool, AvgPool]))
            features.append(pool(draw(st.integers(2, 3)), draw(st.integers(1, 2)), draw(st.booleans())))
    convention = draw(st.sampled_from(["inverted", "classic"]))
    hidden = [Dropout(draw(st.sampled_from([0.0, 0.3, 0.5])), convention), Linear(draw(st.integers(1, 6))), ReLU()]
    try:
        return Arch(
            name="random",
            image_size=draw(st.integers(7, 13)),
            in_channels=2,
            num_classes=3,
            pooled_size=draw(st.sampled_from([None, 1, 2])),
            features=tuple(features),
            classifier=(*(hidden if draw(st.booleans()) else []), Linear(None, weight=Normal(1.0))),
        )
    except ValueError:
        return assume(False)  # an image too small for the layers


def problems(draw):
    """An arch, its parameters, images, labels and a key.

    Drawn within the test: runtime type checking uses the `random` module, which strategies may not.
    """
    arch = archs(draw)
    init_key, image_key, label_key, key = af.random.split(af.random.key(draw(st.integers(0, 2**32 - 1))), 4).unbind()
    n = draw(st.integers(1, 4))
    params = af.init(init_key, arch, dtype=torch.float64)
    x = af.random.normal(image_key, (n, 2, arch.image_size, arch.image_size)).double()
    return arch, params, x, af.random.randint(label_key, (n,), 0, 3).long(), key


def agree(ours, theirs, tolerance=1e-12):
    """As `criteria.close`, but what is zero on one side may be rounding on the other."""
    for name, expected in theirs.items():
        distance = (ours[name] - expected).norm()
        assert distance <= tolerance * (expected.norm() + 1), name


def differentiated(arch, params, x, y, key):
    given_ = inputs.Inputs(arch, params, x, y, key, {})
    return ours.differentiated(given_)


@given(st.data(), st.booleans())
@laws
def test_forward_and_gradients_are_the_modules_and_the_numpy_oracles(data, dropout):
    arch, params, x, y, key = problems(data.draw)
    key = key if dropout else None
    keeps = inputs.masks(arch, key, tuple(x.shape))
    ours = differentiated(arch, params, x, y, key)
    module = references.with_masks(af.interop.to_module(params, arch).eval(), keeps)
    agree(ours, references.loss_and_gradients(module, x, y))
    arrays = [{n: t.numpy() for n, t in tensors.items()} for tensors in (params, keeps)]
    found = by_numpy.loss_and_gradients(arch, arrays[0], x.numpy(), y.numpy(), arrays[1])
    assert set(found) == set(ours)
    agree(ours, {name: torch.from_numpy(np.array(value)) for name, value in found.items()})


@given(st.data())
@laws
def test_a_batch_is_a_vmap_and_a_loop(data):
    arch, params, x, _, key = problems(data.draw)
    forward = functools.partial(af.forward, arch=arch)
    keys = af.random.split(key, len(x))
    batched = forward(params, x, key=key)
    looped = torch.stack([forward(params, one, key=k) for one, k in zip(x, keys, strict=True)])
    agree({"": vmap(lambda one, k: forward(params, one, key=k))(x, keys)}, {"": batched})
    agree({"": looped}, {"": batched})


@given(st.data(), st.randoms(use_true_random=False))
@laws
def test_permuted_images_have_permuted_logits_and_the_same_gradient(data, shuffler):
    arch, params, x, y, _ = problems(data.draw)
    order = list(range(len(y)))
    shuffler.shuffle(order)
    one, other = differentiated(arch, params, x, y, None), differentiated(arch, params, x[order], y[order], None)
    agree({"logits": other["logits"]}, {"logits": one["logits"][order]})
    agree({name: other[name] for name in params}, {name: one[name] for name in params})


@given(st.data())
@laws
def test_forward_and_reverse_derivatives_are_adjoint(data):
    """<u, J v> = <J^T u, v>."""
    arch, params, x, _, key = problems(data.draw)
    forward = functools.partial(af.forward, x=x, arch=arch, key=key)
    keys = af.random.split(af.random.fold_in(key, 1), len(params))
    v = {n: af.random.normal(k, tuple(p.shape)).double() for k, (n, p) in zip(keys, params.items(), strict=True)}
    logits, pushed = jvp(forward, (params,), (v,))
    u = torch.cos(torch.arange(logits.numel(), dtype=torch.float64)).view_as(logits)
    (pulled,) = vjp(forward, params)[1](u)
    left, right = (u * pushed).sum(), sum((pulled[name] * v[name]).sum() for name in params)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@given(st.data(), st.booleans())
@laws
def test_per_sample_gradients_by_layer_are_a_loop_over_the_examples(data, gram):
    arch, params, x, y, key = problems(data.draw)
    keys = af.random.split(key, len(y))
    loss = grad(functools.partial(af.loss_fn, arch=arch))
    each = [loss(params, (a, b), key=k) for a, b, k in zip(x, y, keys, strict=True)]
    expected = {name: torch.stack([g[name] for g in each]) for name in params}
    options = {"arch": arch, "key": key, "method": "layerwise"}
    agree(af.per_sample.grads(params, (x, y), **options), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(af.factors, "by_products", lambda at, views: gram)
        norms = af.per_sample.layer_norms(params, (x, y), **options)
        clipped, _ = af.per_sample.clipped_sum(params, (x, y), 1e-3, **options)
    # The Gram form adds squares with cancellation: what is zero may come out as the root of a rounding error.
    agree(norms, {name: g.flatten(1).norm(dim=1) for name, g in expected.items()}, tolerance=1e-7)
    scale = (1e-3 / torch.stack([g.flatten(1).square().sum(1) for g in expected.values()]).sum(0).sqrt()).clamp(max=1)
    agree(clipped, {name: torch.tensordot(scale, g, 1) for name, g in expected.items()}, tolerance=1e-9)


SMALL = Arch(
    name="small",
    image_size=7,
    in_channels=2,
    num_classes=3,
    features=(Conv(4, 3, padding=1, groups=2, weight=HeNormal()), ReLU(), LRN(3, 0.1, 0.75, 1.0, "sum"), MaxPool(3, 2)),
    classifier=(Dropout(0.5), Linear(4, weight=HeNormal()), ReLU(), Linear(None, weight=Normal(1.0))),
)


@pytest.mark.parametrize("dropout", [False, True])
def test_first_and_second_derivatives_are_finite_differences(dropout):
    params = af.init(af.random.key(0), SMALL, dtype=torch.float64)
    x, y = torch.randn(2, 2, 7, 7, dtype=torch.float64), torch.tensor([0, 2])
    key = af.random.key(1) if dropout else None

    def loss(x, *values):
        return af.loss_fn(dict(zip(params, values, strict=True)), (x, y), arch=SMALL, key=key)

    values = [t.clone().requires_grad_() for t in (x, *params.values())]
    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values)


def test_the_gradient_by_torch_func_is_autograds():
    params = af.init(af.random.key(0), SMALL, dtype=torch.float64)
    x, y = torch.randn(3, 2, 7, 7, dtype=torch.float64), torch.tensor([0, 2, 1])
    leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
    af.loss_fn(leaves, (x, y), arch=SMALL).backward()
    ours = grad(functools.partial(af.loss_fn, arch=SMALL))(params, (x, y))
    assert criteria.bitwise(ours, {n: p.grad for n, p in leaves.items()}).passed
