import functools
import os
import shutil
import signal

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, settings

import alexnet_func as af
from alexnet_func.arch import (
    LRN,
    Arch,
    AvgPool,
    Constant,
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

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the JAX whose bits are promised; on a GPU its uniforms round otherwise

ARCHS = [af.arch.get(name) for name in ("alexnet", "alexnet_2012", "caffenet", "alexnet_cifar", "alexnet_small")]

# Every kind of layer of the four networks, small enough to compile and to difference numerically.
TINY = Arch(
    name="tiny",
    image_size=15,
    num_classes=5,
    pooled_size=2,
    features=(
        *(Conv(8, 3, stride=2, padding=1, weight=HeNormal(), bias=Constant(0.1)), ReLU()),
        *(LRN(5, 1e-2, 0.75, 2.0, "sum"), MaxPool(3, 2, ceil_mode=True)),
        *(Conv(12, 3, padding=1, groups=2, weight=HeNormal()), ReLU()),
    ),
    classifier=(Dropout(0.3), Linear(16), ReLU(), Dropout(0.5), Linear(None, weight=Normal(0.3))),
)

# Every kind of layer that the networks of 2011 and 2012 have besides.
OLD = Arch(
    name="old",
    image_size=12,
    num_classes=4,
    features=(
        *(ZeroPad(0, 1), Conv(6, 4, stride=2, weight=HeNormal()), LRN(3, 0.1, 0.75, 2.0, "mean", groups=2), Tanh()),
        *(WithinChannelLRN(3, 0.2, 0.75, 1.0, "mean"), AvgPool(3, 2, ceil_mode=True)),
        *(LocallyConnected(5, 2, padding=1, weight=HeNormal()), ReLU(), LocallyConnected(3, 3, stride=2), Tanh()),
    ),
    classifier=(Dropout(0.3, "classic"), Linear(6), ReLU(), Dropout(0.5, "classic"), Linear(None, weight=Normal(0.3))),
)

# A test is right or wrong, however slow the machine is; the whole suite has its limit.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_collection_modifyitems(items):
    without = []
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        without.append(("compiled", "torch.compile needs a C++ compiler, and there is no g++ or clang++"))
    if not torch.cuda.is_available():
        without.append(("gpu", "no CUDA device"))
    for item in items:
        for marker, reason in without:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _heard():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores Ctrl-C
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and what it starts with nohup this


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)  # of the tests' own inputs: a failure can be run again


@pytest.fixture
def two_that_send_nothing():
    """Within the test this process is rank 0 of two, of whom nobody hears anything."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", rank=0, world_size=2, store=fake.FakeStore())
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def key():
    return af.random.key(2012)


def images(arch, n, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, arch.in_channels, arch.image_size, arch.image_size)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(arch.num_classes, (n,), generator=generator)


def tiny_loss(params, batch, *, key=None):
    return af.loss_fn(params, batch, arch=TINY, key=key)


tiny_forward = functools.partial(af.forward, arch=TINY)


def rms(tensors):
    values = torch.cat([t.double().flatten() for t in tensors])
    return values.square().mean().sqrt().item()


def within_budget(ours, reference, exact, k=2.0):
    """rmse(ours, float64) <= k * rmse(reference, float64) + unit roundoff * rms(float64), by tensor."""
    for o, r, e in zip(ours, reference, exact, strict=True):
        roundoff = torch.finfo(o.dtype).eps / 2
        assert rms([o.double() - e]) <= k * rms([r.double() - e]) + roundoff * rms([e])
