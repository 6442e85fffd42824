import functools
import gc
import inspect
import threading
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn.utils import parametrizations, parametrize, prune

import alexnet_func as af
from alexnet_func import interop
from alexnet_func.arch import ALEXNET, ALEXNET_CIFAR
from tests.conftest import ARCHS, TINY, images, within_budget


def test_torchvisions_alexnet_lifted_has_its_bits():
    module = torchvision.models.alexnet().eval()
    forward, params, buffers = interop.from_module(module)
    x = torch.randn(2, 3, 224, 224)
    assert torch.equal(forward(params, buffers, x), module(x))
    assert torch.equal(af.forward(params, x), module(x))
    assert buffers == {}


def test_any_module_lifts_with_its_buffers_and_per_sample_gradients_agree_with_a_loop():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).double()
    module(torch.randn(8, 3, 5, 5, dtype=torch.float64))  # gives the running statistics other values than 0 and 1
    forward, params, buffers = interop.from_module(module.eval())
    x, y = torch.randn(6, 3, 5, 5, dtype=torch.float64), torch.randint(5, (6,))
    assert torch.equal(forward(params, buffers, x), module(x))

    def loss(params, x, y):
        return af.losses.cross_entropy(forward(params, buffers, x[None]), y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
    for i in range(6):
        module.zero_grad()
        nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(each[name][i], p.grad)


def test_lifting_copies_so_that_training_the_module_changes_nothing():
    module = nn.Linear(3, 2)
    forward, params, buffers = interop.from_module(module)
    x = torch.randn(4, 3)
    before = forward(params, buffers, x)
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(forward(params, buffers, x), before)
    assert not any(p.requires_grad for p in params.values())


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    module = Tied()
    forward, params, buffers = interop.from_module(module)
    assert set(params) == {"first.weight", "first.bias", "second.bias"}
    x = torch.randn(4, 3)
    assert torch.equal(forward(params, buffers, x), module(x))


@pytest.mark.errors
def test_modules_in_training_mode_are_refused_by_name():
    with pytest.raises(ValueError, match=r"classifier\.0 \(Dropout\), classifier\.3 \(Dropout\); call module\.eval"):
        interop.from_module(torchvision.models.alexnet())
    with pytest.raises(ValueError, match=r"bn1 \(BatchNorm2d\), layer1\.0\.bn1"):
        interop.from_module(torchvision.models.resnet18())
    with pytest.raises(ValueError, match=r"LSTM \(LSTM\)"):
        interop.from_module(nn.LSTM(2, 3, num_layers=2, dropout=0.1))
    with pytest.raises(ValueError, match=r"_SpectralNorm"):
        interop.from_module(parametrizations.spectral_norm(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"1 \(Linear\); call module\.eval"):
        interop.from_module(nn.Sequential(nn.ReLU(), nn.utils.spectral_norm(nn.Linear(3, 3))))
    interop.from_module(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))  # pure in training mode too


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def symmetric():
    module = nn.Linear(3, 3)
    parametrize.register_parametrization(module, "weight", Symmetric())
    return module


def with_weight_norm(module, name="weight", dim=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, name, dim)


def pruned(method, **options):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    method(module[0], "weight", **options)
    prune.l1_unstructured(module[0], "weight", amount=1)
    prune.global_unstructured([(module[2], "weight"), (module[2], "bias")], prune.L1Unstructured, amount=4)
    return module


LIFTED = {
    "weight norm by a hook": lambda: nn.Sequential(with_weight_norm(nn.Linear(3, 3)), nn.Tanh()),
    "weight norm of the whole": lambda: nn.Sequential(with_weight_norm(nn.Linear(3, 3), dim=None), nn.Tanh()),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh()),
    "spectral norm by a hook": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)), nn.Tanh()),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Tanh()),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(3, 3)),
    "symmetric": symmetric,
    "pruned": lambda: pruned(prune.random_unstructured, amount=2),
    "pruned by structure": lambda: pruned(prune.ln_structured, amount=0.5, n=2, dim=0),
    "pruned by identity": lambda: pruned(prune.identity),
    "pruned by a mask": lambda: pruned(prune.custom_from_mask, mask=torch.eye(4, 3)),
    "a function": lambda: Holding(torch.sin),
    "a closure over something else": lambda: Holding(lambda x, two=2: two * x),
    "a bound method": lambda: Holding(None),
}


