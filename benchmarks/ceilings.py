"""What this machine can do at most, measured: a product of matrices, a convolution, a copy."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import alexnet_func as af
from alexnet_func import _onednn
from alexnet_func.arch import Arch, Conv, Linear, LocallyConnected, Placed, param_shapes, place
from benchmarks import timing


class Ceilings(NamedTuple):
    """Multiply-accumulates a second by products of matrices and by convolutions, and bytes a second read and written by
    a copy: the best of several calls of shapes that suit the machine.
    """

    matmul: float
    convolution: float
    copy: float


@functools.cache
def measure(device: str, precision: af.train.Precision = "float32") -> Ceilings:
    """On large square matrices, on 3x3 convolutions of 256 channels in both memory formats, and on 256 MiB.

    Matrices by torch's own route and by the one that compiled steps take here.
    """
    with af.precision.tf32(precision == "tf32"):
        return _measure(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _measure(device: str, dtype: torch.dtype) -> Ceilings:
    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, dtype=dtype)

    side, n = (2048, 32) if device == "cpu" else (8192, 1024)
    a, b = drawn(side, side), drawn(side, side)
    x, w = drawn(n, 256, 27, 27), drawn(256, 256, 3, 3)
    x_last, w_last = (t.to(memory_format=torch.channels_last) for t in (x, w))
    source = torch.rand(64 << 20, device=device)
    target = torch.empty_like(source)
    calls = {
        "matmul": lambda: a @ b,
        "convolution": lambda: F.conv2d(x, w, padding=1),
        "convolution, channels_last": lambda: F.conv2d(x_last, w_last, padding=1),
        "copy": lambda: target.copy_(source),
    }
    if device == "cpu" and dtype == torch.float32 and _onednn.pays():
        calls["matmul, oneDNN"] = lambda: torch.ops.alexnet_func.onednn_mm(a, b, None)
    best = {name: timed.best for name, timed in timing.interleaved(calls, device=device).items()}
    matmul, convolution = (
        min(seconds for name, seconds in best.items() if name.startswith(kind)) for kind in ("matmul", "convolution")
    )
    return Ceilings(side**3 / matmul, x.numel() * 256 * 9 / convolution, 2 * source.nbytes / best["copy"])


def describe(ceilings: Ceilings) -> str:
    """In the units machines are sold by: two operations for each multiply-accumulate."""
    rates = (2 * ceilings.matmul / 1e9, 2 * ceilings.convolution / 1e9, ceilings.copy / 1e9)
    return "measured at most: {:,.0f} GFLOP/s matmul, {:,.0f} GFLOP/s convolution, {:,.1f} GB/s copy".format(*rates)


def forward_seconds(arch: Arch, n: int, ceilings: Ceilings) -> float:
    """What the layers' products would take at the measured rates; nothing for activations and pooling."""
    macs = _macs(arch)
    return n * (sum(macs[Conv]) / ceilings.convolution + sum(macs[Linear]) / ceilings.matmul)


def step_seconds(arch: Arch, n: int, ceilings: Ceilings) -> float:
    """Products forward, by weights and by inputs (which the first layer does not need), and one pass over float32
    parameters, momentum and gradients: three read and two written.
    """
    first = _macs(arch)[Conv][0]
    moved = 5 * 4 * sum(math.prod(shape) for shape in param_shapes(arch).values())
    products = 3 * forward_seconds(arch, n, ceilings) - n * first / ceilings.convolution
    return products + moved / ceilings.copy


def step_operations(arch: Arch) -> int:
    """Floating-point operations of a training step, an image: two for each multiply-accumulate of its products."""
    macs = _macs(arch)
    return 2 * (3 * (sum(macs[Conv]) + sum(macs[Linear])) - macs[Conv][0])


def macs(at: Placed, weight: Sequence[int]) -> int:
    """Multiply-accumulates of one image in a layer whose weight has that shape."""
    shared = not isinstance(at.layer, LocallyConnected)  # there each weight serves one position
    return math.prod(weight) * (math.prod(at.out_shape[1:]) if shared else 1)


def _macs(arch: Arch) -> dict[type, list[int]]:
    """Multiply-accumulates of one image's forward pass, a layer each; what is not shared counts as convolution."""
    found: dict[type, list[int]] = {Conv: [], Linear: []}
    shapes = param_shapes(arch)
    for at in place(arch, (arch.in_channels, arch.image_size, arch.image_size)):
        if f"{at.name}.weight" in shapes:
            found[Linear if isinstance(at.layer, Linear) else Conv].append(macs(at, shapes[f"{at.name}.weight"]))
    return found
