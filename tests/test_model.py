import pytest
import torch
import torchvision
from torch.func import grad, vmap

import alexnet_func as af
from alexnet_func.arch import ALEXNET, ALEXNET_2012, ALEXNET_CIFAR, Conv, Dropout, HeNormal
from tests.conftest import ARCHS, TINY, images, within_budget

by_name = {"argvalues": ARCHS, "ids": [arch.name for arch in ARCHS]}


@pytest.fixture(scope="module")
def params(key):
    return {arch.name: af.init(key, arch) for arch in [*ARCHS, TINY]}


def per_layer_masks(arch, x, key):
    """The contract of `forward`, spelled out with public functions: what each dropout layer keeps of one example."""
    layers = [at for at in af.arch.place(arch, tuple(x.shape)) if isinstance(at.layer, Dropout)]
    return {
        at.name: af.random.bernoulli(af.random.fold_in(key, i), 1 - at.layer.rate, at.in_shape)
        for i, at in enumerate(layers)
    }


def masked_module(module, masks):
    """The module with its dropout layers replaced by multiplication with the given masks."""
    for name, mask in masks.items():
        section, index = name.split(".")
        scale = 1 / (1 - getattr(module, section)[int(index)].p)
        getattr(module, section)[int(index)] = _Times(mask * scale)
    return module


class _Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("arch", **by_name)
def test_params_are_named_and_shaped_as_the_modules_state_dict(params, arch):
    module = af.interop.to_module(params[arch.name], arch)
    assert {n: p.shape for n, p in module.state_dict().items()} == {n: p.shape for n, p in params[arch.name].items()}


def test_alexnet_params_are_torchvisions_state_dict_in_order(params):
    theirs = torchvision.models.alexnet().state_dict()
    assert [(n, p.shape) for n, p in params["alexnet"].items()] == [(n, p.shape) for n, p in theirs.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (2, 3, 224, 224), (2, 3, 63, 63), (2, 3, 300, 260)], ids=str)
def test_forward_and_gradients_have_torchvisions_bits(dtype, shape):
    # The whole list, batch 8 included, is what `python -m parity` runs.
    module = torchvision.models.alexnet().eval().to(dtype)
    params = {name: p.detach() for name, p in module.state_dict().items()}
    x, y = torch.randn(shape, dtype=dtype), torch.randint(1000, shape[:1])
    logits = module(x)
    torch.nn.functional.cross_entropy(logits, y).backward()
    assert torch.equal(af.forward(params, x), logits)
    grads = grad(af.loss_fn)(params, (x, y))
    assert all(torch.equal(grads[name], p.grad) for name, p in module.named_parameters())


@pytest.mark.parametrize("arch", **by_name)
def test_batching_is_vmapping_with_dropout_on(params, key, arch):
    p, (x, _) = params[arch.name], images(arch, 3)
    keys = af.random.split(key, 3)
    batched = af.forward(p, x, arch=arch, key=key)
    vmapped = vmap(lambda one, k: af.forward(p, one, arch=arch, key=k))(x, keys)
    looped = torch.stack([af.forward(p, one, arch=arch, key=k) for one, k in zip(x, keys, strict=True)])
    exact_p, exact_x = {n: t.double() for n, t in p.items()}, x.double()
    exact = af.forward(exact_p, exact_x, arch=arch, key=key)
    for ours in (vmapped, af.forward(p, x, arch=arch, key=keys)):
        within_budget([ours], [batched], [exact])
    within_budget([looped], [batched], [exact])
    drops = any(isinstance(layer, Dropout) for layer in arch.classifier)
    assert torch.allclose(batched, af.forward(p, x, arch=arch), rtol=1e-2) != drops


@pytest.mark.parametrize("arch", **by_name)
def test_dropout_follows_the_contract_in_the_module_with_the_same_masks(params, key, arch):
    p, (x, _) = params[arch.name], images(arch, 2)
    p, x = {n: t.double() for n, t in p.items()}, x.double()
    ours = af.forward(p, x, arch=arch, key=key)
    for i, k in enumerate(af.random.split(key, 2)):
        module = masked_module(af.interop.to_module(p, arch), per_layer_masks(arch, x[i], k))
        torch.testing.assert_close(ours[i : i + 1], module(x[i : i + 1]).detach(), rtol=1e-11, atol=1e-13)


