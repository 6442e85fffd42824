"""The contract's list of errors, a line a test: each names what was given and what is accepted, before arithmetic."""

import pytest
import torch
from torch.func import grad, vmap

import alexnet_func as af
from alexnet_func.arch import ALEXNET, ALEXNET_2012
from tests.conftest import TINY, images, tiny_forward, tiny_loss


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, TINY)


@pytest.fixture
def never_reaches_arithmetic(monkeypatch):
    def reached(*_args, **_kwargs):
        raise AssertionError("arithmetic began before the check")

    monkeypatch.setattr(af.model, "walk", reached)


pytestmark = [pytest.mark.errors, pytest.mark.usefixtures("never_reaches_arithmetic")]


def test_wrong_input_channels(params):
    with pytest.raises(ValueError, match=r"tiny takes images \[3, H, W\], got \[1, 15, 15\]"):
        tiny_forward(params, torch.zeros(2, 1, 15, 15))


def test_image_too_small_for_the_arch():
    with pytest.raises(ValueError, match="images of 62x200 are too small for alexnet: the smallest square is 63"):
        af.forward(_zeros(ALEXNET), torch.zeros(3, 62, 200))


def test_image_of_a_size_the_linear_layers_do_not_fit():
    with pytest.raises(ValueError, match=r"alexnet_2012 takes images of 224x224, got 300x260"):
        af.forward(_zeros(ALEXNET_2012), torch.zeros(3, 300, 260), arch=ALEXNET_2012)


def test_image_of_the_wrong_rank(params):
    with pytest.raises(ValueError, match=r"x must be \[C, H, W\] or \[N, C, H, W\], got \[15, 15\]"):
        tiny_forward(params, torch.zeros(15, 15))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images(params, dtype):
    with pytest.raises(TypeError, match=rf"x must be a floating tensor of images, got {dtype} \[2, 3, 15, 15\]"):
        tiny_forward(params, torch.zeros(2, 3, 15, 15, dtype=dtype))


def test_images_that_are_no_tensor(params):
    with pytest.raises(TypeError, match="x must be a floating tensor of images, got ndarray"):
        tiny_forward(params, torch.zeros(3, 15, 15).numpy())


def test_missing_extra_and_misshapen_params_are_all_listed(params):
    wrong = {**params, "classifier.9.bias": torch.zeros(3), "classifier.1.bias": torch.zeros(17)}
    del wrong["features.0.weight"]
    with pytest.raises(ValueError, match="params of tiny: ") as caught:
        tiny_forward(wrong, torch.zeros(3, 15, 15))
    for part in (
        "missing features.0.weight [8, 3, 3, 3]",
        "unexpected classifier.9.bias [3]",
        "classifier.1.bias must be [16], got [17]",
    ):
        assert part in str(caught.value)


def test_params_are_matched_by_name_not_by_order(params, monkeypatch):
    monkeypatch.undo()
    x, _ = images(TINY, 2)
    assert torch.equal(tiny_forward(dict(reversed(params.items())), x), tiny_forward(params, x))


def test_params_that_are_no_tensors(params):
    with pytest.raises(TypeError, match=r"params of tiny: features\.0\.bias must be a tensor, got list"):
        tiny_forward({**params, "features.0.bias": [0.0] * 8}, torch.zeros(3, 15, 15))


