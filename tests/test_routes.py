import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

import alexnet_func as af
from alexnet_func import routes
from alexnet_func.arch import Conv, Placed
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
