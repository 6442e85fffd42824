import itertools
import math

import numpy as np
import pytest
import torch
from torch.func import grad

import alexnet_func as af
from alexnet_func import optim

STEPS = 50


def some_params(dtype):
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(97, 13, generator=generator, dtype=torch.float64).to(dtype),
        "bias": torch.randn(7, generator=generator, dtype=torch.float64).to(dtype),
    }


def some_grads(params, step):
    generator = torch.Generator().manual_seed(1 + step)
    return {n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for n, p in params.items()}


def run(optimizer, params):
    opt_state = optimizer.init(params)
    for i in range(STEPS):
        params, opt_state = optimizer.update(some_grads(params, i), opt_state, params, torch.tensor(i))
        yield params, opt_state


def run_torch(make, params, schedule=None):
    leaves = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = make(leaves.values())
    for i in range(STEPS):
        if schedule is not None:
            optimizer.param_groups[0]["lr"] = schedule(i)
        for name, g in some_grads(params, i).items():
            leaves[name].grad = g
        optimizer.step()
        yield {n: p.detach() for n, p in leaves.items()}, {n: optimizer.state[p] for n, p in leaves.items()}


def tenfold_drops(step):
    """The paper's schedule in plain Python; `optim.step_decay(0.013, (10, 30))` in tensors."""
    rate = 0.013
    for boundary in (10, 30):
        rate = rate * 0.1 if step >= boundary else rate
    return rate


SGD_CASES = [
    (momentum, decay, nesterov, scheduled)
    for momentum, decay, nesterov, scheduled in itertools.product((0.0, 0.9), (0.0, 5e-4), (False, True), (False, True))
    if momentum or not nesterov
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("momentum", "decay", "nesterov", "scheduled"), SGD_CASES)
def test_sgd_has_the_bits_of_torch_optim(dtype, momentum, decay, nesterov, scheduled):
    params = some_params(dtype)
    rate = optim.step_decay(0.013, (10, 30)) if scheduled else 0.013
    ours = run(optim.sgd(rate, momentum, decay, nesterov), params)
    theirs = run_torch(
        lambda p: torch.optim.SGD(p, lr=0.013, momentum=momentum, weight_decay=decay, nesterov=nesterov),
        params,
        tenfold_drops if scheduled else None,
    )
    for (p, state), (q, torch_state) in zip(ours, theirs, strict=True):
        for name in params:
            assert torch.equal(p[name], q[name])
            if momentum:
                assert torch.equal(state["velocity"][name], torch_state[name]["momentum_buffer"])


def test_a_scheduled_rate_is_not_rounded_to_bfloat16():
    params, grads = {"w": torch.zeros(4).bfloat16()}, {"w": torch.full((4,), 256.0).bfloat16()}
    ours, _ = optim.sgd(optim.constant(0.013)).update(grads, {}, params, torch.tensor(0))
    assert torch.equal(ours["w"], torch.full((4,), -0.013 * 256).bfloat16())


@pytest.mark.parametrize("decay", [0.0, 5e-4])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_paper_form_is_krizhevskys_formula(momentum, decay):
    params = some_params(torch.float64)
    w = {n: p.numpy().copy() for n, p in params.items()}
    v = {n: np.zeros_like(p) for n, p in w.items()}
    rate = optim.step_decay(0.013, (10, 30))
    for i, (p, _) in enumerate(run(optim.sgd(rate, momentum, decay, form="paper"), params)):
        g, epsilon = some_grads(params, i), tenfold_drops(i)
        for n in w:
            v[n] = momentum * v[n] - decay * epsilon * w[n] - epsilon * g[n].numpy()
            w[n] = w[n] + v[n]
            np.testing.assert_allclose(p[n].numpy(), w[n], rtol=1e-13, atol=1e-15)


def test_the_two_forms_differ_once_the_rate_changes():
    params, rate = some_params(torch.float64), optim.step_decay(0.013, (10,))
    torch_form = [p["weight"] for p, _ in run(optim.sgd(rate, 0.9), params)]
    paper_form = [p["weight"] for p, _ in run(optim.sgd(rate, 0.9, form="paper"), params)]
    torch.testing.assert_close(torch_form[9], paper_form[9])
    assert not torch.allclose(torch_form[12], paper_form[12])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(decay):
    params = some_params(torch.float64)
    theirs = run_torch(lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=decay, eps=1e-6), params)
    for (p, _), (q, _) in zip(run(optim.adamw(1e-3, eps=1e-6, weight_decay=decay), params), theirs, strict=True):
        for name in params:
            torch.testing.assert_close(p[name], q[name], rtol=1e-12, atol=1e-14)


def test_centralized_takes_each_units_mean_from_its_gradients():
    params = {"conv.weight": torch.ones(4, 3, 2, 2), "linear.weight": torch.ones(5, 7), "bias": torch.ones(4)}
    params = {name: p.double() for name, p in params.items()}
    grads = some_grads(params, 0)
    found, _ = optim.centralized(optim.sgd(0.1)).update(grads, {}, params, torch.tensor(0))
    for name, g in ((name, g.numpy()) for name, g in grads.items()):
        units = g.reshape(len(g), -1)
        centered = g if g.ndim == 1 else (units - units.mean(1, keepdims=True)).reshape(g.shape)
        np.testing.assert_allclose(found[name].numpy(), 1 - 0.1 * centered, rtol=1e-14)


