"""The cipher of `threefry` as one kernel, for eager draws on CUDA: in tensor operations it is a hundred launches.

Imported where it is needed alone, since it imports Triton, which torch's CUDA build brings along.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Int32
from torch import Tensor

_BLOCK = 1024


def threefry2x32(
    k0: Int32[Tensor, "*#n"], k1: Int32[Tensor, "*#n"], x0: Int32[Tensor, "*#n"], x1: Int32[Tensor, "*#n"]
) -> tuple[Int32[Tensor, "*n"], Int32[Tensor, "*n"]]:
    """As `threefry.threefry2x32`, of tensors on one CUDA device; they broadcast.

    To what differentiates the caller the results are constants, as those of integer operations always are.
    """
    # Within `grad` even new tensors are wrapped, and a kernel needs the memory behind them.
    plain = [torch.func.debug_unwrap(t, recurse=True) for t in (k0, k1, x0, x1)]
    with torch._C._DisableFuncTorch(), torch.no_grad(), torch.cuda.device(k0.device):
        operands = [t.contiguous() for t in torch.broadcast_tensors(*plain)]
        results = torch.empty_like(operands[0]), torch.empty_like(operands[0])
        count = results[0].numel()
        if count:
            _cipher[(triton.cdiv(count, _BLOCK),)](*operands, *results, count, _BLOCK)
    return results


@triton.jit
def _cipher(k0, k1, x0, x1, y0, y1, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < count
    key0 = tl.load(k0 + index, inside).to(tl.uint32, bitcast=True)
    key1 = tl.load(k1 + index, inside).to(tl.uint32, bitcast=True)
    a = tl.load(x0 + index, inside).to(tl.uint32, bitcast=True) + key0
    b = tl.load(x1 + index, inside).to(tl.uint32, bitcast=True) + key1
    key2 = key0 ^ key1 ^ 0x1BD11BDA
    a, b = _four_rounds(a, b, 13, 15, 26, 6)
    a, b = a + key1, b + key2 + 1
    a, b = _four_rounds(a, b, 17, 29, 16, 24)
    a, b = a + key2, b + key0 + 2
    a, b = _four_rounds(a, b, 13, 15, 26, 6)
    a, b = a + key0, b + key1 + 3
    a, b = _four_rounds(a, b, 17, 29, 16, 24)
    a, b = a + key1, b + key2 + 4
    a, b = _four_rounds(a, b, 13, 15, 26, 6)
    a, b = a + key2, b + key0 + 5
    tl.store(y0 + index, a.to(tl.int32, bitcast=True), inside)
    tl.store(y1 + index, b.to(tl.int32, bitcast=True), inside)


@triton.jit
def _four_rounds(a, b, r0: tl.constexpr, r1: tl.constexpr, r2: tl.constexpr, r3: tl.constexpr):  # type: ignore[no-untyped-def]
    a += b
    b = ((b << r0) | (b >> (32 - r0))) ^ a
    a += b
    b = ((b << r1) | (b >> (32 - r1))) ^ a
    a += b
    b = ((b << r2) | (b >> (32 - r2))) ^ a
    a += b
    b = ((b << r3) | (b >> (32 - r3))) ^ a
    return a, b
