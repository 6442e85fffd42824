"""The training step of a run: plain or private, over views, of some parameters, on several ranks, compiled.

Each of these is a function from a step to a step; `made` says in which order they lie about one another.
"""

import fnmatch
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from alexnet_func import examples, hybrid, losses, model, optim, parallel, privacy, random, routes, train
from alexnet_func.app import optimizers, options
from alexnet_func.app.options import Run
from alexnet_func.app.private import Plan
from alexnet_func.app.recipes import Recipe
from alexnet_func.arch import Arch
from alexnet_func.data import preprocess
from alexnet_func.model import Params

_REPLAYED = 512  # images a batch, up to which launches cost more than the copies that a CUDA graph makes
_CHUNK = 256  # examples of a private step whose captures are in memory at once

Made = tuple[optim.Optimizer, train.Step]
Of = Callable[[Params], Made]  # given the parameters that are not trained


class Setting(NamedTuple):
    """What a step follows from; `plan` and `secret`, the key [2] of its noise, are a private run's."""

    run: Run
    recipe: Recipe
    network: Arch
    device: torch.device
    plan: Plan | None
    secret: Tensor | None


def made(setting: Setting, steps_per_epoch: int, prepare: preprocess.Prepare) -> Made:
    """The optimiser of the parameters that are trained, and `step(state, (key, index, pixels, labels))`.

    The batch is as it was fetched, with the epoch's key of augmentation.
    """
    run, recipe, network, device = setting.run, setting.recipe, setting.network, setting.device
    plan = setting.plan
    optimizer = optimizers.optimizer(recipe, network, steps_per_epoch, options.precision_of(run, recipe, device))
    if recipe.ema is not None:
        optimizer = optim.averaged(optimizer, recipe.ema)
    compiles, one_graph = options.compiles(run, device), _in_one_graph(run, device)
    of: Of = functools.partial(_plain, setting, optimizer)
    if plan is not None:
        of = functools.partial(_private, setting, optimizer, plan)
    optimizer, step = of({})
    if frozen := frozen_names(recipe, network):
        step = _of_some(of, frozen, step)
    if setting.secret is not None:
        step = _keyed(step, setting.secret)
    if compiles and not one_graph:
        step = train.compile_step(step, donate=True)
    step = preprocess.prepared_step(
        step, prepare if recipe.views is None else preprocess.in_views(prepare, recipe.views)
    )
    if plan is not None:
        step = _augmented_anew(step)
    if one_graph:
        replayed = recipe.batch_size <= _REPLAYED and parallel.world_size() == 1
        step = train.compile_step(step, donate=True, cudagraph=replayed)
    if plan is not None and (compiles or parallel.world_size() > 1):
        step = _padded(step, plan.sample_size // parallel.world_size())
    return optimizer, step


def _in_one_graph(run: Run, device: torch.device) -> bool:
    """Whether augmentation is compiled with the step. A CPU cuts crops faster than a graph gathers their pixels."""
    return options.compiles(run, device) and device.type == "cuda"


def frozen_names(recipe: Recipe, network: Arch) -> frozenset[str]:
    """The parameters that the recipe's patterns match. Raises ValueError for one without a match, and where all are."""
    names = list(model.param_shapes(network))
    for pattern in recipe.freeze:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"--freeze {pattern} matches none of the parameters {', '.join(names)}")
    frozen = frozenset(name for pattern in recipe.freeze for name in fnmatch.filter(names, pattern))
    if len(frozen) == len(names):
        raise ValueError(f"--freeze {' '.join(recipe.freeze)} leaves no parameter to train")
    return frozen


def _plain(setting: Setting, optimizer: optim.Optimizer, frozen: Params) -> Made:
    run, recipe, network = setting.run, setting.recipe, setting.network
    table = routes.fused(network)
    split = run.parallel == "hybrid"
    loss = hybrid.loss_fn if split else losses.loss_fn

    def loss_fn(params: Params, batch: losses.Batch, *, key: Tensor | None = None) -> Tensor:
        if recipe.views is not None:
            keys = random.split(key, len(batch[1])) if key is not None and key.dim() == 1 else key
            batch, key = examples.one_by_one(batch, keys, recipe.views)
        how: dict[str, Any] = {"key": key, "table": table, "label_smoothing": recipe.label_smoothing}
        return loss({**frozen, **params}, batch, arch=network, **how)

    rounded = train.with_precision(loss_fn, options.precision_of(run, recipe, setting.device))
    together = None
    if parallel.world_size() > 1:
        together = hybrid.grad_fn(rounded, network) if split else parallel.grad_fn(rounded, reduction=run.reduction)
    return optimizer, train.make_step(rounded, optimizer, grad_fn=together)


def _private(setting: Setting, optimizer: optim.Optimizer, plan: Plan, frozen: Params) -> Made:
    recipe = setting.recipe
    noise, size, bound = plan.noise_multiplier, float(recipe.batch_size), recipe.dp_max_norm
    how: dict[str, Any] = {"arch": setting.network, "views": recipe.views, "frozen": frozen or None}
    how["chunk_size"] = max(1, _CHUNK // (recipe.views or 1))
    if recipe.dp_quantile is not None:
        return privacy.adaptive(optimizer, noise, size, max_norm=bound, quantile=recipe.dp_quantile, **how)
    return optimizer, train.make_step(None, optimizer, grad_fn=privacy.dp_grad_fn(bound, noise, size, **how))


def _of_some(of: Of, frozen: frozenset[str], whole: train.Step) -> train.Step:
    """The step on states whose params hold the frozen ones too, and whose opt_state does not."""

    def step(state: train.TrainState, batch: Any) -> train.Stepped:
        fixed = {name: p for name, p in state.params.items() if name in frozen}
        trained = {name: p for name, p in state.params.items() if name not in frozen}
        after, metrics = of(fixed)[1](state._replace(params=trained), batch)
        return after._replace(params={name: after.params.get(name, p) for name, p in state.params.items()}), metrics

    return train.Step(step, whole.precision)


def _keyed(step: train.Step, key: Tensor) -> train.Step:
    """The step with another key than the state's, which a checkpoint shows."""

    def secretly(state: train.TrainState, batch: Any) -> train.Stepped:
        after, metrics = step(state._replace(key=key), batch)
        return after._replace(key=state.key), metrics

    return train.Step(secretly, step.precision)


def _augmented_anew(step: train.Step) -> train.Step:
    """Each step with a key of augmentation of its own: an epoch of samples may hold an image twice."""

    def anew(state: train.TrainState, batch: Any) -> train.Stepped:
        key, *rest = batch
        return step(state, (random.fold_in(key, state.step), *rest))

    return train.Step(anew, step.precision)


def _padded(step: train.Step, size: int) -> train.Step:
    """The step with weights: black images of weight 0 make up for those who were not sampled, so that shapes stay."""

    def padded(state: train.TrainState, batch: Any) -> train.Stepped:
        key, index, pixels, labels = batch
        left = (0, size - len(index))
        weights = pad(torch.ones(len(index), device=pixels.device), left)
        return step(state, (key, pad(index, left), pad(pixels, (0, 0) * 3 + left), pad(labels, left), weights))

    return train.Step(padded, step.precision)