class Holding(nn.Module):
    """Applies a function that it holds as an attribute, by default a method of its own."""

    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.function = function or functools.partial(self.twice, times=2)

    def twice(self, x, times):
        return times * self.linear(x)

    def forward(self, x):
        return self.function(self.linear(x))


def first(output):
    return output[0] if isinstance(output, tuple) else output


def own_output(module, x):
    return first(module.requires_grad_(False)(x))  # for which torch takes other kernels, as for lifted parameters


def loop_of_gradients(make, x):
    """The module's own, an example a backward."""
    each = []
    for i in range(len(x)):
        module = make()
        first(module(x[i : i + 1])).square().sum().backward()
        each.append({name: p.grad for name, p in module.named_parameters()})
    return {name: torch.stack([g[name] for g in each]) for name in each[0]}


def live_tensors():
    gc.collect()
    return [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]


def remake(name):
    """The same module at every call, never run."""
    torch.manual_seed(1)
    return LIFTED[name]().double().eval()


@pytest.mark.parametrize("name", LIFTED)
def test_modules_of_every_kind_lift_and_their_derivatives_are_autograds(name):
    make = functools.partial(remake, name)
    forward, params, buffers = interop.from_module(make())
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = own_output(make(), x)
    for _ in range(2):
        assert torch.equal(first(forward(params, buffers, x)), expected)
    assert not first(forward(params, buffers, x)).requires_grad

    def loss(params, batch):
        return first(forward(params, buffers, batch[0][None])).square().sum()

    each = loop_of_gradients(make, x)
    assert set(params) == set(each)
    per_sample = af.per_sample.grads(params, (x,), loss_fn=loss)
    whole = grad(lambda p: first(forward(p, buffers, x)).square().sum())(params)
    for n, g in each.items():
        torch.testing.assert_close(per_sample[n], g)
        torch.testing.assert_close(whole[n], g.sum(0))
    if not name.startswith("weight norm"):  # of which torch has no forward derivative
        tangent = {n: torch.randn_like(p) for n, p in params.items()}
        _, directional = jvp(lambda p: first(forward(p, buffers, x)).square().sum(), (params,), (tangent,))
        torch.testing.assert_close(directional, sum((g * tangent[n]).sum() for n, g in whole.items()))
    torch.testing.assert_close(vmap(lambda x: first(forward(params, buffers, x[None]))[0])(x), expected)
    assert torch.equal(first(forward(params, buffers, x)), expected)


@pytest.mark.parametrize("name", LIFTED)
def test_the_original_is_left_alone_and_training_it_changes_nothing(name):
    module, x = remake(name), torch.randn(4, 3, dtype=torch.float64)
    module(x)
    before = [(part, dict(vars(part))) for part in module.modules()]
    forward, params, buffers = interop.from_module(module)
    expected = first(forward(params, buffers, x))
    grad(lambda p: first(forward(p, buffers, x)).sum())(params)
    for part, attributes in before:
        assert list(vars(part)) == list(attributes)
        assert all(vars(part)[n] is value for n, value in attributes.items())
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    assert torch.equal(first(forward(params, buffers, x)), expected)


def test_calls_leave_no_tensor_behind():
    lifted = [(*interop.from_module(remake(name)), torch.randn(4, 3, dtype=torch.float64)) for name in LIFTED]
    counts = []
    for _ in range(3):
        for forward, params, buffers, x in lifted:
            vmap(lambda x: grad(lambda p: first(forward(p, buffers, x[None])).sum())(params))(x)  # noqa: B023
            first(forward({n: p.clone().requires_grad_() for n, p in params.items()}, buffers, x)).sum().backward()
        counts.append(len(live_tensors()))
    assert counts[0] == counts[1] == counts[2]
    for forward, *_ in lifted:
        skeleton = next(
            cell.cell_contents
            for cell in inspect.unwrap(forward).__closure__
            if isinstance(cell.cell_contents, nn.Module)
        )
        held = [t for part in skeleton.modules() for t in vars(part).values() if isinstance(t, torch.Tensor)]
        assert all(t.grad_fn is None and torch.func.debug_unwrap(t) is t for t in held)


