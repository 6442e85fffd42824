import copy
import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import alexnet_func as af
from alexnet_func.arch import (
    ALEXNET,
    ALEXNET_2012,
    CAFFENET,
    LRN,
    AdaptiveAvgPool,
    Arch,
    AvgPool,
    Constant,
    Conv,
    Dropout,
    Linear,
    LocallyConnected,
    MaxPool,
    Normal,
    WithinChannelLRN,
    ZeroPad,
)
from tests.conftest import ARCHS, OLD, TINY
from tests.test_properties import archs


@pytest.mark.parametrize(("arch", "count"), [(ALEXNET, 61_100_840), (ALEXNET_2012, 60_965_224)])
def test_parameter_counts_are_the_published_ones(arch, count):
    assert sum(math.prod(shape) for shape in af.arch.param_shapes(arch).values()) == count


@pytest.mark.parametrize("arch", [*ARCHS, TINY, OLD, *af.history.NETWORKS], ids=lambda arch: arch.name)
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


@given(st.data())
def test_json_round_trips_of_random_archs(data):
    arch = archs(data.draw)
    again = Arch.from_json(arch.to_json())
    assert (again, hash(again), again.to_json()) == (arch, hash(arch), arch.to_json())


def nodes(tree, path=()):
    yield path
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from nodes(child, (*path, key))


