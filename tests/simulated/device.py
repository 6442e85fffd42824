"""Builds the simulated device, and runs Python with it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent


def missing() -> str | None:
    """What this machine lacks for it; None: nothing."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the simulated device is for Linux on x86-64"
    if torch.version.cuda is None:
        return "the simulated device goes under torch's CUDA build"
    if shutil.which("cc") is None:
        return "the simulated device needs a C compiler, and there is no cc"
    headers = _headers()
    if not headers or "CUDART_VERSION 13" not in " ".join((headers[0] / "cuda_runtime_api.h").read_text().split()):
        return "the simulated device needs the headers of CUDA 13, which torch's dependencies bring along"
    return None


def build(folder: Path) -> Path:
    """Compiles the stand-ins into the folder, which it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    for library, sources, options in (
        ("libsimulatedcudart.so", ("runtime.c", "unused_runtime.c"), ["-lpthread"]),
        ("libcuda.so.1", ("driver.c", "unused_driver.c"), ["-Wl,-soname,libcuda.so.1"]),
    ):
        files = [str(_HERE / source) for source in sources]
        flags = ["-shared", "-fPIC", "-O1", "-w", *(f"-I{folder}" for folder in _headers())]
        subprocess.run(["cc", *flags, "-o", str(folder / library), *files, "-ldl", *options], check=True)
    return folder


def run(
    arguments: Sequence[str], built: Path, *, computing: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """`python *arguments` in the repository's root, with one simulated H100; its output is captured as one text."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env={**os.environ, **_environment(built, computing), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _environment(built: Path, computing: bool) -> dict[str, str]:
    paths = [str(built), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    common = {
        "LD_PRELOAD": str(built / "libsimulatedcudart.so"),
        "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "TRITON_LIBCUDA_PATH": str(built),
        "TRITON_CACHE_DIR": str(built / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(built / ("inductor-computing" if computing else "inductor")),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
    }
    return common | ({"TRITON_INTERPRET": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"} if computing else {})


def _headers() -> list[Path]:
    """Where CUDA's headers lie: in NVIDIA's wheel of the runtime, and in Triton's, which has those of its compiler."""
    found = []
    for package, folder in (("nvidia", "cu13/include"), ("triton", "backends/nvidia/include")):
        spec = importlib.util.find_spec(package)
        roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
        found += [Path(root) / folder for root in roots]
    return [folder for folder in found if (folder / "cuda_runtime_api.h").is_file()]
