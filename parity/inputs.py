"""What both sides of a problem are given, and what both must agree on to be compared."""

from typing import NamedTuple

import torch
from torch import Tensor

import alexnet_func as af
from alexnet_func.arch import Arch, Dropout
from parity.problems import Problem

Tensors = dict[str, Tensor]
SEED = 7
STEPS = {"1 step": 1, "20 steps": 20, "trajectory": 20}
# Rates at which the module's own training converges on so few images: where it diverges there is nothing to compare.
RATES = {"alexnet": 1e-4, "alexnet_2012": 1e-4, "caffenet": 1e-4, "alexnet_cifar": 1e-3, "alexnet_small": 1e-3}
MOMENTUM, DECAY = 0.9, 5e-4
_FORMATS = {"contiguous": "contiguous_format", "channels_last": "channels_last"}


class Site(NamedTuple):
    """A dropout layer."""

    name: str
    rate: float
    shape: tuple[int, ...]


class Inputs(NamedTuple):
    """What both sides are given: images [N, 3, H, W], labels [N], a key, and the masks that follow from it."""

    arch: Arch
    params: Tensors
    x: Tensor
    y: Tensor
    key: Tensor | None
    keeps: Tensors
    memory_format: torch.memory_format = torch.contiguous_format

    def as_(self, dtype: torch.dtype, device: str) -> "Inputs":
        """The same values in another dtype or place."""
        params = {name: self._laid_out(p.to(device, dtype)) for name, p in self.params.items()}
        keeps = {name: keep.to(device) for name, keep in self.keeps.items()}
        key = None if self.key is None else self.key.to(device)
        x = self._laid_out(self.x.to(device, dtype))
        return self._replace(params=params, x=x, y=self.y.to(device), key=key, keeps=keeps)

    def _laid_out(self, t: Tensor) -> Tensor:
        return t.to(memory_format=self.memory_format) if t.dim() == 4 else t


def inputs(problem: Problem, device: str) -> Inputs:
    """Drawn in float32 on the CPU whatever the dtype and device, so that all rows of an arch see the same values."""
    arch = af.arch.get(problem.arch)
    init_key, image_key, label_key, key = af.random.split(af.random.key(SEED), 4).unbind()
    n, height, width = problem.shape
    x = af.random.normal(image_key, (n, 3, height, width))
    y = af.random.randint(label_key, (n,), 0, arch.num_classes).long()
    used = key if problem.dropout else None
    keeps = masks(arch, used, (n, 3, height, width))
    given = Inputs(arch, af.init(init_key, arch), x, y, used, keeps, getattr(torch, _FORMATS[problem.memory_format]))
    return given.as_(getattr(torch, problem.dtype), device)


def masks(arch: Arch, key: Tensor | None, shape: tuple[int, ...]) -> Tensors:
    """What `forward` promises that each dropout layer keeps, an example and a layer at a time."""
    if key is None:
        return {}
    keys = af.random.split(key, shape[0])
    return {
        site.name: torch.stack([af.random.bernoulli(af.random.fold_in(k, i), 1 - site.rate, site.shape) for k in keys])
        for i, site in enumerate(sites(arch, shape))
    }


def sites(arch: Arch, shape: tuple[int, ...]) -> list[Site]:
    placed = af.arch.place(arch, tuple(shape[1:]))
    return [Site(at.name, at.layer.rate, at.in_shape) for at in placed if isinstance(at.layer, Dropout)]


def direction(given: Inputs) -> Tensors:
    """A direction in the parameters, about as long as initial weights are."""
    keys = af.random.split(af.random.key(SEED + 1), len(given.params))
    drawn = (af.random.normal(k, tuple(p.shape)) for k, p in zip(keys, given.params.values(), strict=True))
    return {name: (0.01 * d).to(given.params[name]) for name, d in zip(given.params, drawn, strict=True)}


def to_cpu(tensors: Tensors) -> Tensors:
    return {name: t.cpu() for name, t in tensors.items()}
