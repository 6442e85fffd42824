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


def run(optimizer, params, grads_at=some_grads):
    opt_state = optimizer.init(params)
    for i in range(STEPS):
        params, opt_state = optimizer.update(grads_at(params, i), opt_state, params, torch.tensor(i))
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


def newton_schulz(matrix):
    """What five steps of the quintic make of the singular values, by an SVD in float64."""
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return u * values @ v


@pytest.mark.parametrize(("rows", "columns"), [(13, 97), (97, 13), (20, 20), (1, 5)])
def test_orthogonalized_works_on_the_singular_values(rows, columns):
    matrix = np.random.default_rng(0).normal(size=(rows, columns))
    found = optim.orthogonalized(torch.from_numpy(matrix)).numpy()
    np.testing.assert_allclose(found, newton_schulz(matrix), rtol=1e-9, atol=1e-12)
    values = np.linalg.svd(found, compute_uv=False)
    assert values.min() > 0.65
    assert values.max() < 1.25
    np.testing.assert_allclose(optim.orthogonalized(torch.from_numpy(1e6 * matrix)).numpy(), found, rtol=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(64, 300), (300, 64), (64, 100)])
@pytest.mark.parametrize("least", [1e-3, 1e-5, 0.0])
def test_orthogonalized_in_float32_of_singular_values_far_apart(rows, columns, least):
    """Of wide matrices too, whose Gram matrix squares the span."""
    u, _, v = np.linalg.svd(np.random.default_rng(0).normal(size=(rows, columns)), full_matrices=False)
    matrix = u * np.geomspace(1, max(least, 1e-30), 64) @ v
    found = optim.orthogonalized(torch.from_numpy(matrix).float()).numpy()
    expected = newton_schulz(matrix)
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(found, 2) < 1.21


def test_where_products_are_rounded_wide_matrices_take_direct_steps(monkeypatch):
    matrix = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    assert not torch.equal(optim.orthogonalized(matrix), x)
    monkeypatch.setattr("alexnet_func.optim._muon.rounds_products", lambda device: True)
    assert torch.equal(optim.orthogonalized(matrix), x)


def test_orthogonalized_keeps_zero_and_rank():
    assert not optim.orthogonalized(torch.zeros(3, 5)).any()
    assert not optim.orthogonalized(torch.zeros(3, 50)).any()
    line = np.outer(np.arange(1.0, 4.0), np.arange(1.0, 6.0))
    found = optim.orthogonalized(torch.from_numpy(line)).numpy()
    assert np.linalg.matrix_rank(found, tol=1e-6) == 1


@pytest.mark.parametrize(("shape", "decay"), [((97, 13), 0.0), ((13, 97), 0.1)])
def test_muon_is_torchs(shape, decay):
    params = {"weight": some_params(torch.float64)["weight"].reshape(shape)}
    theirs = run_torch(lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=decay), params)
    ours = run(optim.muon(0.02, weight_decay=decay, dtype=torch.bfloat16), params)
    for (p, _), (q, _) in itertools.islice(zip(ours, theirs, strict=True), 5):  # theirs multiplies in bfloat16 too
        torch.testing.assert_close(p["weight"], q["weight"], rtol=0, atol=2e-3)


def test_muon_of_a_kernel_is_muon_of_its_rows():
    kernel = {"w": torch.randn(6, 3, 2, 2, dtype=torch.float64)}
    rows = {"w": kernel["w"].flatten(1)}

    def flat_grads(_, i):
        return {"w": some_grads(kernel, i)["w"].flatten(1)}

    for (p, _), (q, _) in zip(
        run(optim.muon(0.1), kernel), run(optim.muon(0.1), rows, grads_at=flat_grads), strict=True
    ):
        assert torch.equal(p["w"].flatten(1), q["w"])


def test_partition_is_each_optimiser_on_its_own_parameters():
    params = some_params(torch.float64)
    parts = {"one": optim.adamw(0.01), "two": optim.sgd(0.1, 0.9)}
    both = run(optim.partition(lambda name: "one" if name == "bias" else "two", parts), params)

    def of_theirs(own, i):
        return {name: some_grads(params, i)[name] for name in own}

    alone = [run(parts[label], {name: params[name]}, of_theirs) for label, name in (("one", "bias"), ("two", "weight"))]
    for (p, state), (bias, adamw_state), (weight, sgd_state) in zip(both, *alone, strict=True):
        assert list(p) == list(params)
        assert torch.equal(p["bias"], bias["bias"])
        assert torch.equal(p["weight"], weight["weight"])
        torch.testing.assert_close(state, adamw_state | sgd_state, rtol=0, atol=0)