def test_params_of_mixed_dtypes(params):
    mixed = {**params, "features.0.bias": params["features.0.bias"].double()}
    with pytest.raises(ValueError, match=r"params of tiny must share one dtype, got torch\.float32, torch\.float64"):
        tiny_forward(mixed, torch.zeros(3, 15, 15))


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_labels_out_of_range_before_forward(params, label):
    batch = (torch.zeros(2, 3, 15, 15), torch.tensor([0, label]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got "):
        tiny_loss(params, batch)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got "):
        grad(tiny_loss)(params, batch)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got "):
        vmap(grad(tiny_loss), in_dims=(None, 0))(params, batch)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got "):
        af.losses.accuracy(torch.zeros(2, 5), batch[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_integers(params, dtype):
    with pytest.raises(TypeError, match=f"labels must be an integer tensor, got {dtype}"):
        tiny_loss(params, (torch.zeros(2, 3, 15, 15), torch.zeros(2, dtype=dtype)))


def test_labels_of_another_shape_than_the_batch():
    with pytest.raises(ValueError, match=r"labels must have shape \[2\] to fit the logits, got \[2, 1\]"):
        af.losses.cross_entropy(torch.zeros(2, 5), torch.zeros(2, 1, dtype=torch.int64))


def test_accuracy_does_not_broadcast_labels():
    for labels in (torch.zeros(2, 1, dtype=torch.int64), torch.tensor(0)):
        with pytest.raises(ValueError, match=r"labels must have shape \[2\] to fit the logits"):
            af.losses.accuracy(torch.zeros(2, 5), labels)


def test_top_k_beyond_the_classes():
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5, got 6"):
        af.losses.accuracy(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), k=6)


def test_params_and_input_on_two_devices(params):
    with pytest.raises(ValueError, match="params are on cpu but x is on meta"):
        tiny_forward(params, torch.zeros(3, 15, 15, device="meta"))


def test_params_on_two_devices(params):
    mixed = {**params, "features.0.bias": params["features.0.bias"].to("meta")}
    with pytest.raises(ValueError, match="params of tiny must share one device, got cpu, meta"):
        tiny_forward(mixed, torch.zeros(3, 15, 15))


def test_params_and_key_on_two_devices(params, key):
    with pytest.raises(ValueError, match="params are on cpu but key is on meta"):
        tiny_forward(params, torch.zeros(3, 15, 15), key=key.to("meta"))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (0, TypeError, "key must be an int32 tensor from alexnet_func.random.key, got int"),
        (torch.zeros(2), TypeError, "key must be an int32 tensor .* got a torch.float32 tensor"),
        (torch.zeros(2, dtype=torch.int64), TypeError, "got a torch.int64 tensor"),
        (torch.zeros(3, dtype=torch.int32), ValueError, r"key must have shape \[2\], got \[3\]"),
        (torch.zeros(4, 2, dtype=torch.int32), ValueError, r"key must have shape \[2\], got \[4, 2\]"),
    ],
)
def test_a_key_that_is_not_a_key(params, wrong, error, message):
    for call in (
        lambda: tiny_forward(params, torch.zeros(3, 15, 15), key=wrong),
        lambda: af.random.split(wrong),
        lambda: af.random.fold_in(wrong, 1),
        lambda: af.random.uniform(wrong, (3,)),
        lambda: af.random.randint(wrong, (3,), 0, 5),
        lambda: af.random.permutation(wrong, 3),
    ):
        with pytest.raises(error, match=message):
            call()


def test_as_many_keys_as_examples_or_one(params):
    keys = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"key must have shape \[2\] or \[3, 2\], got \[4, 2\]"):
        tiny_forward(params, torch.zeros(3, 3, 15, 15), key=keys)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_rate_outside_its_range(rate):
    for call in (lambda: af.arch.Dropout(rate), lambda: af.ops.dropout(torch.zeros(2), torch.zeros(2), rate)):
        with pytest.raises(ValueError, match=r"dropout rate must lie in \[0, 1\)"):
            call()


@pytest.mark.parametrize("value", [-1, 2**32])
def test_seeds_and_folds_outside_32_bits(key, value):
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\^32\)"):
        af.random.key(value)
    with pytest.raises(ValueError, match=r"data must lie in \[0, 2\^32\)"):
        af.random.fold_in(key, value)


def test_seeds_that_are_no_integers():
    with pytest.raises(TypeError, match="seed must be an int, got float"):
        af.random.key(0.5)


def test_other_arguments_of_random(key):
    with pytest.raises(TypeError, match=r"data must be one integer, got torch\.float32 \[\]"):
        af.random.fold_in(key, torch.tensor(1.5))
    with pytest.raises(TypeError, match=r"data must be one integer, got torch\.int64 \[3\]"):
        af.random.fold_in(key, torch.arange(3))
    with pytest.raises(ValueError, match=r"p of shape \[3\] does not broadcast to shape \[2\]"):
        af.random.bernoulli(key, torch.zeros(3), (2,))
    with pytest.raises(ValueError, match="num must not be negative, got -1"):
        af.random.split(key, -1)
    with pytest.raises(ValueError, match="x must not be negative, got -1"):
        af.random.permutation(key, -1)
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], got 1.5"):
        af.random.bernoulli(key, 1.5, (3,))
    with pytest.raises(ValueError, match="maxval must lie in"):
        af.random.randint(key, (3,), 0, 2**31 + 1)


def test_init_in_an_integer_dtype(key):
    with pytest.raises(TypeError, match=r"dtype must be a floating dtype, got torch\.int64"):
        af.init(key, TINY, dtype=torch.int64)


def test_lrn_of_an_unknown_convention():
    with pytest.raises(ValueError, match='LRN convention must be "sum" or "mean"'):
        af.arch.LRN(5, 1e-4, 0.75, 2.0, "torch")


def _zeros(arch):
    return {name: torch.zeros(shape) for name, shape in af.arch.param_shapes(arch).items()}
