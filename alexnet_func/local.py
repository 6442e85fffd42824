"""Locally connected layers: at each of T positions of the output a linear layer of its own, on the patch u_t it sees.

An example's gradient by the weights of position t is the outer product `g_t u_t^T`, as a linear layer's is, so that
nothing of the T gradients need be formed for norms and products. Patches are [N, K, T, I] for N examples of K views, I
the values of a patch, and output gradients [N, K, T, O].
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from alexnet_func.layers import LocallyConnected
from alexnet_func.structure import Placed


def locally_connected(
    at: Placed,
    x: Float[Tensor, "*n c h w"],
    weight: Float[Tensor, "ho wo o c k k"],
    bias: Float[Tensor, "o ho wo"],
) -> Float[Tensor, "*n o ho wo"]:
    """Each position's patch times that position's weights, and its own bias."""
    by_position = weight.flatten(3).flatten(0, 1)  # [T, O, I]
    rows = patches(at, x).movedim(-2, 0)  # [T, *n, I]
    flat = rows if x.dim() == 4 else rows[:, None]
    products = (flat @ by_position.mT).movedim(0, -1)  # [n, O, T]
    return (products if x.dim() == 4 else products[0]).unflatten(-1, at.out_shape[1:]) + bias


def patches(at: Placed, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n t i"]:
    """What each position of the output sees, in the order of channels, rows and columns of the kernel."""
    layer: LocallyConnected = at.layer  # type: ignore[assignment]
    return F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).mT


def by_position(at: Placed, a: Tensor, g: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """Patches [N, K, T, I] and output gradients [N, K, T, O] of a layer's inputs and the gradients of its outputs."""
    count = len(a) // views
    u, flat = patches(at, a), g.flatten(2).mT
    return u.reshape(count, views, *u.shape[1:]), flat.reshape(count, views, *flat.shape[1:])


def weight_grads(u: Float[Tensor, "n k t i"], g: Float[Tensor, "n k t o"]) -> Float[Tensor, "n t o i"]:
    """Every example's own, summed over its views."""
    return g.movedim(1, -1) @ u.movedim(1, -2)


def weight_squares(u: Float[Tensor, "n k t i"], g: Float[Tensor, "n k t o"]) -> Float[Tensor, "n"]:
    """Their squared norms, `sum_t sum_kl (u_kt . u_lt)(g_kt . g_lt)`."""
    if u.shape[1] == 1:
        return (u.square().sum(-1) * g.square().sum(-1)).sum((1, 2))
    u, g = u.movedim(1, -2), g.movedim(1, -2)
    return ((u @ u.mT) * (g @ g.mT)).sum((1, 2, 3)).clamp(min=0)  # terms of both signs: a zero may come out as less


def weighted_weight_grad(u: Float[Tensor, "n k t i"], g: Float[Tensor, "n k t o"]) -> Float[Tensor, "t o i"]:
    """The sum over all examples and views of output gradients that are weighted already."""
    return g.flatten(0, 1).permute(1, 2, 0) @ u.flatten(0, 1).transpose(0, 1)


def sum_of_squares(u: Float[Tensor, "n k t i"], g: Float[Tensor, "n k t o"]) -> Float[Tensor, "t o i"]:
    """`sum_n g_n^2` of the weight gradients, element by element."""
    if u.shape[1] == 1:
        return weighted_weight_grad(u.square(), g.square())
    each = (weight_grads(own_u[None], own_g[None])[0].square() for own_u, own_g in zip(u, g, strict=True))
    return sum(each, start=u.new_zeros(u.shape[2], g.shape[-1], u.shape[-1]))


def weight_gram(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Float[Tensor, "n m"]:
    """The products of every example's weight gradient with every one of the other set, one position at a time."""
    (u, g), (v, h) = one, other
    total = u.new_zeros(len(u), len(v))
    for t in range(u.shape[2]):
        inputs = u[:, :, t].flatten(0, 1) @ v[:, :, t].flatten(0, 1).mT
        outputs = g[:, :, t].flatten(0, 1) @ h[:, :, t].flatten(0, 1).mT
        total = total + (inputs * outputs).view(len(u), u.shape[1], len(v), v.shape[1]).sum((1, 3))
    return total
