"""The other side of a problem: the module's, or that of an oracle which shares no code with it."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

import alexnet_func as af
from parity import references
from parity.inputs import DECAY, MOMENTUM, RATES, STEPS, Inputs, Tensors, direction, masks, sites
from parity.problems import Problem


def reference(problem: Problem, given: Inputs) -> Tensors:
    if problem.against in ("numpy", "jax"):
        return _oracle(problem.against, given)
    if problem.against == "cpu module":
        given = given.as_(given.x.dtype, "cpu")
    return MODULE[problem.quantity](problem, given)


def _module(given: Inputs) -> torch.nn.Module:
    made = references.module(given.arch.name, given.params, given.keeps).to(given.x.device)
    return made.to(memory_format=given.memory_format)


def _module_gradients(problem: Problem, given: Inputs) -> Tensors:
    found = references.loss_and_gradients(_module(given), given.x, given.y)
    return found if problem.quantity == "gradients" else {"logits": found["logits"]}


def _module_examples(problem: Problem, given: Inputs) -> Tensors:
    return references.example_gradients(_module(given), given.x, given.y)


def module_steps(problem: Problem, given: Inputs) -> Tensors:
    module = _module(given)
    optimizer = torch.optim.SGD(module.parameters(), RATES[given.arch.name], momentum=MOMENTUM, weight_decay=DECAY)
    assert given.key is not None
    shape = tuple(given.x.shape)
    keys = [af.random.fold_in(given.key.cpu(), i) for i in range(STEPS[problem.quantity])]
    keeps = [{n: m.to(given.x.device) for n, m in masks(given.arch, key, shape).items()} for key in keys]
    return references.training(module, [(given.x, given.y, keep) for keep in keeps], optimizer)


MODULE: Mapping[str, Callable[[Problem, Inputs], Tensors]] = {
    "gradients": _module_gradients,
    "logits": _module_gradients,
    "per-example gradients": _module_examples,
    "jvp": lambda problem, g: references.directional_derivative(_module(g), g.x, direction(g)),
    "hvp": lambda problem, g: references.hessian_product(_module(g), g.x, g.y, direction(g)),
    "1 step": module_steps,
    "20 steps": module_steps,
}


def _oracle(name: str, given: Inputs) -> Tensors:
    from parity.oracles import by_jax, by_numpy

    oracle = {"numpy": by_numpy, "jax": by_jax}[name]
    arrays = [{n: t.numpy() for n, t in tensors.items()} for tensors in (given.params, given.keeps)]
    found = oracle.loss_and_gradients(given.arch, arrays[0], given.x.numpy(), given.y.numpy(), arrays[1])
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}


def jax_masks(given: Inputs) -> Tensors:
    from parity.oracles import by_jax

    assert given.key is not None
    layers = {site.name: (site.rate, site.shape) for site in sites(given.arch, tuple(given.x.shape))}
    found = by_jax.masks(layers, given.key.numpy().view(np.uint32), len(given.y))
    return {name: torch.from_numpy(mask) for name, mask in found.items()}
