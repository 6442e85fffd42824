"""The empirical neural tangent kernel, as `curvature` has it."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap

from alexnet_func import _captures, factors, tape
from alexnet_func.arch import ALEXNET, Arch, Linear
from alexnet_func.factors import Factors
from alexnet_func.model import Params


def empirical_ntk(
    params: Params,
    x1: Float[Tensor, "n ..."],
    x2: Float[Tensor, "m ..."] | None = None,
    *,
    arch: Arch = ALEXNET,
    forward: Callable[[Params, Tensor], Tensor] | None = None,
    of: Literal["classes", "trace", "sum"] = "classes",
) -> Float[Tensor, "n m ..."]:
    """Computes the empirical neural tangent kernel `J(x1) J(x2)^T` of the logits (Jacot et al. 2018).

    It is [N, M, classes, classes]. `J` are the Jacobians of `model.forward` in evaluation by all parameters; `x2=None`
    means x1. With `of="trace"` it is the kernel's trace over classes, [N, M], and with "sum" the kernel of the sum of
    the logits, [N, M], for one backward pass (Mohamadi et al. 2023, "pseudo-NTK", without its division by the classes).

    By contraction layer by layer of inputs and output gradients (Novak et al. 2022, "structured derivatives"): one
    forward and `classes` backward passes, and no gradient of a linear layer is formed; a convolution's are, 1 GiB at a
    time. `forward(params, x_n) -> [classes]`, a pure function of one unbatched example such as a lifted module, takes
    the place of the arch: by `vmap(jacrev)`, which forms all Jacobians.

    Raises ValueError for an unknown `of`; errors else as `model.forward` raises them.

    Examples:
        >>> af.curvature.empirical_ntk(params, batch[0], arch=arch, of="sum").shape
        torch.Size([4, 4])
        >>> af.curvature.empirical_ntk({"w": torch.ones(2)}, torch.ones(4, 2), forward=lambda p, x: p["w"] * x).shape
        torch.Size([4, 4, 2, 2])
    """
    if of not in ("classes", "trace", "sum"):
        raise ValueError(f'of must be "classes", "trace" or "sum", got {of!r}')
    if forward is not None:
        jacobians = _jacobians(forward, params, x1, of)
        return _kernel_of_jacobians(jacobians, jacobians if x2 is None else _jacobians(forward, params, x2, of), of)
    with tape.without_tape(params, x1, x2):
        one = _output_gradients(params, x1, arch, of)
        other = one if x2 is None else _output_gradients(params, x2, arch, of)
        return torch.stack([_layer_kernel(*pair, of) for pair in zip(one, other, strict=True)]).sum(0)


def _jacobians(forward: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor, of: str) -> Params:
    """Of every example's outputs, [N, classes, P] by parameter name; of their sum [N, 1, P]."""

    def outputs(params: Params, example: Tensor) -> Tensor:
        logits = forward(params, example)
        return logits.sum()[None] if of == "sum" else logits

    found = vmap(jacrev(outputs), in_dims=(None, 0))(params, x)
    return {name: j[..., None].flatten(2) for name, j in found.items()}


def _kernel_of_jacobians(one: Params, other: Params, of: str) -> Tensor:
    pattern = "nkp,mlp->nmkl" if of == "classes" else "nkp,mkp->nm"
    return torch.stack([torch.einsum(pattern, j, other[name]) for name, j in one.items()]).sum(0)


def _output_gradients(params: Params, x: Tensor, arch: Arch, of: str) -> list[list[Factors]]:
    """Each layer's factors of every logit, or of their sum."""
    tapped = _captures.tap(params, x, arch=arch)
    classes = torch.eye(arch.num_classes, dtype=tapped.logits.dtype, device=x.device)
    cotangents = classes.sum(0, keepdim=True) if of == "sum" else classes
    pulled = _captures.wide(vmap(lambda c: tapped.pull(c.expand_as(tapped.logits)))(cotangents))
    inputs = _captures.wide(tapped.inputs)
    return [[Factors(at, inputs[name], g) for g in pulled[name]] for name, at in tapped.layers.items()]


def _layer_kernel(one: list[Factors], other: list[Factors], of: str) -> Tensor:
    if of != "classes":
        return torch.stack([factors.gram(f, g) for f, g in zip(one, other, strict=True)]).sum(0)
    n, m, classes = factors.count(one[0]), factors.count(other[0]), len(one)
    if isinstance(one[0].at.layer, Linear):
        # <g a^T, g' a'^T> + <g, g'>, the second from the bias.
        outputs = torch.einsum("kno,lmo->nmkl", *(torch.stack([f.g for f in side]) for side in (one, other)))
        return (one[0].a @ other[0].a.mT + 1)[:, :, None, None] * outputs
    joined = _joined(one)
    kernel = factors.gram(joined, joined if one is other else _joined(other))
    return kernel.view(classes, n, classes, m).permute(1, 3, 0, 2)


def _joined(classes: list[Factors]) -> Factors:
    return Factors(classes[0].at, torch.cat([f.a for f in classes]), torch.cat([f.g for f in classes]))