@pytest.mark.parametrize("wrap", [with_weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm])
def test_no_weight_is_held_twice(wrap):
    module = nn.Sequential(wrap(nn.Linear(200, 200))).eval()
    before = {id(t) for t in live_tensors()}
    forward, params, buffers = interop.from_module(module)
    held = sum(t.numel() for t in live_tensors() if id(t) not in before and t.device.type != "meta")
    assert held == sum(t.numel() for t in (*params.values(), *buffers.values()))
    assert torch.equal(forward(params, buffers, torch.ones(200)), module(torch.ones(200)))


class Neighbours(nn.Linear):
    """A layer of a graph network, whose sparse adjacency is a buffer or a plain attribute."""

    def __init__(self, registered):
        super().__init__(3, 3)
        adjacency = torch.eye(4).to_sparse()
        if registered:
            self.register_buffer("adjacency", adjacency)
        else:
            self.adjacency = adjacency

    def forward(self, x):
        return torch.sparse.mm(self.adjacency, super().forward(x))


@pytest.mark.parametrize("registered", [True, False])
def test_sparse_tensors_are_lifted_as_they_are(registered):
    module, x = Neighbours(registered).eval(), torch.randn(4, 3)
    forward, params, buffers = interop.from_module(module)
    torch.testing.assert_close(forward(params, buffers, x), module(x))
    ours = grad(lambda p: forward(p, buffers, x).square().sum())(params)
    module(x).square().sum().backward()
    torch.testing.assert_close(ours, {name: p.grad for name, p in module.named_parameters()})


