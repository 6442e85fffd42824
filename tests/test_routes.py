import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

import alexnet_func as af
from alexnet_func import routes
from alexnet_func.arch import Conv, Placed, ReLU
from tests.conftest import images


@given(
    kernel=st.integers(1, 12),
    stride=st.integers(1, 5),
    padding=st.integers(0, 4),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    channels=st.integers(1, 6),
)
@settings(max_examples=60)
def test_a_convolution_by_space_to_depth_is_the_convolution(kernel, stride, padding, extra, channels):
    h, w = (max(1, kernel - 2 * padding) + e for e in extra)
    x = torch.randn(2, channels, h, w, dtype=torch.float64)
    weight = torch.randn(3, channels, kernel, kernel, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64)
    expected = F.conv2d(x, weight, bias, stride, padding)
    layer = Conv(3, kernel, stride=stride, padding=padding)
    at = Placed("c", layer, tuple(x.shape[1:]), tuple(expected.shape[1:]))
    torch.testing.assert_close(routes.space_to_depth_conv(at, x, weight, bias), expected, rtol=1e-12, atol=1e-12)
    one = routes.space_to_depth_conv(at, x[0], weight, bias)
    torch.testing.assert_close(one, expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("alexnet", af.model.PLAIN),
        ("caffenet", routes.SPACE_TO_DEPTH),
        ("alexnet_cifar", af.model.PLAIN),
        ("alexnet_small", af.model.PLAIN),
    ],
)
def test_fused_layers_give_the_plain_logits_and_gradients(name, below, key):
    arch = af.arch.get(name).replace(num_classes=7)
    params, batch = af.init(key, arch, dtype=torch.float64), images(arch, 2, torch.float64)
    table = routes.fused(arch, below)

    def results(**how):
        logits = af.forward(params, batch[0], arch=arch, key=key, **how)
        return {"logits": logits, **grad(af.loss_fn)(params, batch, arch=arch, key=key, **how)}

    torch.testing.assert_close(results(table=table), results(), rtol=1e-9, atol=1e-12)
    one = af.forward(params, batch[0][0], arch=arch, table=table)
    torch.testing.assert_close(one, af.forward(params, batch[0][0], arch=arch), rtol=1e-9, atol=1e-12)


def test_fused_layers_pool_before_they_add_the_bias(key):
    arch = af.arch.ALEXNET_CIFAR
    sizes = []

    def relu(at, x):
        sizes.append((at.name, x.shape[-1], x.is_contiguous(memory_format=torch.channels_last)))
        return F.relu(x)

    table = routes.fused(arch, {**af.model.PLAIN, ReLU: relu})
    af.forward(af.init(key, arch), images(arch, 2)[0], arch=arch, table=table)
    maps = {name: (side, last) for name, side, last in sizes if name.startswith("features")}
    assert maps == {f"features.{i}": (s, True) for i, s in ((1, 16), (4, 8), (7, 8), (9, 8), (11, 4))}


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_the_gradient_is_the_plain_one_batched_and_vmapped(name, key):
    arch = af.arch.get(name).replace(num_classes=7)
    params = af.init(key, arch, dtype=torch.float64)
    x, y = images(arch, 2, torch.float64)

    def first_layer(table):
        def loss(weight, x, y):
            return af.loss_fn({**params, "features.0.weight": weight}, (x, y), arch=arch, table=table)

        weight = params["features.0.weight"]
        return grad(loss)(weight, x, y), vmap(grad(loss), in_dims=(None, 0, 0))(weight, x, y)

    for ours, plain in zip(first_layer(routes.SPACE_TO_DEPTH), first_layer(af.model.PLAIN), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