def test_update_leaves_its_arguments_as_they_were():
    params = some_params(torch.float32)
    optimizer = optim.sgd(0.1, 0.9, 5e-4)
    grads, opt_state = some_grads(params, 0), optimizer.init(params)
    optimizer.update(grads, opt_state, params, torch.tensor(0))
    assert all(torch.equal(p, some_params(torch.float32)[n]) for n, p in params.items())
    assert all(torch.equal(g, some_grads(params, 0)[n]) for n, g in grads.items())
    assert all((v == 0).all() for v in opt_state["velocity"].values())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (optim.constant(0.3), lambda s: 0.3),
        (optim.step_decay(1.0, (3, 7)), lambda s: 0.1 ** ((s >= 3) + (s >= 7))),
        (optim.warmup_linear(2.0, 4, 10), lambda s: 2 * (s + 1) / 4 if s < 4 else 2 * max(0, 1 - (s - 4) / 6)),
        (
            optim.warmup_cosine(2.0, 4, 10),
            lambda s: 2 * (s + 1) / 4 if s < 4 else 1 + math.cos(math.pi * min(1, (s - 4) / 6)),
        ),
        (optim.warmup_cosine(2.0, 0, 10), lambda s: 1 + math.cos(math.pi * min(1, s / 10))),
    ],
)
def test_schedules_are_their_formulas(schedule, expected):
    for s in range(14):
        rate = schedule(torch.tensor(s))
        assert rate.dtype == torch.float64
        assert rate.shape == ()
        assert rate.item() == pytest.approx(expected(s), abs=1e-15)


COMPILED = {
    "plain": optim.sgd(0.1),
    "momentum, decay": optim.sgd(0.1, 0.9, 0.05),
    "nesterov, schedule": optim.sgd(optim.warmup_cosine(0.1, 2, 9), 0.9, 0.05, nesterov=True),
    "paper": optim.sgd(0.1, 0.9, 0.05, form="paper"),
    "adamw": optim.adamw(0.01),
    "centralized": optim.centralized(optim.sgd(0.1, 0.9)),
}


@pytest.mark.compiled
@pytest.mark.parametrize("optimizer", COMPILED.values(), ids=COMPILED.keys())
def test_a_compiled_update_beside_a_matmul_equals_the_eager_one(optimizer):
    # Inductor rewrites additions to a matrix product into addmm, and lost `alpha` in doing so.
    generator = torch.Generator().manual_seed(0)
    params = {"weight": torch.randn(5, 7, generator=generator, dtype=torch.float64)}
    x = torch.randn(6, 7, generator=generator, dtype=torch.float64)

    def step(params, opt_state, i):
        grads = grad(lambda p: (x @ p["weight"].T).square().sum())(params)
        return optimizer.update(grads, opt_state, params, i)

    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    with torch.no_grad():
        eager_params, eager_state = params, optimizer.init(params)
        ours_params, ours_state = params, optimizer.init(params)
        for i in range(3):
            eager_params, eager_state = step(eager_params, eager_state, torch.tensor(i))
            ours_params, ours_state = compiled(ours_params, ours_state, torch.tensor(i))
    torch.testing.assert_close((ours_params, ours_state), (eager_params, eager_state), rtol=1e-12, atol=1e-13)


@pytest.mark.errors
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.sgd(-0.1), "learning_rate must not be negative, got -0.1"),
        (lambda: optim.sgd(float("nan")), "learning_rate must not be negative, got nan"),
        (lambda: optim.sgd(0.1, momentum=-1), "momentum must not be negative"),
        (lambda: optim.sgd(0.1, nesterov=True), "nesterov needs momentum"),
        (lambda: optim.sgd(0.1, 0.9, nesterov=True, form="paper"), "nesterov needs momentum"),
        (lambda: optim.sgd(0.1, form="caffe"), 'form must be "torch" or "paper"'),
        (lambda: optim.adamw(0.1, b1=1.0), r"b1 and b2 must lie in \[0, 1\)"),
        (lambda: optim.warmup_cosine(0.1, 10, 10), "warmup_steps must lie in 0..total_steps-1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_public_names():
    assert set(af.optim.Optimizer._fields) == {"init", "update"}


@pytest.mark.parametrize("form", ["torch", "paper"])
def test_an_update_maps_over_gradients_alone(form):
    """The parameters and the state are then no wrapped tensors, and the gradients are."""
    optimizer = optim.sgd(0.1, momentum=0.9, weight_decay=0.01, form=form)
    params = {"a": torch.randn(3), "b": torch.randn(2, 2)}
    state = optimizer.init(params)
    grads = {name: torch.randn(4, *p.shape) for name, p in params.items()}
    step = torch.tensor(0)
    mapped, _ = torch.func.vmap(lambda g: optimizer.update(g, state, params, step))(grads)
    for i in range(4):
        alone, _ = optimizer.update({name: g[i] for name, g in grads.items()}, state, params, step)
        for name, p in alone.items():
            torch.testing.assert_close(mapped[name][i], p)


def test_an_update_is_differentiable_in_its_rate():
    params, grads = {"a": torch.ones(3)}, {"a": torch.tensor([1.0, 2.0, 3.0])}

    def total(rate):
        optimizer = optim.sgd(rate, momentum=0.9)
        return optimizer.update(grads, optimizer.init(params), params, torch.tensor(0))[0]["a"].sum()

    torch.testing.assert_close(torch.func.grad(total)(torch.tensor(0.1)), torch.tensor(-6.0))
