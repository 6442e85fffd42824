"""Our side of a problem, by its route."""

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap

import alexnet_func as af
from parity.inputs import DECAY, MOMENTUM, RATES, STEPS, Inputs, Tensors, direction, sites, to_cpu
from parity.problems import Problem


def _gradients(problem: Problem, given: Inputs) -> Tensors:
    routes: Mapping[str, Callable[[Inputs], Tensors]] = {
        "vmap": _vmapped,
        "compiled": lambda g: torch.compile(differentiated, fullgraph=True, options=af.train.compile_options())(g),
        "functional_call": _lifted,
        "fused": lambda g: differentiated(g, af.routes.fused(g.arch)),
    }
    with torch.no_grad():
        return routes.get(problem.route, differentiated)(given)


def differentiated(given: Inputs, table: af.model.Table = af.model.PLAIN) -> Tensors:
    def loss(params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = af.forward(params, x, arch=given.arch, key=given.key, table=table)
        return af.losses.cross_entropy(logits, given.y), logits

    return _named(grad_and_value(loss, argnums=(0, 1), has_aux=True)(given.params, given.x))


def _vmapped(given: Inputs) -> Tensors:
    assert given.key is not None
    n = len(given.y)

    def loss(params: Tensors, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        logits = af.forward(params, x, arch=given.arch, key=key)
        return af.losses.cross_entropy(logits, y), logits

    each = vmap(grad_and_value(loss, argnums=(0, 1), has_aux=True), in_dims=(None, 0, 0, 0))
    (by_params, by_x), (losses, logits) = each(given.params, given.x, given.y, af.random.split(given.key, n))
    means = {name: g.mean(0) for name, g in by_params.items()}
    return _named(((means, by_x / n), (losses.mean(), logits)))


def _lifted(given: Inputs) -> Tensors:
    forward, params, buffers = af.interop.from_module(af.interop.to_module(given.params, given.arch).eval())

    def loss(params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = forward(params, buffers, x)
        return af.losses.cross_entropy(logits, given.y), logits

    return _named(grad_and_value(loss, argnums=(0, 1), has_aux=True)(params, given.x))


def _named(result: Any) -> Tensors:
    (by_params, by_x), (loss, logits) = result
    return {"logits": logits, "loss": loss, **by_params, "input": by_x}


def _logits(problem: Problem, given: Inputs) -> Tensors:
    device = given.x.device
    suffix = {"torch.export": "pt2", "onnxruntime": "onnx"}[problem.route]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net.{suffix}"
        af.interop.export(to_cpu(given.params), path, given.arch)
        if problem.route == "torch.export":
            return {"logits": torch.export.load(path).module()(given.x.cpu()).detach().to(device)}
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: given.x.cpu().numpy()})
        return {"logits": torch.from_numpy(logits).to(device)}


def _example_gradients(problem: Problem, given: Inputs) -> Tensors:
    if problem.route == "layerwise":
        return af.per_sample.grads(given.params, (given.x, given.y), arch=given.arch, method="layerwise")
    loss = functools.partial(af.loss_fn, arch=given.arch)
    with torch.no_grad():
        return vmap(grad(loss), in_dims=(None, (0, 0)))(given.params, (given.x, given.y))


def _jvp(problem: Problem, given: Inputs) -> Tensors:
    forward = functools.partial(af.forward, x=given.x, arch=given.arch)
    with torch.no_grad():
        return {"jvp": jvp(forward, (given.params,), (direction(given),))[1]}


def _hvp(problem: Problem, given: Inputs) -> Tensors:
    loss = functools.partial(af.loss_fn, batch=(given.x, given.y), arch=given.arch)
    with torch.no_grad():
        return jvp(grad(loss), (given.params,), (direction(given),))[1]


def steps(problem: Problem, given: Inputs) -> Tensors:
    """Steps on the same batch, the masks of step i from `fold_in(key, i)`."""
    assert given.key is not None
    optimizer = af.optim.sgd(RATES[given.arch.name], momentum=MOMENTUM, weight_decay=DECAY)
    table = af.routes.fused(given.arch) if problem.route == "fused" else af.model.PLAIN
    step = af.train.make_step(functools.partial(af.loss_fn, arch=given.arch, table=table), optimizer)
    if problem.route in ("donated", "fused"):
        step = af.train.compile_step(step, donate=True)
    state = af.train.create_state(given.params, optimizer, key=given.key)
    losses = []
    for _ in range(STEPS[problem.quantity]):
        state, metrics = step(state, (given.x, given.y))
        losses.append(metrics["loss"])
    momenta = {f"momentum of {name}": v for name, v in state.opt_state["velocity"].items()}
    return {"losses": torch.stack(losses), **state.params, **momenta}


ROUTES: Mapping[str, Callable[[Problem, Inputs], Tensors]] = {
    "gradients": _gradients,
    "logits": _logits,
    "per-example gradients": _example_gradients,
    "jvp": _jvp,
    "hvp": _hvp,
    "1 step": steps,
    "20 steps": steps,
}


def masks_of_forward(given: Inputs) -> Tensors:
    assert given.key is not None
    layers = af.arch.place(given.arch, tuple(given.x.shape[1:]))
    noise = af.model.dropout_noise(layers, given.key, batch=given.x.shape[:1])
    return {site.name: noise[site.name] < 1 - site.rate for site in sites(given.arch, tuple(given.x.shape))}
