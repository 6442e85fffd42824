import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import alexnet_func as af
from alexnet_func.arch import ALEXNET, ALEXNET_2012, CAFFENET, AdaptiveAvgPool, Arch, Conv, Linear, MaxPool
from tests.conftest import ARCHS, TINY


@pytest.mark.parametrize(("arch", "count"), [(ALEXNET, 61_100_840), (ALEXNET_2012, 60_965_224)])
def test_parameter_counts_are_the_published_ones(arch, count):
    assert sum(math.prod(shape) for shape in af.arch.param_shapes(arch).values()) == count


@pytest.mark.parametrize("arch", [*ARCHS, TINY], ids=lambda arch: arch.name)
def test_json_round_trip_keeps_value_and_hash(arch):
    again = Arch.from_json(arch.to_json())
    assert again == arch
    assert hash(again) == hash(arch)
    assert again is not arch


@pytest.mark.errors
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"type": "Conv"}',
        '{"type": "MaxPool", "kernel_size": 3, "stride": 0}',
        '{"type": "Nothing"}',
        '{"type": "ReLU"}',
    ],
)
def test_json_of_something_else_is_refused(text):
    with pytest.raises(ValueError, match=r"not the JSON of an arch|must be a positive integer"):
        Arch.from_json(text)


def test_names_find_the_variants():
    assert af.arch.get("alexnet") is ALEXNET
    with pytest.raises(ValueError, match="unknown arch 'resnet'; there are alexnet, alexnet_2012"):
        af.arch.get("resnet")


def test_layers_of_different_kinds_differ_even_with_equal_fields():
    assert af.arch.ReLU() != af.arch.Flatten()


def test_the_papers_feature_maps_are_55_27_13_6():
    sides = [at.out_shape[1] for at in af.arch.place(ALEXNET_2012, (3, 224, 224)) if len(at.out_shape) == 3]
    assert list(dict.fromkeys(sides)) == [55, 27, 13, 6]
    sides = [at.out_shape[1] for at in af.arch.place(CAFFENET, (3, 227, 227)) if len(at.out_shape) == 3]
    assert list(dict.fromkeys(sides)) == [55, 27, 13, 6]


def test_a_named_network_is_shown_by_its_name_and_others_by_their_layers():
    assert [repr(arch) for arch in (ALEXNET, CAFFENET)] == ["ALEXNET", "CAFFENET"]
    assert str(inspect.signature(af.forward).parameters["arch"]).endswith("= ALEXNET")
    other = ALEXNET.replace(num_classes=7)
    assert repr(other) == str(other)
    assert eval(str(other), vars(af.arch) | vars(af.layers)) == other


def test_replace_changes_the_last_layer_alone():
    ten = af.arch.param_shapes(ALEXNET.replace(num_classes=10))
    changed = {n: s for n, s in ten.items() if s != af.arch.param_shapes(ALEXNET)[n]}
    assert changed == {"classifier.6.weight": (10, 4096), "classifier.6.bias": (10,)}


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_pooled_sizes_are_torchs(side, kernel, stride, ceil_mode):
    ours = af.arch._out_shape(ALEXNET, MaxPool(kernel, stride, ceil_mode), (1, side, side))
    if ours[1] < 1:
        with pytest.raises(RuntimeError, match="too small"):
            F.max_pool2d(torch.zeros(1, side, side), kernel, stride, ceil_mode=ceil_mode)
        return
    assert F.max_pool2d(torch.zeros(1, side, side), kernel, stride, ceil_mode=ceil_mode).shape == ours


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_convolved_sizes_are_torchs(side, kernel, stride, padding):
    ours = af.arch._out_shape(ALEXNET, Conv(2, kernel, stride, padding), (1, side, side))
    weight = torch.zeros(2, 1, kernel, kernel)
    if ours[1] < 1:
        with pytest.raises(RuntimeError, match="size"):
            F.conv2d(torch.zeros(1, side, side), weight, stride=stride, padding=padding)
        return
    assert F.conv2d(torch.zeros(1, side, side), weight, stride=stride, padding=padding).shape == ours


@pytest.mark.parametrize("side", range(63, 300, 13))
def test_alexnet_takes_every_size_from_63_on(side):
    assert af.arch.place(ALEXNET, (3, side, side))[-1].out_shape == (1000,)


@pytest.mark.errors
def test_malformed_archs_are_refused():
    with pytest.raises(ValueError, match=r"last layer of tiny must be Linear\(None\)"):
        TINY.replace(classifier=TINY.classifier[:-1])
    with pytest.raises(ValueError, match="2 groups do not divide 3 and 8 channels"):
        TINY.replace(features=(Conv(8, 3, groups=2),))
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        TINY.replace(num_classes=0)
    with pytest.raises(ValueError, match=r"features of tiny may not hold Linear"):
        TINY.replace(features=(Linear(3),))
    with pytest.raises(ValueError, match="classifier of tiny may not hold 'ReLU'"):
        TINY.replace(classifier=("ReLU", Linear(None)))
    with pytest.raises(ValueError, match="out_channels of Conv must be a positive integer, got -8"):
        Conv(-8, 3)
    with pytest.raises(ValueError, match="stride of MaxPool must be a positive integer, got 0"):
        MaxPool(3, 0)
    with pytest.raises(ValueError, match="no size up to 1024 gives every layer an output"):
        TINY.replace(features=(AdaptiveAvgPool(1), MaxPool(3, 2)))
    with pytest.raises(ValueError, match=r"images of 1x1 are too small for alexnet: the smallest square is 63"):
        ALEXNET.replace(image_size=1)
