"""In what precision float32 matrix products and convolutions run on CUDA, and how to change it for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Within the block float32 products and convolutions on CUDA may (True) or may not (False) round to TF32.

    None leaves the flags as they are. Restores every flag it changes.
    """
    if allowed is None:
        yield
        return
    # torch keeps this twice, in global settings and as a string for each operator, and a getter of the first raises
    # where the two disagree. So the global ones are set while they can be read, and on the way out the strings again.
    backends: Any = torch.backends  # some attributes are made at run time
    operators = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    strings = [op.fp32_precision for op in operators]
    settings = _global_settings()
    try:
        if settings is None:
            for operator in operators[:3]:
                operator.fp32_precision = "tf32" if allowed else "ieee"
        else:
            _set_globally("high" if allowed else "highest", allowed)
        yield
    finally:
        if settings is not None:
            _set_globally(*settings)
        for operator, string in zip(operators, strings, strict=True):
            operator.fp32_precision = string


def _global_settings() -> tuple[str, bool] | None:
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_globally(matmul: str, convolution: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