RECURRENT = {
    "rnn": lambda: nn.RNN(3, 4, 2, batch_first=True),
    "gru": lambda: nn.GRU(3, 4, 2, batch_first=True),
    "lstm": lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
    "lstm with projections": lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True),
    "lstm with weight norm": lambda: parametrizations.weight_norm(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0"),
    "gru cell": lambda: nn.GRUCell(3, 4),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_modules_lift_with_their_gradients(name):
    module = RECURRENT[name]().double().eval()
    x = torch.randn(*([4, 3] if "cell" in name else [4, 5, 3]), dtype=torch.float64)
    forward, params, buffers = interop.from_module(module)
    ours = grad(lambda p: first(forward(p, buffers, x)).square().sum())(params)
    first(module(x)).square().sum().backward()
    torch.testing.assert_close(ours, {name: p.grad for name, p in module.named_parameters()})
    torch.testing.assert_close(first(forward(params, buffers, x)), own_output(module, x))


class Scaled(nn.Linear):
    """Makes a tensor from its weight once, for all its calls."""

    def __init__(self, make):
        super().__init__(3, 3)
        self.scale = make(self.weight)

    def forward(self, x):
        return super().forward(x) * first(self.scale)


@pytest.mark.errors
@pytest.mark.parametrize("make", [torch.exp, lambda w: w[0], lambda w: w.detach()[0]])
def test_a_tensor_made_from_parameters_once_may_be_held_but_not_used(make):
    forward, params, buffers = interop.from_module(nn.Sequential(Scaled(make)))
    for call in (forward, lambda p, b, x: grad(lambda p: forward(p, b, x).sum())(p)):
        with pytest.raises(ValueError, match="made of parameters before forward, which uses it: scale of Scaled"):
            call(params, buffers, torch.ones(3))
    forward, params, buffers = interop.from_module(Scaled(lambda w: w.detach().clone()[0]))
    assert forward(params, buffers, torch.ones(3)).shape == (3,)


@pytest.mark.errors
def test_what_cannot_be_lifted_is_refused_by_name():
    with pytest.raises(TypeError, match=r"module must be an nn\.Module, got function"):
        interop.from_module(first)
    with pytest.raises(ValueError, match=r"not initialised: 0\.weight, 0\.bias; call the module on an example first"):
        interop.from_module(nn.Sequential(nn.LazyLinear(3)))
    scripted = torch.jit.script(nn.Linear(3, 3))
    for module, name in ((scripted, "itself"), (nn.Sequential(nn.ReLU(), scripted), "1")):
        with pytest.raises(ValueError, match=rf"made by torch\.jit.*: {name}; lift the original module"):
            interop.from_module(module)
    locked = nn.Sequential(nn.ReLU())
    locked[0].lock = threading.Lock()
    with pytest.raises(ValueError, match=r"Sequential cannot be copied: cannot pickle '_thread\.lock'"):
        interop.from_module(locked)


@pytest.mark.errors
def test_a_lifted_forward_names_wrong_tensors():
    forward, params, buffers = interop.from_module(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"tensors of Linear: missing bias \[2\]; unexpected b \[2\]"):
        forward({"weight": params["weight"], "b": params["bias"]}, buffers, torch.zeros(3))


@pytest.mark.parametrize("arch", [*ARCHS, TINY], ids=lambda arch: arch.name)
def test_to_module_holds_the_params_and_computes_the_same(arch, key):
    params = af.init(key, arch)
    module = interop.to_module(params, arch)
    state = module.state_dict()
    assert list(state) == list(params)
    assert all(torch.equal(state[name], p) for name, p in params.items())
    assert not module.training
    x, _ = images(arch, 2)
    exact = af.forward({n: p.double() for n, p in params.items()}, x.double(), arch=arch)
    within_budget([af.forward(params, x, arch=arch)], [module(x).detach()], [exact])
    next(module.parameters()).data.zero_()
    assert params["features.0.weight"].any()


@pytest.mark.errors
def test_to_module_lists_what_is_wrong():
    with pytest.raises(ValueError, match=r"params of tiny: missing features\.0\.weight"):
        interop.to_module({}, TINY)


class TestLoadTorchvision:
    """Published weights need a download; what a file holds goes the same way after it."""

    def test_a_saved_state_dict(self, tmp_path):
        module = torchvision.models.alexnet(num_classes=7).eval()
        torch.save(module.state_dict(), tmp_path / "weights.pth")
        params = interop.load_torchvision(tmp_path / "weights.pth")
        x = torch.randn(1, 3, 224, 224)
        assert torch.equal(af.forward(params, x, arch=ALEXNET.replace(num_classes=7)), module(x))

    def test_published_names_go_to_torchvision(self, monkeypatch):
        weights = torchvision.models.AlexNet_Weights.IMAGENET1K_V1
        state = torchvision.models.alexnet().state_dict()
        asked = []

        def get_state_dict(self, **options):
            asked.append((self, options))
            return state

        monkeypatch.setattr(type(weights), "get_state_dict", get_state_dict)
        for name in ("DEFAULT", "IMAGENET1K_V1", weights):
            params = interop.load_torchvision(name)
            assert torch.equal(params["features.0.weight"], state["features.0.weight"])
        assert asked == [(weights, {"progress": True, "check_hash": True})] * 3

    @pytest.mark.errors
    def test_a_failed_download_says_where_the_file_belongs(self, monkeypatch):
        weights = torchvision.models.AlexNet_Weights.DEFAULT

        def fail(self, **_options):
            raise OSError("no route to host")

        monkeypatch.setattr(type(weights), "get_state_dict", fail)
        with pytest.raises(
            OSError, match=r"no weights from https.*alexnet.*no route to host.*put the file into .*checkp"
        ):
            interop.load_torchvision("DEFAULT")

    @pytest.mark.errors
    def test_what_is_not_there_or_something_else(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="neither a file nor the name of torchvision's AlexNet weights"):
            interop.load_torchvision("IMAGENET1K_V9")
        (tmp_path / "text.pth").write_text("epoch 1")
        with pytest.raises(ValueError, match=r"text\.pth is not a state dict that loads without running code"):
            interop.load_torchvision(tmp_path / "text.pth")
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="holds a list, not a state dict"):
            interop.load_torchvision(tmp_path / "list.pth")
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
        with pytest.raises(ValueError, match=r"resnet\.pth: missing features\.0\.weight \[64, 3, 11, 11\]"):
            interop.load_torchvision(tmp_path / "resnet.pth")


@pytest.mark.parametrize("arch", [ALEXNET_CIFAR, TINY], ids=lambda arch: arch.name)
def test_exports_compute_the_same_for_any_batch(arch, key, tmp_path):
    params = af.init(key, arch)
    interop.export(params, tmp_path / "net.pt2", arch)
    interop.export(params, tmp_path / "net.onnx", arch)
    program = torch.export.load(tmp_path / "net.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for n in (1, 5):
        x, _ = images(arch, n)
        expected = af.forward(params, x, arch=arch)
        torch.testing.assert_close(program(x), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(session.run(["logits"], {"x": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.errors
def test_export_to_an_unknown_suffix(key, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.pt2 or \.onnx, got .*net\.pb"):
        interop.export(af.init(key, TINY), tmp_path / "net.pb", TINY)
