"""The networks of 2011 and 2012: tables made by hand from their layer files, and what their layers are."""

import math

import numpy as np
import pytest
import torch
from torch.func import vmap

import alexnet_func as af
from alexnet_func.arch import Dropout, LocallyConnected, WithinChannelLRN
from parity import museum, references
from tests.conftest import OLD, images

FULLY_CONNECTED = [37_752_832, 16_781_312, 4_097_000]
# Parameters of each layer by hand, weights and biases: for net 145's conv2 256 * (5 * 5 * 48) + 256, of either tower.
COUNTS = {
    "alexnet_145": [34_944, 307_456, 885_120, 663_936, 442_624, *FULLY_CONNECTED],
    "alexnet_147": [34_944, 307_456, 885_120, 663_936, 442_624, *FULLY_CONNECTED],
    "alexnet_148": [34_944, 307_456, 885_120, 663_936, 442_624, *FULLY_CONNECTED],
    "bvlc_alexnet": [34_944, 307_456, 885_120, 663_936, 442_624, *FULLY_CONNECTED],
    "alexnet_145_half": [17_472, 153_728, 221_376, 331_968, 442_624, *FULLY_CONNECTED],
    "cuda_convnet_26": [2_432, 25_632, 51_264, 65_600, 650],
    "cuda_convnet_19": [2_432, 25_632, 51_264, 10_250],
    "cuda_convnet_18": [2_432, 25_632, 51_264, 10_250],
    "cuda_convnet_13": [4_864, 102_464, 664_704, 332_928, 11_530],
    "cuda_convnet_11": [4_864, 102_464, 1_329_408, 664_704, 11_530],
}
# Sides of the maps where they change.
SIDES = {
    "alexnet_145": [227, 55, 27, 13, 6],
    "alexnet_148": [227, 55, 27, 13, 6],
    "alexnet_145_half": [227, 55, 27, 13, 6],
    "alexnet_147": [227, 55, 28, 26, 13, 11, 6],
    "bvlc_alexnet": [55, 27, 13, 6],
    "cuda_convnet_26": [32, 16, 8, 4],
    "cuda_convnet_19": [32, 16, 8, 4],
    "cuda_convnet_18": [32, 16, 8, 4],
    "cuda_convnet_13": [24, 12, 6],
    "cuda_convnet_11": [24, 12, 6],
}


@pytest.mark.parametrize("arch", af.history.NETWORKS, ids=lambda arch: arch.name)
def test_parameters_and_maps_are_those_of_the_layer_file(arch):
    shapes = af.arch.param_shapes(arch)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in shapes)
    counts = [sum(math.prod(s) for name, s in shapes.items() if name.rpartition(".")[0] == layer) for layer in layers]
    assert counts == COUNTS[arch.name]
    placed = af.arch.place(arch, (3, arch.image_size, arch.image_size))
    assert list(dict.fromkeys(at.out_shape[1] for at in placed if len(at.out_shape) == 3)) == SIDES[arch.name]
    assert af.arch.get(arch.name) is arch


def test_every_network_of_the_museum_has_its_module():
    assert list(museum.MODULES) == [arch.name for arch in af.history.NETWORKS]


@pytest.mark.parametrize("name", ["cuda_convnet_26", "cuda_convnet_19", "cuda_convnet_18", "cuda_convnet_11"])
def test_initial_parameters_have_the_files_spread(name):
    params = af.init(af.random.key(0), af.arch.get(name))
    stds = {"features.0": 1e-4, "cuda_convnet_26 classifier": 0.1, "cuda_convnet_11 features.8": 0.04}
    stds |= {"cuda_convnet_11 features.10": 0.04}
    for parameter, p in params.items():
        layer, _, kind = parameter.rpartition(".")
        known = (stds[k] for k in (layer, f"{name} {layer}", f"{name} {layer.partition('.')[0]}") if k in stds)
        expected = next(known, 0.01) if kind == "weight" else 0.0
        assert float(p.std()) == pytest.approx(expected, rel=0.1)


def test_he_normal_counts_the_inputs_of_one_position():
    arch = OLD.replace(features=(*OLD.features[:6], LocallyConnected(64, 2, weight=af.arch.HeNormal())), pooled_size=1)
    weight = af.init(af.random.key(0), arch)["features.6.weight"]
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (6 * 4)), rel=0.05)


