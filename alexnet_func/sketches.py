"""Random projections of gradients that are never stored: count sketches, of a matrix from the two factors it has.

Entry (i, j) of a matrix goes, with the sign `s(i) s'(j)`, into the bucket `(h(i) + h'(j)) mod dim` (Charikar et al.
2002; Pham and Pagh 2013, "TensorSketch"). The sketch of an outer product `g a^T` is then the circular convolution of a
sketch of g with one of a, so that a linear layer's gradient costs its two factors. Products are kept on average over
keys, `E <z, z'> = <x, x'>`, with a variance of at most `8 |x|^2 |x'|^2 / dim`, and 2 instead of 8 for most.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from alexnet_func import checks, factors, random, tape
from alexnet_func.arch import Linear
from alexnet_func.factors import Factors

# Values of a convolution's gradients that are formed at once: 64 MB of float32.
_FORMED = 1 << 24


class Hash(NamedTuple):
    """The buckets and signs of a matrix' rows, the signs of its columns, and the shift of each `dim` of those."""

    rows: Int64[Tensor, "r"]
    row_signs: Float[Tensor, "r"]
    column_signs: Float[Tensor, "c"]
    shifts: Int64[Tensor, "blocks"]


def hashes(key: random.Key, rows: int, columns: int, dim: int) -> Hash:
    """Drawn for a matrix of so many rows and columns. Columns keep their order: `dim` neighbours never collide."""
    blocks = -(-columns // dim)
    words = random.bits(key, (rows + columns + blocks,)).long()  # of which one bit is a sign, the others a bucket
    row_signs, column_signs, _ = (1 - 2 * (words & 1)).float().split([rows, columns, blocks])
    row_buckets, _, shifts = ((words >> 1) % dim).split([rows, columns, blocks])
    return Hash(row_buckets, row_signs, column_signs, shifts)


def of_layers(
    key: random.Key, dim: int, layers: Mapping[str, Factors], names: Collection[str]
) -> Float[Tensor, "n dim"]:
    """The sketch of every example's gradient by the parameters of these names, from their layers' factors.

    It is that of `of_tensors`.
    """
    parts = []
    for i, name in enumerate(sorted(names)):
        layer, _, kind = name.rpartition(".")
        f, own = layers[layer], random.fold_in(key, i)
        if kind == "bias":
            parts.append(of_tensor(own, factors.bias_grads(f), dim))
        elif isinstance(f.at.layer, Linear):
            parts.append(_of_outer_products(f, hashes(own, f.g.shape[-1], f.a.shape[-1], dim), dim))
        else:
            formed = (factors.weight_grads(some) for some in factors.some_at_a_time(f, _FORMED))
            parts.append(torch.cat([of_tensor(own, grads, dim) for grads in formed]))
    return torch.stack(parts).sum(0)


def of_tensors(key: random.Key, dim: int, grads: Mapping[str, Float[Tensor, "n ..."]]) -> Float[Tensor, "n dim"]:
    """The sum of every tensor's own sketch, whose key is folded by its place among the sorted names."""
    return torch.stack([of_tensor(random.fold_in(key, i), grads[n], dim) for i, n in enumerate(sorted(grads))]).sum(0)


def of_tensor(key: random.Key, x: Float[Tensor, "n ..."], dim: int) -> Float[Tensor, "n dim"]:
    """The sketch of every row's tensor as a matrix of its first axis by the others; a vector is one row."""
    matrix = x[:, None] if x.dim() == 2 else x.view(len(x), 1, 1) if x.dim() == 1 else x.flatten(2)
    hashed = hashes(key, matrix.shape[1], matrix.shape[2], dim)
    if len(hashed.shifts) == 1 and checks.visible(hashed.rows) is not None and not tape.watched(x, hashed.rows):
        return _row_by_row(matrix, hashed, dim)
    columns = _columns(matrix, hashed, dim) * hashed.row_signs[:, None].to(x.dtype)
    buckets = (hashed.rows[:, None] + torch.arange(columns.shape[-1], device=x.device)) % dim
    return x.new_zeros(len(x), dim).index_add(1, buckets.flatten(), columns.flatten(1))


def _of_outer_products(f: Factors, hashed: Hash, dim: int) -> Tensor:
    if not len(f.g):  # which MKL's transform does not take
        return f.g.new_zeros(0, dim)
    outputs = f.g.new_zeros(len(f.g), dim).index_add(1, hashed.rows, f.g * hashed.row_signs.to(f.g.dtype))
    inputs = _columns(f.a, hashed, dim)
    product = torch.fft.rfft(outputs) * torch.fft.rfft(inputs, n=dim)
    by_example = product if f.views == 1 else product.unflatten(0, (-1, f.views)).sum(1)
    return torch.fft.irfft(by_example, n=dim)


def _columns(x: Float[Tensor, "*s c"], hashed: Hash, dim: int) -> Float[Tensor, "*s d"]:
    """Each column in its bucket; at most `dim` of them stay where they are."""
    signed = x * hashed.column_signs.to(x.dtype)
    blocks = len(hashed.shifts)
    if blocks == 1:
        return signed
    padded = F.pad(signed, (0, blocks * dim - x.shape[-1])).unflatten(-1, (blocks, dim))
    sources = (torch.arange(dim, device=x.device) - hashed.shifts[:, None]) % dim
    return padded.gather(-1, sources.expand_as(padded)).sum(-2)


def _row_by_row(matrix: Float[Tensor, "n r c"], hashed: Hash, dim: int) -> Float[Tensor, "n dim"]:
    """Each row's columns from its bucket on, around the end: by slices, on a CPU five times as fast as by entries."""
    width = matrix.shape[-1]
    signs = hashed.column_signs.to(matrix.dtype)
    total = matrix.new_zeros(len(matrix), dim + width)
    for i, (start, sign) in enumerate(zip(hashed.rows.tolist(), hashed.row_signs.tolist(), strict=True)):
        total[:, start : start + width].addcmul_(matrix[:, i], signs, value=sign)
    return total[:, :dim] + F.pad(total[:, dim:], (0, dim - width))
