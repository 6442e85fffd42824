"""The transforms, each as a route by torch and a value found without it: from plain calls of the function alone.

A function here takes a point t, float64 [K], and a key [2], and gives float64 [M]. Derivatives come from central
differences of it, what maps from a loop, what traces from the function itself at another point than the traced one.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import alexnet_func as af

Function = Callable[[Tensor, Tensor], Tensor]

MAPPED = 3
# Between the points that differences are taken from no ReLU and no maximum may change sides: hence so near.
_FIRST, _SECOND = 1e-4, 3e-4


class Given(NamedTuple):
    """A function and what all routes use: points [MAPPED, K] and keys [MAPPED, 2], weights [M], a direction [K].

    `values` [MAPPED, M], `slopes` [MAPPED, M, K] and `curvatures` [M, K, K], at the first point, are found by calls
    of the function alone, when they are asked for.
    """

    function: Function
    points: Tensor
    keys: Tensor
    weights: Tensor
    direction: Tensor
    values: Callable[[], Tensor]
    slopes: Callable[[], Tensor]
    curvatures: Callable[[], Tensor]

    @property
    def at(self) -> Tensor:
        """The point where derivatives are taken."""
        return self.points[0]

    def weighted(self, t: Tensor) -> Tensor:
        """A scalar function: the weighted sum of the outputs under the first key."""
        return self.function(t, self.keys[0]) @ self.weights

    def plain(self, t: Tensor) -> Tensor:
        """The function under the first key."""
        return self.function(t, self.keys[0])

    def mapped_sum(self, points: Tensor) -> Tensor:
        """A scalar function of all points: of the sum over a vmap."""
        return (vmap(self.function)(points, self.keys) @ self.weights).sum()


class Transform(NamedTuple):
    """`route` gives what torch computes, `value` what must come out; derivatives of `order` are differences."""

    route: Callable[[Given], Tensor]
    value: Callable[[Given], Tensor]
    order: int


def given(function: Function, size: int, outputs: int, *, seed: int = 11) -> Given:
    """Points near 0, where a subject's own arguments lie."""
    point_key, weight_key, direction_key, key = af.random.split(af.random.key(seed), 4).unbind()
    keys = af.random.split(key, MAPPED)
    points = 0.2 * af.random.normal(point_key, (MAPPED, size)).double()
    weights = af.random.normal(weight_key, (outputs,)).double()
    direction = af.random.normal(direction_key, (size,)).double()

    def each(of: Callable[[Function, Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        return functools.cache(lambda: torch.stack([of(function, t, k) for t, k in zip(points, keys, strict=True)]))

    return Given(
        function,
        points,
        keys,
        weights,
        direction,
        each(lambda f, t, key: f(t, key).detach()),
        each(_slopes),
        functools.cache(lambda: _curvatures(function, points[0], keys[0])),
    )


def _slopes(function: Function, t: Tensor, key: Tensor) -> Tensor:
    """[M, K], by differences of fourth order."""

    def along(v: Tensor) -> Tensor:
        near, far = (function(t + h * v, key) - function(t - h * v, key) for h in (_FIRST, 2 * _FIRST))
        return (8 * near - far).detach() / (12 * _FIRST)

    return torch.stack([along(v) for v in torch.eye(len(t), dtype=t.dtype)], -1)


def _curvatures(function: Function, t: Tensor, key: Tensor) -> Tensor:
    """[M, K, K], by differences of second order."""
    steps = _SECOND * torch.eye(len(t), dtype=t.dtype)

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        across = function(t + a + b, key) - function(t + a - b, key) - function(t - a + b, key)
        return (across + function(t - a - b, key)).detach() / (4 * _SECOND**2)

    return torch.stack([torch.stack([mixed(a, b) for a in steps], -1) for b in steps], -1)


def _autograd(g: Given) -> Tensor:
    t = g.at.clone().requires_grad_()
    g.weighted(t).backward()
    assert t.grad is not None
    return t.grad


def _compiled_gradient(g: Given) -> Tensor:
    def gradient(t: Tensor) -> Tensor:
        return grad(g.weighted)(t)

    torch.compiler.reset()  # Dynamo counts recompilations by code object, and this one compiles for all
    return torch.compile(gradient, fullgraph=True, dynamic=False, backend="aot_eager")(g.at)


class _Module(torch.nn.Module):
    """What torch.export takes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, t: Tensor) -> Tensor:
        """The function."""
        return self.function(t)


def _exported(g: Given) -> Tensor:
    # Strictly, that is by Dynamo: the other tracer of torch.export knows no grad inside.
    return torch.export.export(_Module(g.plain), (g.points[1],), strict=True).module()(g.at)


TRANSFORMS: Mapping[str, Transform] = {
    "grad": Transform(lambda g: grad(g.weighted)(g.at), lambda g: g.weights @ g.slopes()[0], 1),
    "vjp": Transform(lambda g: vjp(g.plain, g.at)[1](g.weights)[0], lambda g: g.weights @ g.slopes()[0], 1),
    "jvp": Transform(lambda g: jvp(g.plain, (g.at,), (g.direction,))[1], lambda g: g.slopes()[0] @ g.direction, 1),
    "vmap": Transform(lambda g: vmap(g.function)(g.points, g.keys), lambda g: g.values(), 0),
    "grad(grad)": Transform(
        lambda g: grad(lambda t: grad(g.weighted)(t) @ g.direction)(g.at),
        lambda g: torch.tensordot(g.weights, g.curvatures(), 1) @ g.direction,
        2,
    ),
    "vmap(grad)": Transform(
        lambda g: vmap(grad(lambda t, key: g.function(t, key) @ g.weights))(g.points, g.keys),
        lambda g: g.weights @ g.slopes(),
        1,
    ),
    "grad(vmap)": Transform(lambda g: grad(g.mapped_sum)(g.points), lambda g: g.weights @ g.slopes(), 1),
    "jacrev": Transform(lambda g: jacrev(g.plain)(g.at), lambda g: g.slopes()[0], 1),
    "jacfwd": Transform(lambda g: jacfwd(g.plain)(g.at), lambda g: g.slopes()[0], 1),
    "hessian": Transform(
        lambda g: hessian(g.weighted)(g.at), lambda g: torch.tensordot(g.weights, g.curvatures(), 1), 2
    ),
    "autograd": Transform(_autograd, lambda g: g.weights @ g.slopes()[0], 1),
    "compile(grad)": Transform(_compiled_gradient, lambda g: g.weights @ g.slopes()[0], 1),
    "make_fx": Transform(lambda g: make_fx(lambda t: g.plain(t))(g.points[1])(g.at), lambda g: g.values()[0], 0),
    "functionalize": Transform(lambda g: functionalize(g.plain)(g.at), lambda g: g.values()[0], 0),
    "export": Transform(_exported, lambda g: g.values()[0], 0),
}


OUTPUTS = 2


def readout(tree: Any) -> Tensor:
    """Fixed weighted sums of all numbers in a tree of tensors, float64 [OUTPUTS]: a small output that hides nothing.

    Integers beside floating tensors are left out: a key's bits would drown the rest.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    leaves = [leaf for leaf in leaves if leaf.is_floating_point()] or leaves
    sums = [
        wave((OUTPUTS, leaf.numel()), i) @ leaf.reshape(-1).double() / max(1, leaf.numel()) ** 0.5
        for i, leaf in enumerate(leaves)
    ]
    return torch.stack(sums).sum(0)


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers in -1 .. 1 that follow no pattern of the problem, and cost less than drawn ones."""
    return (torch.arange(math.prod(shape), dtype=torch.float64) * 2.39996 + phase).sin().reshape(shape)
