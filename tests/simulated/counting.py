"""Counts what a function asks of the simulated device. Nothing is computed: results are whatever lies in memory."""

import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_RUNTIME = ctypes.CDLL("libsimulatedcudart.so")
_NAMES = (
    *("launches", "captures", "replays", "copies_to_device", "copies_to_host", "copies_on_device"),
    *("synchronisations", "allocations", "instantiations", "event_synchronisations", "fills"),
)


def counts() -> dict[str, int]:
    """All that was counted since the process began."""
    numbers = (ctypes.c_long * len(_NAMES))()
    _RUNTIME.simulated_counts(numbers)
    return dict(zip(_NAMES, numbers, strict=True))


def counted(call: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What the call gives, and what it asked for: of the counts those that are not zero."""
    before = counts()
    result = call()
    return result, {name: n - before[name] for name, n in counts().items() if n != before[name]}


def layout(*operands: Tensor) -> torch.memory_format:
    """The layout that cuDNN chooses for a convolution's result."""
    last = [t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in operands]
    return torch.channels_last if any(last) and operands[0].dtype != torch.float64 else torch.contiguous_format


def _launch(times: int) -> None:
    for _ in range(times):
        _RUNTIME.simulated_launch()


def _convolution(x: Tensor, w: Tensor, b: Tensor | None, *how: Any) -> Tensor:
    shapes = (t if t is None else torch.empty_strided(t.shape, t.stride(), device="meta") for t in (x, w, b))
    _launch(1)
    shape = torch.ops.aten.convolution.default(*shapes, *how).shape
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x, w))


def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, biases: Any, *how: Any) -> tuple[Tensor | None, ...]:
    wanted = how[-1]
    _launch(sum(wanted))
    maps = [torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=layout(x, w)) for t in (x, w)]
    bias = x.new_empty(biases) if wanted[2] else None
    return maps[0] if wanted[0] else None, maps[1] if wanted[1] else None, bias


def _fft_r2c(x: Tensor, dims: list[int], normalization: int, onesided: bool) -> Tensor:
    _launch(1)
    shape = list(x.shape)
    shape[dims[-1]] = shape[dims[-1]] // 2 + 1 if onesided else shape[dims[-1]]
    return torch.empty(shape, dtype=x.dtype.to_complex(), device=x.device)


def _fft_c2r(x: Tensor, dims: list[int], normalization: int, last: int) -> Tensor:
    _launch(1)
    shape = list(x.shape)
    shape[dims[-1]] = last
    return torch.empty(shape, dtype=x.dtype.to_real(), device=x.device)


# There is no cuDNN or cuFFT to call, and jiterated kernels need a driver that compiles.
_LIBRARY = torch.library.Library("aten", "IMPL")
with warnings.catch_warnings(action="ignore"):
    _LIBRARY.impl("convolution", _convolution, "CUDA")
    _LIBRARY.impl("convolution_backward", _convolution_backward, "CUDA")
    _LIBRARY.impl("_fft_r2c", _fft_r2c, "CUDA")
    _LIBRARY.impl("_fft_c2r", _fft_c2r, "CUDA")
    _LIBRARY.impl("erfinv", lambda x: (_launch(1), torch.empty_like(x))[1], "CUDA")
