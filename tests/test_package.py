import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


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


def test_the_wheel_holds_alexnet_func_alone(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"alexnet_func"}