RECORDS = ["Arch", "Normal", "HeNormal", "Constant", "Conv", "Linear", "ReLU", "LRN", "MaxPool", "Dropout", "Flatten"]
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(-2, 3) | st.floats() | st.text(max_size=3)
)
KEYS = st.sampled_from(["type", "std", "value", "name", "features", "kernel_size", "rate", ""])
HOSTILE = st.recursive(
    SCALARS | st.sampled_from(RECORDS).map(lambda name: {"type": name}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.errors
@settings(max_examples=400)
@given(st.data())
def test_altered_json_is_read_as_an_arch_or_refused_with_a_value_error(data):
    tree = json.loads(TINY.to_json())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in nodes(tree) if path]))
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        match data.draw(st.sampled_from(["replace", "replace", "delete", "rename", "wrap"])):
            case "delete":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[data.draw(KEYS)] = parent.pop(path[-1])
            case "wrap":
                parent[path[-1]] = [copy.deepcopy(parent[path[-1]])]
            case _:
                parent[path[-1]] = data.draw(HOSTILE)
    text = json.dumps(tree)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.text(max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
    try:
        arch = Arch.from_json(text)
    except ValueError:
        return
    assert Arch.from_json(arch.to_json()) == arch
    assert hash(arch) == hash(Arch.from_json(arch.to_json()))


@pytest.mark.errors
@pytest.mark.parametrize("depth", [100, 900, 10_000, 200_000])
def test_deeply_nested_json_is_refused(depth):
    for text in ("[" * depth, "[" * depth + "]" * depth, '{"type": ' * depth + "1" + "}" * depth):
        with pytest.raises(ValueError, match="not the JSON of an arch"):
            Arch.from_json(text)
    with pytest.raises(ValueError, match=r"not the JSON of an arch|features of tiny may not hold"):
        Arch.from_json(TINY.to_json().replace('"features": [', '"features": [' + "[" * depth + "]" * depth + ", "))


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


def test_a_network_is_shown_by_its_name_and_printed_with_its_layers():
    assert str(inspect.signature(af.forward).parameters["arch"]).endswith("= Arch('alexnet', num_classes=1000, ...)")
    other = ALEXNET.replace(num_classes=7)
    assert repr(other) == "Arch('alexnet', num_classes=7, ...)"
    assert eval(str(other), vars(af.arch)) == other


def test_replace_changes_the_last_layer_alone():
    ten = af.arch.param_shapes(ALEXNET.replace(num_classes=10))
    changed = {n: s for n, s in ten.items() if s != af.arch.param_shapes(ALEXNET)[n]}
    assert changed == {"classifier.6.weight": (10, 4096), "classifier.6.bias": (10,)}


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_pooled_sizes_are_torchs(side, kernel, stride, ceil_mode):
    ours = af.structure._out_shape(ALEXNET, MaxPool(kernel, stride, ceil_mode), (1, side, side))
    if ours[1] < 1:
        with pytest.raises(RuntimeError, match="too small"):
            F.max_pool2d(torch.zeros(1, side, side), kernel, stride, ceil_mode=ceil_mode)
        return
    assert F.max_pool2d(torch.zeros(1, side, side), kernel, stride, ceil_mode=ceil_mode).shape == ours


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_convolved_sizes_are_torchs(side, kernel, stride, padding):
    ours = af.structure._out_shape(ALEXNET, Conv(2, kernel, stride, padding), (1, side, side))
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
    with pytest.raises(ValueError, match="3 groups of LRN do not divide 8 channels"):
        TINY.replace(features=(Conv(8, 3), LRN(3, 0.1, 0.75, 1.0, "sum", groups=3)))
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


NOT_AN_INTEGER = [True, 2.0, "3", None, float("nan"), np.int64(3), np.float64(3), torch.tensor(3), [3]]
NOT_A_NUMBER = [
    True,
    "0.5",
    None,
    float("nan"),
    float("inf"),
    10**400,
    np.float64(0.5),
    np.float32(0.5),
    torch.tensor(0.5),
]
LRN_FIELDS = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, "convention": "sum"}
# A record, its field, what it does not accept, and what it does.
FIELDS = [
    *((Conv(8, 3), name, [0, -1, *NOT_AN_INTEGER], "a positive integer") for name in ("out_channels", "kernel_size")),
    *((Conv(8, 3), name, [0, -1, *NOT_AN_INTEGER], "a positive integer") for name in ("stride", "groups")),
    (Conv(8, 3), "padding", [-1, *NOT_AN_INTEGER], "a non-negative integer"),
    *((Conv(8, 3), name, [None, 0.1, "normal", Normal, {}], r"an initialisation .*") for name in ("weight", "bias")),
    *((Linear(8), name, [None, 0.1, "normal", Normal, {}], r"an initialisation .*") for name in ("weight", "bias")),
    (Linear(8), "out_features", [0, True, 2.0, "8", torch.tensor(8), np.int32(8)], "a positive integer or None"),
    (Normal(0.1), "std", [-1, -1e-9, *NOT_A_NUMBER], "a finite non-negative number"),
    (Constant(0.1), "value", ["x", float("-inf"), *NOT_A_NUMBER], "a finite number"),
    (LRN(**LRN_FIELDS), "size", [0, *NOT_AN_INTEGER], "a positive integer"),
    *(
        (LRN(**LRN_FIELDS), n, ["a", -1.0, *NOT_A_NUMBER], "a finite non-negative number")
        for n in ("alpha", "beta", "k")
    ),
    (LRN(**LRN_FIELDS), "convention", ["torch", None, 1, ["sum"], torch.ones(2)], '"sum" or "mean"'),
    (LRN(**LRN_FIELDS), "groups", [0, *NOT_AN_INTEGER], "a positive integer"),
    (WithinChannelLRN(**LRN_FIELDS), "size", [0, *NOT_AN_INTEGER], "a positive integer"),
    *(
        (WithinChannelLRN(**LRN_FIELDS), n, ["a", -1.0, *NOT_A_NUMBER], "a finite non-negative number")
        for n in ("alpha", "beta", "k")
    ),
    (WithinChannelLRN(**LRN_FIELDS), "convention", ["torch", None, 1], '"sum" or "mean"'),
    *(
        (LocallyConnected(8, 3), name, [0, -1, *NOT_AN_INTEGER], "a positive integer")
        for name in ("out_channels", "kernel_size", "stride")
    ),
    (LocallyConnected(8, 3), "padding", [-1, *NOT_AN_INTEGER], "a non-negative integer"),
    *((LocallyConnected(8, 3), name, [None, 0.1, Normal], r"an initialisation .*") for name in ("weight", "bias")),
    *((AvgPool(3, 2), name, [0, *NOT_AN_INTEGER], "a positive integer") for name in ("kernel_size", "stride")),
    (AvgPool(3, 2), "ceil_mode", [1, 0, None, "yes"], "a bool"),
    *((ZeroPad(0, 3), name, [-1, *NOT_AN_INTEGER], "a non-negative integer") for name in ("before", "after")),
    (Dropout(), "convention", ["torch", None, 1], '"inverted" or "classic"'),
    *((MaxPool(3, 2), name, [0, *NOT_AN_INTEGER], "a positive integer") for name in ("kernel_size", "stride")),
    (MaxPool(3, 2), "ceil_mode", [1, 0, None, "yes", np.bool_(True), torch.tensor(True)], "a bool"),
    (AdaptiveAvgPool(6), "output_size", [0, -1, *NOT_AN_INTEGER], "a positive integer"),
    (Dropout(), "rate", [-0.1, 1, *NOT_A_NUMBER], r"\[0, 1\)"),
    *(
        (TINY, name, [0, -1, *NOT_AN_INTEGER], "a positive integer")
        for name in ("image_size", "in_channels", "num_classes")
    ),
    (TINY, "pooled_size", [0, -1, True, 2.0, "2", np.int64(2)], "a positive integer or None"),
    (TINY, "name", [None, 3, ("tiny",), np.str_("tiny")], "a string"),
    *(
        (TINY, name, [[*getattr(TINY, name)], None, "ReLU", Linear(None)], "a tuple")
        for name in ("features", "classifier")
    ),
]