def test_an_examples_masks_do_not_depend_on_its_batch(params, key):
    p, (x, _) = params["tiny"], images(TINY, 6, torch.float64)
    p = {n: t.double() for n, t in p.items()}
    whole = af.forward(p, x, arch=TINY, key=key)
    torch.testing.assert_close(af.forward(p, x[:2], arch=TINY, key=key), whole[:2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [0, 1])
def test_empty_and_single_batches(params, key, n):
    x, _ = images(TINY, n)
    assert af.forward(params["tiny"], x, arch=TINY, key=key).shape == (n, 5)
    assert af.forward(params["tiny"], x, arch=TINY).shape == (n, 5)


def test_many_models_in_one_call(params, key):
    members = [af.init(k, TINY) for k in af.random.split(key, 3)]
    stacked = {name: torch.stack([m[name] for m in members]) for name in members[0]}
    x, _ = images(TINY, 4)
    together = vmap(lambda p: af.forward(p, x, arch=TINY))(stacked)
    torch.testing.assert_close(together, torch.stack([af.forward(m, x, arch=TINY) for m in members]))


def test_input_is_cast_to_the_params_dtype(params):
    x, _ = images(TINY, 2, torch.float64)
    half = {name: p.bfloat16() for name, p in params["tiny"].items()}
    assert af.forward(half, x, arch=TINY).dtype == torch.bfloat16


def test_forward_changes_nothing_it_is_given(params, key):
    p, (x, _) = {n: t.clone() for n, t in params["tiny"].items()}, images(TINY, 2)
    before = x.clone()
    af.forward(p, x, arch=TINY, key=key)
    assert torch.equal(x, before)
    assert all(torch.equal(p[n], t) for n, t in params["tiny"].items())


class TestInit:
    def test_same_key_same_params_and_another_key_others(self, key, params):
        again = af.init(key, TINY)
        assert all(torch.equal(again[n], p) for n, p in params["tiny"].items())
        other = af.init(af.random.key(1), TINY)
        assert not torch.equal(other["features.0.weight"], again["features.0.weight"])

    def test_torchs_default_for_alexnet(self, params):
        for name, p in params["alexnet"].items():
            bound = params["alexnet"][name.replace("bias", "weight")][0].numel() ** -0.5
            assert p.abs().max() <= bound
            if p.numel() > 10_000:
                assert abs(p.std().item() / (bound / 3**0.5) - 1) < 0.02

    def test_the_papers_for_alexnet_2012(self, params):
        p = params["alexnet_2012"]
        ones = {"features.4.bias", "features.10.bias", "features.12.bias", "classifier.0.bias", "classifier.3.bias"}
        for name, value in p.items():
            if name.endswith("bias"):
                assert torch.equal(value, torch.full_like(value, float(name in ones))), name
            else:
                assert abs(value.std().item() / 0.01 - 1) < 0.02, name
                assert abs(value.mean().item()) < 3e-4, name

    def test_he_centred_and_not(self, key, params):
        weight = params["alexnet_cifar"]["features.8.weight"]
        assert abs(weight.std().item() / (2 / (384 * 9)) ** 0.5 - 1) < 0.01
        assert weight.mean((1, 2, 3)).abs().max() < 1e-8
        he = ALEXNET_CIFAR.replace(features=(Conv(500, 5, weight=HeNormal()), *ALEXNET_CIFAR.features[1:]))
        assert abs(af.init(key, he)["features.0.weight"].std().item() / (2 / 75) ** 0.5 - 1) < 0.02

    def test_activations_of_alexnet_cifar_keep_their_scale(self, params):
        x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        sizes = []

        def linear(at, x, weight, bias):
            y = torch.nn.functional.linear(x, weight, bias)
            sizes.append(y.std().item())
            return y

        af.model.walk(ALEXNET_CIFAR, params["alexnet_cifar"], x, None, {**af.model.PLAIN, af.arch.Linear: linear})
        assert all(0.05 < size < 5 for size in sizes), sizes

    def test_dtype_is_a_cast_of_the_same_draw(self, key, params):
        double = af.init(key, TINY, dtype=torch.float64)
        assert all(torch.equal(double[n], p.double()) for n, p in params["tiny"].items())

    def test_classes_follow_the_arch(self, key):
        assert af.init(key, ALEXNET_CIFAR.replace(num_classes=7))["classifier.6.bias"].shape == (7,)


def test_archs_are_what_their_names_say():
    kinds = [type(layer).__name__ for layer in ALEXNET_2012.features[:4]]
    assert kinds == ["Conv", "ReLU", "LRN", "MaxPool"]
    assert [type(layer).__name__ for layer in ALEXNET_2012.classifier] == [
        *("Linear", "ReLU", "Dropout"),
        *("Linear", "ReLU", "Dropout"),
        "Linear",
    ]
    assert isinstance(ALEXNET.classifier[0], Dropout)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")  # torch.func.linearize's own
def test_other_transforms_run_and_agree(params, key):
    p, batch = {n: t.double() for n, t in params["tiny"].items()}, images(TINY, 3, torch.float64)

    def loss(p):
        return af.loss_fn(p, batch, arch=TINY, key=key)

    v = {n: torch.randn_like(t) for n, t in p.items()}
    gradient = grad(loss)(p)
    along = sum((gradient[n] * v[n]).sum() for n in p)
    _, forward_mode = torch.func.jvp(loss, (p,), (v,))
    value, linear = torch.func.linearize(loss, p)
    torch.testing.assert_close(forward_mode, along)
    torch.testing.assert_close(linear(v), along)
    torch.testing.assert_close(value, loss(p))
    _, hvp = torch.func.jvp(grad(loss), (p,), (v,))
    step = 1e-6
    ahead, behind = (grad(loss)({n: t + s * step * v[n] for n, t in p.items()}) for s in (1, -1))
    for n in p:
        torch.testing.assert_close(hvp[n], (ahead[n] - behind[n]) / (2 * step), rtol=1e-4, atol=1e-6)


def test_activations_are_those_of_the_modules_layers(params):
    x, _ = images(TINY, 2, torch.float64)
    p = {n: t.double() for n, t in params["tiny"].items()}
    module = af.interop.to_module(p, TINY).eval()
    seen = {}
    for name, layer in module.named_modules():
        if name.startswith(("features.", "classifier.")):
            layer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out.clone()}))
    module(x)
    ours = af.model.activations(p, x, arch=TINY)
    assert set(ours) <= set(seen) | {"avgpool", "flatten"}
    assert list(ours)[-1] == "classifier.4"
    for name in ours.keys() & seen.keys():
        torch.testing.assert_close(ours[name], seen[name], rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_cuda_draws_the_same_masks(params, key):
    x, _ = images(TINY, 4, torch.float64)
    p = {n: t.double() for n, t in params["tiny"].items()}
    cuda = af.forward({n: t.cuda() for n, t in p.items()}, x.cuda(), arch=TINY, key=key.cuda())
    torch.testing.assert_close(cuda.cpu(), af.forward(p, x, arch=TINY, key=key), rtol=1e-10, atol=1e-12)
