import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import alexnet_func

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# What a user may write; the ignored line is one that a checker finds wrong only if it sees the package's types.
PROGRAM = """
import functools

import torch
from torch import Tensor
from torch.func import grad

import alexnet_func as af

key, init_key = af.random.split(af.random.key(0))
arch = af.arch.ALEXNET_CIFAR.replace(num_classes=7)
params = af.init(init_key, arch)
batch = (af.random.uniform(key, (4, 3, 32, 32)), torch.arange(4))
loss = functools.partial(af.loss_fn, arch=arch)

logits: Tensor = af.forward(params, batch[0], arch=arch, key=key)
grads: dict[str, Tensor] = grad(loss)(params, batch)
wrong: int = af.forward(params, batch[0], arch=arch)  # type: ignore[assignment]

optimizer = af.optim.sgd(0.01, momentum=0.9)
step = af.train.make_step(loss, optimizer)
state = af.train.create_state(params, optimizer, key=key)
state, metrics = step(state, batch)
trained: dict[str, Tensor] = state.params

norms: Tensor = af.per_sample.norms(trained, batch, arch=arch)
total, before = af.per_sample.clipped_sum(trained, batch, 1.0, arch=arch)
print(f"loss {metrics['loss']:.1f}, {len(norms)} norms, {len(total)} sums, version {af.__version__}")
"""

NOT_INSTALLED = """
from importlib import metadata

known = metadata.version

def version(name):
    if name == "alexnet_func":
        raise metadata.PackageNotFoundError(name)
    return known(name)

metadata.version = version
import alexnet_func

print(alexnet_func.__version__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, as hatchling builds them."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder into which the wheel is installed, and an environment in which Python and mypy look there first."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options, str(built[0])]
    subprocess.run(command, capture_output=True, check=True)
    return folder, {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_import_loads_torch_and_nothing_heavy():
    heavy = {"torchvision", "matplotlib", "sklearn", "jax", "tyro", "rich", "onnx", "scipy", "torch._dynamo"}
    code = f"import sys, alexnet_func; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_import_exposes_the_rooms():
    import alexnet_func as af

    rooms = {"arch", "checkpoint", "data", "interop", "losses", "model", "ops", "optim", "random", "train"}
    assert rooms <= set(vars(af))
    assert af.init is af.model.init
    assert af.forward is af.model.forward
    assert af.loss_fn is af.losses.loss_fn


def test_the_wheel_holds_alexnet_func_alone_with_its_types_and_licence(built):
    names = zipfile.ZipFile(built[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"alexnet_func"}
    assert "alexnet_func/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_the_wheel_is_made_of(built):
    wheel = {name for name in zipfile.ZipFile(built[0]).namelist() if name.startswith("alexnet_func/")}
    with tarfile.open(built[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    assert wheel | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= names


def test_the_installed_wheel_runs_from_elsewhere(installed, program, tmp_path):
    folder, environment = installed
    code = "import alexnet_func; alexnet_func.forward; print(alexnet_func.__file__)"
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    run = subprocess.run([sys.executable, "-c", code], **options)
    assert Path(run.stdout.strip()) == folder / "alexnet_func" / "__init__.py"
    run = subprocess.run([sys.executable, str(program)], **options)
    assert run.stdout == f"loss 1.9, 4 norms, 16 sums, version {VERSION}\n"


def test_the_version_is_that_of_the_project():
    assert alexnet_func.__version__ == VERSION
    citation = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {VERSION}" in citation
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_folder_that_is_not_installed_has_a_version_too():
    run = subprocess.run([sys.executable, "-c", NOT_INSTALLED], capture_output=True, text=True, check=True)
    assert run.stdout == "0.0.0+unknown\n"


def test_a_users_program_passes_mypy_strict(installed, program, tmp_path):
    cache = ROOT / ".mypy_cache" / "strict"  # of torch, which takes half a minute to read the first time
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cache)]
    run = subprocess.run([*command, str(program)], cwd=tmp_path, env=installed[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_a_users_program_passes_pyright(installed, program, tmp_path):
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(installed[0])]}))
    command = ["pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
