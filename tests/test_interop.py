import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from torch.func import grad, vmap

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
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"_SpectralNorm"):
        interop.from_module(spectral)
    interop.from_module(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))  # pure in training mode too


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
