"""What each public function asks of a device: how many launches, and no copy between devices and no wait.

Run by `tests/test_simulated.py` on the simulated device, where nothing is computed; not collected by itself. The bounds
are a tenth above what was counted with torch 2.14.
"""

import contextlib
import functools
from typing import get_args

import pytest
import torch
from torch.func import grad

import alexnet_func as af
from alexnet_func import ensemble, optim, per_sample, privacy, routes, train
from alexnet_func.app import cli, loop, optimizers, recipes, setup
from alexnet_func.arch import ALEXNET_CIFAR as ARCH
from alexnet_func.arch import param_shapes
from alexnet_func.data import augment, preprocess, sources
from tests.conftest import TINY
from tests.simulated.counting import counted

N = 32
KEY = af.random.key(0, "cuda")
PARAMS = {name: torch.zeros(shape, device="cuda") for name, shape in param_shapes(ARCH).items()}
BATCH = torch.zeros(N, 3, 32, 32, device="cuda"), torch.zeros(N, dtype=torch.int64, device="cuda")
VIEWED = torch.zeros(8, 4, 3, 32, 32, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda")
LOSS = functools.partial(af.loss_fn, arch=ARCH)
HOW = {"arch": ARCH, "key": KEY}
STACKED = {name: p.expand(4, *p.shape).clone() for name, p in PARAMS.items()}
PIXELS = torch.zeros(N, 3, 40, 40, dtype=torch.uint8, device="cuda")


def stepping(optimizer, **how):
    state = train.create_state(PARAMS, optimizer, key=KEY)
    step = train.make_step(LOSS, optimizer, **how)
    return lambda: step(state, BATCH)


def muon_of_four():
    rates = [optim.warmup_cosine(peak, 10, 100) for peak in (0.02, 0.001)]
    chosen = {"muon": optim.muon(rates[0], 0.95, 0.005), "adamw": optim.adamw(rates[1], weight_decay=0.005)}
    inner = [name for name in PARAMS if name.startswith("features") and name.endswith("weight")][1:]
    return optim.partition(lambda name: "muon" if name in inner else "adamw", chosen)


def members():
    rates = torch.tensor([0.1, 0.2, 0.3, 0.4], device="cuda")
    optimizer = ensemble.optimizer(lambda rate: optim.sgd(rate, 0.9), rates)
    state = train.create_state(STACKED, optimizer, key=KEY)
    step = train.make_step(None, optimizer, grad_fn=ensemble.grad_fn(LOSS))
    return lambda: step(state, BATCH)


def adaptive():
    optimizer, step = privacy.adaptive(optim.sgd(0.1), 1.0, N, arch=ARCH)
    state = train.create_state(PARAMS, optimizer, key=KEY)
    return lambda: step(state, BATCH)


def prepared(name):
    components = torch.zeros(3, 3, device="cuda") if name in preprocess.COLOURED else None
    prepare = preprocess.preparation(name, 32, MOMENTS, components)
    index, pixels = torch.arange(N, device="cuda"), PIXELS[..., :32, :32] if name.startswith("shift") else PIXELS
    return lambda: prepare(KEY, index, pixels)


DRAWS = {
    "split": lambda: af.random.split(KEY, 5),
    "fold_in": lambda: af.random.fold_in(KEY, 7),
    "uniform": lambda: af.random.uniform(KEY, (100,)),
    "normal": lambda: af.random.normal(KEY, (100,)),
    "bernoulli": lambda: af.random.bernoulli(KEY, 0.3, (100,)),
    "randint": lambda: af.random.randint(KEY, (100,), 0, 10),
    "permutation": lambda: af.random.permutation(KEY, 100),
    "gumbel": lambda: af.random.gumbel(KEY, (100,)),
    "choice": lambda: af.random.choice(KEY, 100, (10,)),
}
MOMENTS = preprocess.Moments((0.5,) * 3, (0.25,) * 3)

CASES = {
    "forward": (61, lambda: af.forward(PARAMS, BATCH[0], **HOW)),
    "loss_fn": (63, lambda: af.loss_fn(PARAMS, BATCH, **HOW)),
    "grad(loss_fn)": (114, lambda: grad(af.loss_fn)(PARAMS, BATCH, **HOW)),
    "step, sgd": (174, stepping(optim.sgd(optim.warmup_cosine(0.1, 10, 100), 0.9, 5e-4))),
    "step, adamw": (166, stepping(optim.adamw(1e-3))),
    "step, a rate on the CPU": (166, stepping(optim.adamw(torch.tensor(1e-3)))),
    "step, muon of four kernels": (330, stepping(muon_of_four())),
    "step, muon of seven weights": (420, stepping(optimizers.optimizer(recipes.FAST, ARCH, 100, "float32"))),
    "per_sample.grads": (327, lambda: per_sample.grads(PARAMS, BATCH, **HOW)),
    "per_sample.norms": (304, lambda: per_sample.norms(PARAMS, BATCH, **HOW)),
    "per_sample.layer_norms": (318, lambda: per_sample.layer_norms(PARAMS, BATCH, **HOW)),
    "per_sample.dots": (165, lambda: per_sample.dots(PARAMS, BATCH, PARAMS, **HOW)),
    "per_sample.clipped_sum": (358, lambda: per_sample.clipped_sum(PARAMS, BATCH, 1.0, **HOW)),
    "per_sample.gram": (358, lambda: per_sample.gram(PARAMS, BATCH, **HOW)),
    "per_sample.project": (880, lambda: per_sample.project(PARAMS, BATCH, KEY, 512, arch=ARCH)),
    "per_sample.norms of views": (380, lambda: per_sample.norms(PARAMS, VIEWED, views=4, **HOW)),
    "ensemble.forward": (466, lambda: ensemble.forward(STACKED, BATCH[0], **HOW)),
    "ensemble step": (610, members()),
    **{f"prepare {name}": (1550, prepared(name)) for name in get_args(preprocess.Augmentation)},
    "totals": (51, lambda: train.totals(functools.partial(af.forward, arch=ARCH), PARAMS, [BATCH])),
    "poisson_sample": (42, lambda: privacy.poisson_sample(KEY, 1000, 0.1, 150)),
    "privacy.dp_grad_fn": (1130, stepping(optim.sgd(0.1), grad_fn=privacy.dp_grad_fn(1.0, 1.0, N, arch=ARCH))),
    "privacy.adaptive": (1130, adaptive()),
    **{f"random.{name}": (40, call) for name, call in DRAWS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_launches_and_no_wait(name):
    most, call = CASES[name]
    call()
    _, found = counted(call)
    assert found["launches"] <= most
    assert not {"copies_to_device", "copies_to_host", "synchronisations"} & found.keys()


def test_one_synchronisation_tells_how_an_evaluation_went():
    sums = train.totals(functools.partial(af.forward, arch=ARCH), PARAMS, [BATCH]) + 1

    def told():
        with contextlib.suppress(ValueError):  # of sums that are memory as it was found
            train.metrics_of(sums)

    assert counted(told)[1] == {"copies_to_host": 1, "synchronisations": 1}


def test_a_batch_in_memory_is_fetched_without_a_wait():
    source = sources.InMemory(PIXELS, BATCH[1], torch.arange(N, device="cuda"))
    _, found = counted(lambda: list(source.fetch([torch.arange(N)])))
    assert found == {"launches": 2, "copies_to_device": 1}


def test_a_compiled_step_is_one_graph_whose_metrics_the_next_one_leaves():
    optimizer = optim.sgd(optim.warmup_cosine(0.1, 10, 100), 0.9, 5e-4)
    params = {name: torch.zeros(shape, device="cuda") for name, shape in param_shapes(TINY).items()}
    loss = functools.partial(af.loss_fn, arch=TINY, table=routes.fused(TINY))
    step = train.compile_step(train.make_step(loss, optimizer), donate=True, cudagraph=True)
    batch = torch.zeros(N, 3, 15, 15, device="cuda"), BATCH[1]
    state, seen = train.create_state(params, optimizer, key=KEY), []
    for _ in range(3):
        state, metrics = step(state, batch)
        seen.append(metrics["loss"])
    assert len({loss.data_ptr() for loss in seen}) == 3
    _, found = counted(lambda: step(state, batch))
    assert found["replays"] == 1
    assert not {"copies_to_device", "copies_to_host", "synchronisations", "captures"} & found.keys()
    assert found["launches"] <= 8


def test_the_applications_loop_waits_once_an_epoch_besides_its_evaluation(monkeypatch):
    found, run_epoch, evaluate, fresh = [], loop.run_epoch, loop.evaluate, setup.fresh

    def counted_epoch(*arguments):
        result, counts = counted(lambda: run_epoch(*arguments))
        found.append(counts)
        return result

    def made_up(*arguments):  # nothing is computed, and so no example counted
        with contextlib.suppress(ValueError):
            evaluate(*arguments)
        return train.Metrics(1.0, 0.5, 0.9, 10)

    def from_step_zero(*arguments):  # nor is memory cleared, but what the host copies arrives
        progress = fresh(*arguments)
        progress.state.step.copy_(torch.zeros((), dtype=torch.int64))
        return progress

    # Nothing is computed, least of all a histogram or a loss.
    monkeypatch.setattr(loop, "_check_finite", lambda *_: None)
    monkeypatch.setattr(setup, "fresh", from_step_zero)
    monkeypatch.setattr(augment, "channel_moments", lambda _: ((0.5,) * 3, (0.25,) * 3))
    monkeypatch.setattr(loop, "run_epoch", counted_epoch)
    monkeypatch.setattr(loop, "evaluate", made_up)
    assert cli.main(["train", "--limit", "96", "--batch-size", "32", "--epochs", "3", "--device", "cuda"]) == 0
    for counts in found[1:]:  # the first one compiles
        assert counts["synchronisations"] == counts["copies_to_host"] == 1
        assert counts["replays"] == 3
        assert "captures" not in counts
        assert counts["launches"] <= 3 * 12