def test_partition_of_two_optimisers_of_one_kind_is_that_optimiser():
    params = some_params(torch.float64)
    parts = {name: optim.adamw(0.01) for name in params} | {"of none": optim.sgd(0.1, 0.9)}
    for (p, state), (q, whole) in zip(
        run(optim.partition(lambda name: name, parts), params), run(optim.adamw(0.01), params), strict=True
    ):
        torch.testing.assert_close((p, state), (q, whole), rtol=0, atol=0)


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
        (optim.piecewise_constant(2.0, {3: 0.5, 7: 0.0}), lambda s: 2.0 if s < 3 else 1.0 if s < 7 else 0.0),
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
    "muon": optim.partition(lambda name: "muon", {"muon": optim.muon(0.1, weight_decay=0.05)}),
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
        (lambda: optim.muon(0.1, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (
            lambda: optim.partition(str, {"a": optim.sgd(0.1)}).init({"b": torch.ones(1)}),
            "no optimizer for the labels b; there are",
        ),
        (lambda: optim.muon(0.1).init({"b": torch.zeros(3)}), "muon is for matrices and convolutions, not for b"),
        (lambda: optim.sgd(0.1, nesterov=True), "nesterov needs momentum"),
        (lambda: optim.sgd(0.1, 0.9, nesterov=True, form="paper"), "nesterov needs momentum"),
        (lambda: optim.sgd(0.1, form="caffe"), 'form must be "torch" or "paper"'),
        (lambda: optim.adamw(0.1, b1=1.0), r"b1 must lie in \[0, 1\), got 1.0"),
        (lambda: optim.warmup_cosine(0.1, 10, 10), "warmup_steps must lie in 0..total_steps-1"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


EVERY = {
    "sgd": optim.sgd(0.1, 0.9),
    "sgd without momentum": optim.sgd(0.1),
    "paper": optim.sgd(0.1, 0.9, form="paper"),
    "adamw": optim.adamw(0.1),
    "muon": optim.muon(0.1),
    "clip": optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1)),
    "decay": optim.chain(optim.add_decayed_weights(0.1), optim.sgd(0.1)),
    "accumulate": optim.accumulate(optim.sgd(0.1), 2),
    "averaged": optim.averaged(optim.sgd(0.1), 0.9),
    "partition": optim.partition(lambda name: name, {"w": optim.sgd(0.1, 0.9)}),
}


@pytest.mark.errors
@pytest.mark.parametrize("optimizer", EVERY.values(), ids=EVERY)
def test_gradients_and_states_that_do_not_fit_are_refused(optimizer):
    params, step = {"w": torch.ones(3, 2)}, torch.tensor(0)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"grads: w must be \[3, 2\], got \[2\]"):
        optimizer.update({"w": torch.ones(2)}, state, params, step)
    with pytest.raises(ValueError, match=r"grads: missing w \[3, 2\]; unexpected v"):
        optimizer.update({"v": torch.ones(3, 2)}, state, params, step)
    with pytest.raises(TypeError, match="grads must be a dict of tensors by name, got NoneType"):
        optimizer.update(None, state, params, step)
    with pytest.raises(ValueError, match="opt_state must be what this optimizer's init makes"):
        optimizer.update(params, {"of another": params}, params, step)
    for wrong in (None, [torch.ones(3, 2)], np.ones(3), torch.nn.Linear(2, 3)):
        with pytest.raises(TypeError, match=f"params must be a dict of tensors by name, got {type(wrong).__name__}"):
            optimizer.init(wrong)


@pytest.mark.errors
def test_moments_of_other_shapes_and_schedules_that_give_no_scalar_are_refused():
    params = {"w": torch.ones(3)}
    with pytest.raises(ValueError, match=r'opt_state\["velocity"\]: w must be \[3\], got \[4\]'):
        optim.sgd(0.1, 0.9).update(params, {"velocity": {"w": torch.ones(4)}}, params, torch.tensor(0))
    for wrong in (lambda step: torch.ones(2), lambda step: 0.1):
        for make in (optim.sgd, optim.adamw):
            optimizer = make(wrong)
            with pytest.raises(ValueError, match="a schedule must give a scalar tensor, got"):
                optimizer.update(params, optimizer.init(params), params, torch.tensor(0))


NUMBERS = {
    "learning_rate": lambda value: optim.sgd(value),
    "momentum": lambda value: optim.sgd(0.1, momentum=value),
    "weight_decay": lambda value: optim.adamw(0.1, weight_decay=value),
    "eps": lambda value: optim.adamw(0.1, eps=value),
    "b1": lambda value: optim.adamw(0.1, b1=value),
    "max_norm": lambda value: optim.clip_by_global_norm(value),
    "peak": lambda value: optim.warmup_cosine(value, 1, 9),
    "value": lambda value: optim.constant(value),
}