@pytest.mark.errors
@pytest.mark.parametrize(
    ("record", "field", "value", "accepted"),
    [
        pytest.param(record, field, value, accepted, id=f"{type(record).__name__}-{field}-{value!r}"[:60])
        for record, field, values, accepted in FIELDS
        for value in values
    ],
)
def test_fields_that_make_no_sense_are_refused_by_name(record, field, value, accepted):
    kind = type(record).__name__
    with pytest.raises(ValueError, match=rf"must (be|lie in) {accepted}.*, got ") as caught:
        dataclasses.replace(record, **{field: value})
    assert kind.lower() in str(caught.value).lower()
    assert field in str(caught.value)
    assert repr(value) in str(caught.value)
    if not isinstance(value, np.generic | torch.Tensor | type | list | tuple):  # JSON has none, or reads them as tuples
        tree = json.loads(TINY.to_json())
        encoded = {**af.structure._encode(record), field: af.structure._encode(value)}
        text = json.dumps(encoded if kind == "Arch" else {**tree, "features": [encoded]})
        with pytest.raises(ValueError, match=rf"must (be|lie in) {accepted}.*, got |not the JSON of an arch"):
            Arch.from_json(text)


@pytest.mark.errors
def test_every_field_of_every_record_is_tried():
    tried = {(type(record).__name__, field) for record, field, _, _ in FIELDS}
    assert tried == {(cls.__name__, f.name) for cls in af.structure._RECORDS.values() for f in dataclasses.fields(cls)}


@pytest.mark.errors
def test_a_layer_of_another_kind_than_ours_is_refused():
    class Wide(Conv):
        pass

    with pytest.raises(ValueError, match="features of tiny may not hold"):
        TINY.replace(features=(Wide(8, 3),))


@pytest.mark.errors
def test_an_image_of_another_size_than_a_locally_connected_layer_has_weights_for_is_refused():
    local = LocallyConnected(4, 3)
    for pooled in (None, 1):
        arch = TINY.replace(features=(Conv(4, 3), local, Conv(2, 3)), pooled_size=pooled)
        with pytest.raises(ValueError, match=r"15x15, got 17x15: its locally connected layer has weights for .*13, 11"):
            af.arch.place(arch, (3, 17, 15))
        with pytest.raises(ValueError, match=r"15x15, got 2x2: its locally connected layer has weights for"):
            af.arch.place(arch, (3, 2, 2))
