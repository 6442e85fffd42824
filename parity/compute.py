"""Both sides of a problem: ours by its route, the reference's or oracle's, and the verdict."""

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap

import alexnet_func as af
from alexnet_func.arch import Arch, Dropout
from parity import criteria, references
from parity.criteria import Verdict
from parity.problems import Problem

Tensors = dict[str, Tensor]
SEED = 7
STEPS = {"1 step": 1, "20 steps": 20, "trajectory": 20}
# Of the reference, for the band: many, since the step at which rounding first decides which side of a kink an
# activation lies on is chance, and from there on the runs part; fewer where one takes ten seconds.
RUNS = {"alexnet": 4, "alexnet_2012": 4, "caffenet": 4, "alexnet_cifar": 32}
# Rates at which the module's own training converges on so few images: where it diverges there is nothing to compare.
RATES = {"alexnet": 1e-4, "alexnet_2012": 1e-4, "caffenet": 1e-4, "alexnet_cifar": 0.01}
MOMENTUM, DECAY = 0.9, 5e-4
_FORMATS = {"contiguous": "contiguous_format", "channels_last": "channels_last"}
KEY_SEEDS = (*range(62), 2**31, 2**32 - 1)


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


def solve(problem: Problem, device: str) -> Verdict:
    """Computes both sides under `pinned` flags and judges them."""
    if problem.quantity == "random draws":
        return criteria.bitwise(*_draws())
    with pinned(tf32=False):
        given = inputs(problem, device)
        if problem.quantity == "dropout masks":
            return criteria.bitwise(_masks_of_forward(given), _jax_masks(given))
        if problem.criterion == "band":
            return criteria.band(*_bands(problem, given))
        with pinned(tf32=problem.route == "tf32"):
            ours = OURS[problem.quantity](problem, given)
        with pinned(tf32=problem.route == "tf32", cudnn=problem.against != "module without cudnn"):
            reference = _reference(problem, given)
        if problem.criterion == "bitwise":
            return criteria.bitwise(ours, reference)
        ours = _to_cpu(ours)
        if problem.criterion == "close":
            return criteria.close(ours, _to_cpu(reference))
        exact = THEIRS[problem.quantity](problem, given.as_(torch.float64, "cpu"))
        return criteria.budget(ours, _to_cpu(reference), exact)


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
        for i, site in enumerate(_sites(arch, shape))
    }


def _sites(arch: Arch, shape: tuple[int, ...]) -> list[Site]:
    placed = af.arch.place(arch, tuple(shape[1:]))
    return [Site(at.name, at.layer.rate, at.in_shape) for at in placed if isinstance(at.layer, Dropout)]