@pytest.mark.errors
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_looked_at_whether_they_are_pythons_or_tensors(name):
    for wrong in (-1.0, float("nan")):
        for value in (wrong, torch.tensor(wrong), torch.tensor(wrong, dtype=torch.float64)):
            with pytest.raises(ValueError, match=rf"{name} must (not be negative|lie in \[0, 1\)), got {wrong}"):
                NUMBERS[name](value)
        with pytest.raises(ValueError, match=f"{name} must"):
            torch.func.vmap(lambda v: NUMBERS[name](v) and v)(torch.tensor([0.5, wrong]))
    for value in (torch.tensor([0.1, 0.2]), torch.tensor(1j), torch.tensor(True), True, None, "0.1"):
        if not (callable(value) and name == "learning_rate"):
            with pytest.raises(TypeError, match=f"{name} must be a number or a scalar tensor, got"):
                NUMBERS[name](value)


@pytest.mark.parametrize("optimizer", [optim.adamw(0.1), optim.muon(0.1)], ids=["adamw", "muon"])
def test_derivatives_are_finite_where_gradients_are_zero(optimizer):
    params = {"w": torch.randn(4, 3, dtype=torch.float64)}
    zero, direction = ({"w": t} for t in (torch.zeros(4, 3).double(), torch.randn(4, 3, dtype=torch.float64)))
    one = {"w": direction["w"] * torch.tensor([0.0, 1.0, 0.0]).double()}  # some entries zero

    def updated(grads, params):
        return optimizer.update(grads, optimizer.init(params), params, torch.tensor(0))

    for at in (zero, one):
        _, pushed = torch.func.jvp(updated, (at, params), (direction, params))
        pulled = torch.func.vjp(updated, at, params)[1](pushed)
        second = grad(
            lambda g, at=at: sum(t.sum() for t in grad(lambda h: updated(h, params)[0]["w"].sin().sum())(g).values())
        )
        for tree in (pushed, pulled, second(at)):
            assert all(t.isfinite().all() for t in torch.utils._pytree.tree_leaves(tree))


def test_the_first_step_of_adamw_has_slope_one_by_eps_at_zero():
    """It is lr g / (|g| + eps)."""
    zero, direction = {"w": torch.zeros(3)}, {"w": torch.tensor([1.0, -2.0, 3.0])}
    optimizer = optim.adamw(0.1, eps=0.5, weight_decay=0.0)

    def moved(grads):
        return optimizer.update(grads, optimizer.init(zero), zero, torch.tensor(0))[0]

    _, pushed = torch.func.jvp(moved, (zero,), (direction,))
    torch.testing.assert_close(pushed["w"], -0.1 / 0.5 * direction["w"])


def test_adamw_has_the_same_bits_whether_it_is_differentiated_or_not():
    params, grads = some_params(torch.float32), some_grads(some_params(torch.float32), 0)
    grads["bias"][:3] = 0
    optimizer = optim.adamw(0.01)
    plain = optimizer.update(grads, optimizer.init(params), params, torch.tensor(0))
    traced, _ = torch.func.jvp(
        lambda g: optimizer.update(g, optimizer.init(params), params, torch.tensor(0)), (grads,), (grads,)
    )
    for ours, theirs in zip(*map(torch.utils._pytree.tree_leaves, (plain, traced)), strict=True):
        assert torch.equal(ours, theirs)


def test_muon_in_bfloat16_errs_no_more_than_torchs():
    matrices = [torch.randn(48, 96, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    ours, theirs = [], []
    for m in matrices:
        exact = optim.orthogonalized(m.double())
        parameter = torch.nn.Parameter(torch.zeros_like(m))
        parameter.grad = m.clone()
        torch.optim.Muon([parameter], lr=1.0, momentum=0.0, weight_decay=0.0).step()
        ours.append((optim.orthogonalized(m.bfloat16()).double() - exact).norm() / exact.norm())
        theirs.append((-parameter.detach().double() - exact).norm() / exact.norm())
    assert torch.stack(ours).mean() <= 1.1 * torch.stack(theirs).mean()


def test_schedules_take_tensors_and_differentiate():
    step = torch.tensor(3)
    piecewise = (lambda v: optim.piecewise_constant(v, {2: 0.5}), lambda v: optim.piecewise_constant(1.0, {2: v}))
    for make in (
        optim.constant,
        lambda v: optim.step_decay(v, (2,)),
        lambda v: optim.warmup_cosine(v, 2, 9),
        *piecewise,
    ):
        slope = grad(lambda v, make=make: make(v)(step))(torch.tensor(0.5, dtype=torch.float64))
        torch.testing.assert_close(slope, make(1.0)(step), rtol=1e-14, atol=0)


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
