"""In what precision float32 matrix products and convolutions run on CUDA, and how to change it for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cuda


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Within the block float32 products and convolutions on CUDA may (True) or may not (False) round to TF32.

    None leaves the flags as they are. Restores every flag it changes; a CPU computes in float32 either way.
    """
    if allowed is None:
        yield
        return
    # torch holds this twice, as legacy booleans and as per-operator strings, and raises where the two disagree: the
    # booleans are set while they are readable, and on the way out the strings again, which "none" needs.
    cudnn: Any = torch.backends.cudnn  # its attributes are made at run time
    operators = (cuda.matmul, cudnn.conv, cudnn.rnn)
    strings = [op.fp32_precision for op in operators]
    booleans = _booleans()
    try:
        if booleans is None:
            _set_strings(operators, ["tf32" if allowed else "ieee"] * len(operators))
        else:
            _set_booleans(allowed, allowed)
        yield
    finally:
        if booleans is not None:
            _set_booleans(*booleans)
        _set_strings(operators, strings)


def _booleans() -> tuple[bool, bool] | None:
    try:
        return cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_booleans(matmul: bool, convolution: bool) -> None:
    cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolution


def _set_strings(operators: tuple, values: list[str]) -> None:
    for operator, value in zip(operators, values, strict=True):
        operator.fp32_precision = value