def test_a_locally_connected_layer_of_equal_weights_is_a_convolution():
    local = OLD.features[6]
    at = next(at for at in af.arch.place(OLD, (3, 12, 12)) if at.layer == local)
    x, kernel = torch.randn(4, *at.in_shape).double(), torch.randn(5, 6, 2, 2).double()
    bias = torch.randn(5).double()
    weights = kernel.expand(*at.out_shape[1:], *kernel.shape)
    biases = bias[:, None, None].expand(at.out_shape)
    expected = torch.nn.functional.conv2d(x, kernel, bias, padding=1)
    found = af.local.locally_connected(at, x, weights, biases)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    one = af.local.locally_connected(at, x[0], weights, biases)
    torch.testing.assert_close(one, expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("convention", ["sum", "mean"])
def test_normalisation_within_a_channel_is_a_loop_over_pixels(size, convention):
    layer = WithinChannelLRN(size, 0.3, 0.75, 2.0, convention)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    alpha = 0.3 if convention == "sum" else 0.3 / size**2
    expected, before = np.empty_like(x.numpy()), size // 2
    for c, i, j in np.ndindex(*x.shape):
        rows, columns = (slice(max(0, at - before), max(0, at - before + size)) for at in (i, j))
        expected[c, i, j] = x[c, i, j] / (2.0 + alpha * (x[c, rows, columns] ** 2).sum()) ** 0.75
    found = af.ops.within_channel_response_norm(x, layer)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-13, atol=0)
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(vmap(lambda one: af.ops.within_channel_response_norm(one, layer))(batch)[0], found)


def test_a_tower_is_normalised_by_its_own_channels():
    layer = af.arch.LRN(5, 0.3, 0.75, 2.0, "mean", groups=2)
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    towers = [torch.nn.functional.local_response_norm(tower, 5, 0.3, 0.75, 2.0) for tower in x.chunk(2, 1)]
    torch.testing.assert_close(af.ops.local_response_norm(x, layer), torch.cat(towers, 1), rtol=1e-12, atol=0)
    torch.testing.assert_close(af.ops.local_response_norm(x[0], layer), torch.cat(towers, 1)[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
def test_classic_dropout_is_the_inverted_one_times_what_is_kept_and_equal_in_expectation(rate):
    x, key = torch.randn(20, dtype=torch.float64), af.random.key(3)
    noise = af.random.uniform(key, (4000, 20))
    classic, inverted = (
        af.ops.classic_dropout(x.expand(4000, 20), noise, rate),
        af.ops.dropout(x.expand(4000, 20), noise, rate),
    )
    torch.testing.assert_close(classic, inverted * (1 - rate), rtol=1e-12, atol=0)
    evaluated = af.ops.classic_dropout(x, None, rate)
    assert torch.equal(evaluated, x * (1 - rate))
    # Over 4,000 draws of a mean whose standard error is at most |x| / 2 / sqrt(4000).
    assert ((classic.mean(0) - evaluated).abs() <= 4 * x.abs() / 2 / math.sqrt(4000)).all()


def test_evaluation_halves_where_dropout_is_classic_and_the_module_does():
    params = af.init(af.random.key(0), OLD, dtype=torch.float64)
    x, _ = images(OLD, 3, torch.float64)
    inverted = OLD.replace(
        classifier=tuple(Dropout(at.rate) if isinstance(at, Dropout) else at for at in OLD.classifier)
    )
    assert not torch.allclose(af.forward(params, x, arch=OLD), af.forward(params, x, arch=inverted))
    module = af.interop.to_module(params, OLD)
    torch.testing.assert_close(af.forward(params, x, arch=OLD), module(x), rtol=1e-12, atol=1e-13)
    drawn = module.train().classifier[0](x)
    assert torch.equal(drawn, x.where(drawn != 0, 0))
    assert 0 < int((drawn == 0).sum()) < x.numel()
    module.eval()
    assert [n for n in af.model.activations(params, x, arch=OLD) if n.startswith("classifier")] == [
        f"classifier.{i}" for i in range(5)
    ]
    with pytest.raises(ValueError, match=r"not pure in training mode: classifier\.0 \(ClassicDropout\)"):
        af.interop.from_module(module.train())


def test_the_reference_takes_masks_of_classic_dropout():
    made = references.with_masks(museum.AlexNet148(), {"classifier.2": torch.ones(1, 4096, dtype=torch.bool)})
    x = torch.randn(1, 4096)
    assert torch.equal(made.classifier[2](x), x)