@contextmanager
def pinned(*, tf32: bool, cudnn: bool = True) -> Iterator[None]:
    """Deterministic algorithms, no reduced-precision accumulation, no search for algorithms; restored on leaving."""
    matmul = torch.backends.cuda.matmul
    before = (
        torch.are_deterministic_algorithms_enabled(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        matmul.allow_bf16_reduced_precision_reduction = False
        matmul.allow_fp16_reduced_precision_reduction = False
        with (
            af.precision.tf32(tf32),
            torch.backends.cudnn.flags(enabled=cudnn, benchmark=False, deterministic=True, allow_tf32=tf32),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = before[1:]


# Ours


def _gradients(problem: Problem, given: Inputs) -> Tensors:
    routes: Mapping[str, Callable[[Inputs], Tensors]] = {
        "vmap": _vmapped,
        "compiled": lambda g: torch.compile(_differentiated, fullgraph=True, options=af.train.COMPILE_OPTIONS)(g),
        "functional_call": _lifted,
    }
    with torch.no_grad():
        return routes.get(problem.route, _differentiated)(given)


def _differentiated(given: Inputs) -> Tensors:
    def loss(params: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = af.forward(params, x, arch=given.arch, key=given.key)
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
        af.interop.export(_to_cpu(given.params), path, given.arch)
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
        return {"jvp": jvp(forward, (given.params,), (_direction(given),))[1]}


def _hvp(problem: Problem, given: Inputs) -> Tensors:
    loss = functools.partial(af.loss_fn, batch=(given.x, given.y), arch=given.arch)
    with torch.no_grad():
        return jvp(grad(loss), (given.params,), (_direction(given),))[1]


def _steps(problem: Problem, given: Inputs) -> Tensors:
    """Steps on the same batch, the masks of step i from `fold_in(key, i)`."""
    assert given.key is not None
    optimizer = af.optim.sgd(RATES[given.arch.name], momentum=MOMENTUM, weight_decay=DECAY)
    step = af.train.make_step(functools.partial(af.loss_fn, arch=given.arch), optimizer)
    if problem.route == "donated":
        step = af.train.compile_step(step, donate=True)
    state = af.train.create_state(given.params, optimizer, key=given.key)
    losses = []
    for _ in range(STEPS[problem.quantity]):
        state, metrics = step(state, (given.x, given.y))
        losses.append(metrics["loss"])
    momenta = {f"momentum of {name}": v for name, v in state.opt_state["velocity"].items()}
    return {"losses": torch.stack(losses), **state.params, **momenta}


OURS: Mapping[str, Callable[[Problem, Inputs], Tensors]] = {
    "gradients": _gradients,
    "logits": _logits,
    "per-example gradients": _example_gradients,
    "jvp": _jvp,
    "hvp": _hvp,
    "1 step": _steps,
    "20 steps": _steps,
}


# Theirs


def _reference(problem: Problem, given: Inputs) -> Tensors:
    if problem.against in ("numpy", "jax"):
        return _oracle(problem.against, given)
    if problem.against == "cpu module":
        given = given.as_(given.x.dtype, "cpu")
    return THEIRS[problem.quantity](problem, given)


def _module(given: Inputs) -> torch.nn.Module:
    made = references.module(given.arch.name, given.params, given.keeps).to(given.x.device)
    return made.to(memory_format=given.memory_format)


def _module_gradients(problem: Problem, given: Inputs) -> Tensors:
    found = references.loss_and_gradients(_module(given), given.x, given.y)
    return found if problem.quantity == "gradients" else {"logits": found["logits"]}


def _module_examples(problem: Problem, given: Inputs) -> Tensors:
    return references.example_gradients(_module(given), given.x, given.y)


def _module_steps(problem: Problem, given: Inputs) -> Tensors:
    module = _module(given)
    optimizer = torch.optim.SGD(module.parameters(), RATES[given.arch.name], momentum=MOMENTUM, weight_decay=DECAY)
    assert given.key is not None
    shape = tuple(given.x.shape)
    keys = [af.random.fold_in(given.key.cpu(), i) for i in range(STEPS[problem.quantity])]
    keeps = [{n: m.to(given.x.device) for n, m in masks(given.arch, key, shape).items()} for key in keys]
    return references.training(module, [(given.x, given.y, keep) for keep in keeps], optimizer)


THEIRS: Mapping[str, Callable[[Problem, Inputs], Tensors]] = {
    "gradients": _module_gradients,
    "logits": _module_gradients,
    "per-example gradients": _module_examples,
    "jvp": lambda problem, g: references.directional_derivative(_module(g), g.x, _direction(g)),
    "hvp": lambda problem, g: references.hessian_product(_module(g), g.x, g.y, _direction(g)),
    "1 step": _module_steps,
    "20 steps": _module_steps,
}


def _oracle(name: str, given: Inputs) -> Tensors:
    from parity.oracles import by_jax, by_numpy

    oracle = {"numpy": by_numpy, "jax": by_jax}[name]
    arrays = [{n: t.numpy() for n, t in tensors.items()} for tensors in (given.params, given.keeps)]
    found = oracle.loss_and_gradients(given.arch, arrays[0], given.x.numpy(), given.y.numpy(), arrays[1])
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}


def _bands(problem: Problem, given: Inputs) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses by step: ours, the reference's, and the reference's from parameters moved by one ulp at random."""

    def moved(run: int) -> Tensors:
        signs = af.random.split(af.random.key(run), len(given.params)).to(given.x.device)
        return {
            name: torch.nextafter(p, torch.where(af.random.bernoulli(k, shape=tuple(p.shape)), torch.inf, -torch.inf))
            for k, (name, p) in zip(signs, given.params.items(), strict=True)
        }

    runs = [_module_steps(problem, given._replace(params=moved(run)))["losses"] for run in range(RUNS[given.arch.name])]
    ours, reference = _steps(problem, given)["losses"], _module_steps(problem, given)["losses"]
    return ours.cpu(), reference.cpu(), [run.cpu() for run in runs]


def _direction(given: Inputs) -> Tensors:
    """A direction in the parameters, about as long as initial weights are."""
    keys = af.random.split(af.random.key(SEED + 1), len(given.params))
    drawn = (af.random.normal(k, tuple(p.shape)) for k, p in zip(keys, given.params.values(), strict=True))
    return {name: (0.01 * d).to(given.params[name]) for name, d in zip(given.params, drawn, strict=True)}


def _masks_of_forward(given: Inputs) -> Tensors:
    assert given.key is not None
    layers = af.arch.place(given.arch, tuple(given.x.shape[1:]))
    noise = af.model.dropout_noise(layers, given.key, batch=given.x.shape[:1])
    return {site.name: noise[site.name] < 1 - site.rate for site in _sites(given.arch, tuple(given.x.shape))}


def _jax_masks(given: Inputs) -> Tensors:
    from parity.oracles import by_jax

    assert given.key is not None
    sites = {site.name: (site.rate, site.shape) for site in _sites(given.arch, tuple(given.x.shape))}
    found = by_jax.masks(sites, given.key.numpy().view(np.uint32), len(given.y))
    return {name: torch.from_numpy(mask) for name, mask in found.items()}


def _draws() -> tuple[Tensors, Tensors]:
    import jax

    ours: Tensors = {}
    theirs: Tensors = {}
    for seed in KEY_SEEDS:
        ours |= {f"{seed} {name}": value for name, value in draws(af.random, af.random.key(seed)).items()}
        jax_key = np.array([0, seed], dtype=np.uint32)
        theirs |= {f"{seed} {name}": as_tensor(value) for name, value in draws(jax.random, jax_key).items()}
    return ours, theirs


def draws(r: Any, key: Any) -> dict[str, Any]:
    """What a key gives, by `alexnet_func.random` or, from a raw uint32 key, by `jax.random`: the names are the same."""
    return {
        "split": r.split(key, 7),
        **{f"fold_in {data}": r.fold_in(key, data) for data in (0, 1, 2**31)},
        "bits 3x5": r.bits(key, (3, 5)),
        "bits 1001": r.bits(key, (1001,)),
        "uniform": r.uniform(key, (1001,)),
        "bernoulli 0.5": r.bernoulli(key, 0.5, (1001,)),
        "bernoulli 0.3": r.bernoulli(key, 0.3, (1001,)),
        "randint": r.randint(key, (1001,), -7, 1_000_003),
        "permutation 1000": r.permutation(key, 1000),
        "permutation 5000": r.permutation(key, 5000),
    }


def as_tensor(value: Any) -> Tensor:
    """A JAX array as a tensor; unsigned words as the int32 of the same bits."""
    array = np.array(value)
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)


def _to_cpu(tensors: Tensors) -> Tensors:
    return {name: t.cpu() for name, t in tensors.items()}
