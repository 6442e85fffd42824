import functools

import pytest
import torch
from torch.utils import _pytree as pytree

import alexnet_func as af
from alexnet_func import optim, train
from tests.conftest import TINY, images, rms, tiny_forward, tiny_loss

STEPS = 10
OPTIMIZER = optim.sgd(optim.warmup_cosine(0.05, 2, 20), momentum=0.9, weight_decay=5e-4)


def initial(key, dtype):
    return train.create_state(af.init(key, TINY, dtype=dtype), OPTIMIZER, key=key)


def run(step, state, steps=STEPS):
    like = state.params["features.0.weight"]
    losses = []
    for i in range(steps):
        x, y = images(TINY, 8, like.dtype, seed=i)
        state, metrics = step(state, (x.to(like.device), y.to(like.device)))
        losses.append(metrics["loss"].clone())
    return state, torch.stack(losses)


def tensors(state):
    return pytree.tree_leaves((state.params, state.opt_state))


@pytest.fixture(scope="module")
def eager_step():
    return train.make_step(tiny_loss, OPTIMIZER)


@pytest.fixture(scope="module")
def eager(eager_step, key):
    return {dtype: run(eager_step, initial(key, dtype)) for dtype in (torch.float32, torch.float64)}


@pytest.fixture(scope="module")
def pure_step(eager_step):
    return train.compile_step(eager_step)


@pytest.fixture(scope="module")
def donated_step(eager_step):
    return train.compile_step(eager_step, donate=True)


def test_a_step_is_autograd_and_torch_optim_in_the_module(key):
    """Ten steps without dropout against nn.Module, loss.backward() and torch.optim.SGD."""
    params = af.init(key, TINY, dtype=torch.float64)
    optimizer = optim.sgd(0.05, momentum=0.9, weight_decay=5e-4)
    step = train.make_step(lambda p, b, *, key=None: tiny_loss(p, b), optimizer)
    state, _ = run(step, train.create_state(params, optimizer, key=key))
    module = af.interop.to_module(params, TINY)
    torch_optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for i in range(STEPS):
        x, y = images(TINY, 8, torch.float64, seed=i)
        torch_optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        torch_optimizer.step()
    for name, p in module.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-10, atol=1e-12)


def test_the_key_of_a_step_is_a_fold_of_its_number(eager_step, key):
    state, batch = initial(key, torch.float32), images(TINY, 8)
    for i in range(3):
        expected = tiny_loss(state.params, batch, key=af.random.fold_in(key, i))
        state, metrics = eager_step(state, batch)
        assert torch.equal(metrics["loss"], expected)
        assert state.step.item() == i + 1
    assert torch.equal(state.key, key)


def test_a_run_resumed_at_a_step_continues_bit_for_bit(eager_step, eager, key):
    halfway, _ = run(eager_step, initial(key, torch.float32), steps=4)
    state = halfway._replace(step=halfway.step.clone())
    for i in range(4, STEPS):
        state, _ = eager_step(state, images(TINY, 8, seed=i))
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), tensors(eager[torch.float32][0]), strict=True))


def test_an_eager_step_leaves_its_state_and_keeps_no_tape(eager_step, key):
    state = initial(key, torch.float32)
    before = [t.clone() for t in tensors(state)]
    new, metrics = eager_step(state, images(TINY, 8))
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))
    assert not any(t.requires_grad for t in [*tensors(new), metrics["loss"]])


def test_create_state_copies(key):
    params = af.init(key, TINY)
    state = train.create_state(params, OPTIMIZER, key=key)
    assert all(torch.equal(state.params[n], p) and state.params[n] is not p for n, p in params.items())
    assert state.params["features.0.weight"].data_ptr() != params["features.0.weight"].data_ptr()
    assert state.key.data_ptr() != key.data_ptr()
    assert state.step.dtype == torch.int64


def test_aux_and_grad_fn(key):
    def with_aux(params, batch, *, key=None):
        return tiny_loss(params, batch, key=key), {"count": torch.tensor(len(batch[1]))}

    state, batch = initial(key, torch.float32), images(TINY, 8)
    expected, metrics = train.make_step(with_aux, OPTIMIZER, has_aux=True)(state, batch)
    assert metrics["count"] == 8

    def grad_fn(params, batch, key):
        loss = tiny_loss(params, batch, key=key)
        return torch.func.grad(tiny_loss)(params, batch, key=key), {"loss": loss, "mine": loss * 2}

    ours, metrics = train.make_step(None, OPTIMIZER, grad_fn=grad_fn)(state, batch)
    assert torch.equal(metrics["mine"], metrics["loss"] * 2)
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(expected), strict=True))


@pytest.mark.compiled
@pytest.mark.parametrize("route", ["pure", "donated"])
def test_compiled_steps_equal_the_eager_one_in_float64(route, eager, key, request):
    step = request.getfixturevalue(f"{route}_step")
    state, losses = run(step, initial(key, torch.float64))
    expected, expected_losses = eager[torch.float64]
    assert state.step.item() == STEPS
    torch.testing.assert_close(losses, expected_losses, rtol=1e-12, atol=0)
    for ours, theirs in zip(tensors(state), tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.compiled
def test_a_compiled_step_in_float32_is_as_accurate_as_the_eager_one(donated_step, eager, key):
    state, _ = run(donated_step, initial(key, torch.float32))
    exact = tensors(run(train.make_step(tiny_loss, OPTIMIZER), _as_double(initial(key, torch.float32)))[0])
    ours = rms([a.double() - b for a, b in zip(tensors(state), exact, strict=True)])
    theirs = rms([a.double() - b for a, b in zip(tensors(eager[torch.float32][0]), exact, strict=True)])
    assert ours <= 2 * theirs + 2**-24 * rms(exact)


def _as_double(state):
    return pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, state)


@pytest.fixture
def only_traced(monkeypatch):
    """torch.compile that traces as ever and then runs the graph as it is, which takes no time to build."""
    compiler = torch.compile

    def trace(function, *, fullgraph, dynamic, **_):
        return compiler(function, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", trace)


@pytest.mark.compiled
@pytest.mark.usefixtures("only_traced")
def test_a_sweep_of_compiled_steps_and_shapes_is_not_limited(key):
    # torch.compile gives up after eight recompilations of one piece of code.
    loss = lambda params, batch, *, key=None: (params["w"] * batch[0]).sum()  # noqa: E731
    params, x = {"w": torch.ones(2)}, torch.ones(2)
    for i in range(10):
        optimizer = optim.sgd(0.1 * i)
        step = train.compile_step(train.make_step(loss, optimizer), donate=True)
        state, _ = step(train.create_state(params, optimizer, key=key), (x, x))
        torch.testing.assert_close(state.params["w"], 1 - 0.1 * i * x)
    step = train.compile_step(train.make_step(loss, optimizer))
    for n in range(1, 11):
        step(train.create_state(params, optimizer, key=key), (torch.ones(n, 2), x))


@pytest.mark.compiled
@pytest.mark.usefixtures("only_traced")
def test_a_wrapped_step_is_compiled_with_its_wrapper(key):
    optimizer = optim.sgd(0.1)
    step = train.make_step(lambda p, b, *, key=None: (p["w"] * b[0]).sum(), optimizer)

    @functools.wraps(step)
    def logged(state, batch):
        state, metrics = step(state, batch)
        return state, {**metrics, "norm": state.params["w"].norm()}

    state = train.create_state({"w": torch.ones(2)}, optimizer, key=key)
    assert set(train.compile_step(logged)(state, (torch.ones(2), torch.ones(2)))[1]) == {"loss", "norm"}


def test_an_opt_state_that_starts_as_the_params_shares_nothing_with_them(key):
    slow = optim.Optimizer(lambda params: {"slow": dict(params)}, lambda g, s, p, step: (p, s))
    state = train.create_state({"w": torch.ones(2)}, slow, key=key)
    assert state.opt_state["slow"]["w"].data_ptr() != state.params["w"].data_ptr()


FEW = [images(TINY, 4, torch.float64, seed=i) for i in range(3)]


def trained(params, rate, key, steps=2):
    """The loss after a few steps of dropout training: what a meta-gradient differentiates."""
    optimizer = optim.sgd(rate, momentum=0.9, weight_decay=5e-4)
    step = train.make_step(tiny_loss, optimizer)
    state = train.create_state(params, optimizer, key=key)
    for i in range(steps):
        state, _ = step(state, FEW[i])
    return tiny_loss(state.params, FEW[-1])


def slope(function, at, along, h=1e-5):
    """By central differences."""

    def moved(by):
        return {name: p + by * along[name] for name, p in at.items()} if isinstance(at, dict) else at + by * along

    return (function(moved(h)) - function(moved(-h))) / (2 * h)


def test_gradients_flow_through_training_by_every_route(key):
    """MAML's gradient: they were zero without a word, forward mode apart."""
    params, rate = af.init(key, TINY, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    along = {name: 0.01 * torch.randn_like(p) for name, p in params.items()}
    expected = slope(lambda p: trained(p, rate, key), params, along)
    assert abs(expected) > 1e-4

    def along_of(grads):
        return sum((grads[name] * along[name]).sum() for name in params)

    by_grad = torch.func.grad(trained)(params, rate, key)
    _, by_jvp = torch.func.jvp(lambda p: trained(p, rate, key), (params,), (along,))
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    trained(leaves, rate, key).backward()
    for found in (along_of(by_grad), by_jvp, along_of({name: p.grad for name, p in leaves.items()})):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_gradients_flow_by_what_the_optimizer_holds(key):
    """By the learning rate, which is no argument of the step."""
    params, rate = af.init(key, TINY, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    expected = slope(lambda r: trained(params, r, key), rate, torch.ones_like(rate))
    by_grad = torch.func.grad(lambda r: trained(params, r, key))(rate)
    leaf = rate.clone().requires_grad_()
    trained(params, leaf, key).backward()
    for found in (by_grad, leaf.grad):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    rates = torch.stack([rate, rate / 2])
    torch.testing.assert_close(
        torch.func.vmap(lambda r: trained(params, r, key))(rates), torch.stack([trained(params, r, key) for r in rates])
    )


def test_gradients_flow_by_what_the_loss_holds(key):
    params, batch = {"w": torch.randn(3, dtype=torch.float64)}, torch.randn(3, dtype=torch.float64)
    weight, optimizer = torch.tensor(0.5, dtype=torch.float64, requires_grad=True), optim.sgd(0.1, 0.9)

    def after(weight):
        step = train.make_step(lambda p, b, *, key=None: (p["w"] * b + weight * p["w"] ** 2).sum().square(), optimizer)
        return step(train.create_state(params, optimizer, key=key), batch)[0].params["w"].square().sum()

    after(weight).backward()
    expected = slope(after, weight.detach(), torch.ones(()).double())
    torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=0)


def test_totals_differentiate_and_evaluations_refuse(key):
    params, batch = af.init(key, TINY, dtype=torch.float64), images(TINY, 3, torch.float64)
    grads = torch.func.grad(lambda p: train.totals(tiny_forward, p, [batch])[0])(params)
    expected = torch.func.grad(tiny_loss)(params, batch)
    for name, g in expected.items():
        torch.testing.assert_close(grads[name], 3 * g, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"an evaluation gives Python numbers, .* use train\.totals"):
        torch.func.grad(lambda p: torch.tensor(train.evaluate(tiny_forward, p, [batch]).loss))(params)
    watched = {name: p.requires_grad_() for name, p in params.items()}
    assert train.evaluate(tiny_forward, watched, [batch]).count == 3


@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_a_precision_is_kept_or_its_loss_is_refused(key, precision):
    """By whatever function the loss is wrapped."""
    low = train.with_precision(tiny_loss, precision)
    seen = []

    def spied(params, batch, *, key=None):
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return tiny_loss(params, batch, key=key)

    inner = train.with_precision(spied, precision)
    wrapped = lambda params, batch, *, key=None: inner(params, batch, key=key)  # noqa: E731
    state, batch = initial(key, torch.float32), images(TINY, 2)
    refused = pytest.raises(ValueError, match=rf'with_precision\(loss, "{precision}"\) is differentiated where its')
    for step in (train.make_step(wrapped, OPTIMIZER), train.make_step(None, OPTIMIZER, grad_fn=_gradient(inner))):
        with refused:
            step(state, batch)
        with af.precision.tf32(precision == "tf32"):
            step(state, batch)
    with refused:
        torch.func.grad(low)(state.params, batch)
    with refused:
        low({name: p.clone().requires_grad_() for name, p in state.params.items()}, batch)
    for kept in (train.make_step(inner, OPTIMIZER), train.make_step(functools.partial(inner), OPTIMIZER)):
        kept(state, batch)
    inner(state.params, batch)  # nobody differentiates: it is computed as asked
    assert set(seen) == {precision == "tf32"}


def _gradient(loss):
    return lambda params, batch, key: (torch.func.grad(loss)(params, batch), {"loss": torch.zeros(())})


@pytest.mark.errors
@pytest.mark.parametrize("wrong", [None, [torch.ones(2)], torch.nn.Linear(2, 2), torch.ones(2).numpy()], ids=type)
def test_params_that_are_no_dict_are_named(key, wrong):
    name, batch = type(wrong).__name__, images(TINY, 2)
    for call in (
        lambda: train.create_state(wrong, OPTIMIZER, key=key),
        lambda: tiny_forward(wrong, batch[0]),
        lambda: tiny_loss(wrong, batch),
        lambda: af.per_sample.norms(wrong, batch, arch=TINY),
        lambda: af.per_sample.dots(wrong, batch, {}, arch=TINY),
        lambda: af.per_sample.norms(wrong, batch, loss_fn=tiny_loss),
        lambda: af.ensemble.forward(wrong, batch[0], arch=TINY),
        lambda: af.ensemble.stack([wrong]),
        lambda: af.curvature.hvp(torch.sum, wrong, {}),
        lambda: af.curvature.top_eigenvalues(torch.sum, wrong, 1, key=key),
        lambda: af.interop.to_module(wrong, TINY),
    ):
        with pytest.raises(TypeError, match=f"must be a dict of tensors by name, got {name}"):
            call()


@pytest.mark.errors
@pytest.mark.parametrize("length", [1, 3])
def test_batches_that_are_no_pair_are_named(key, length):
    params, members = af.init(key, TINY), af.ensemble.init(af.random.split(key), TINY)
    batch = images(TINY, 2)[:1] * length
    for call in (
        lambda: tiny_loss(params, batch),
        lambda: af.per_sample.norms(params, batch, arch=TINY),
        lambda: train.evaluate(tiny_forward, params, [batch]),
        lambda: af.ensemble.grad_fn(tiny_loss)(members, batch, key),
        lambda: af.parallel.grad_fn(tiny_loss)(params, batch, key),
    ):
        with pytest.raises(ValueError, match=rf"batch must be a pair \(x, y\), got {length} parts"):
            call()
    with pytest.raises(ValueError, match=r"batch must be \(x, y\) or \(x, y, weights\), got 4 parts"):
        af.privacy.dp_grad_fn(1.0, 1.0, 2.0, arch=TINY)(params, batch[:1] * 4, key)
    with pytest.raises(TypeError, match=r"batch must be a pair \(x, y\), got Tensor"):
        tiny_loss(params, batch[0])


@pytest.mark.errors
@pytest.mark.parametrize("wrong", [None, torch.optim.SGD([torch.zeros(1)], 0.1), optim.ema(0.9)], ids=type)
def test_what_is_no_optimizer_is_named(key, wrong):
    for call in (
        lambda: train.make_step(tiny_loss, wrong),
        lambda: train.create_state(af.init(key, TINY), wrong, key=key),
    ):
        with pytest.raises(TypeError, match=rf"must be an optim\.Optimizer, got {type(wrong).__name__}"):
            call()


def test_a_partial_of_a_loss_keeps_its_precision(key):
    low = functools.partial(train.with_precision(af.loss_fn, "tf32"), arch=TINY)
    assert af.precision.precision_of(low) == "tf32"
    for grad_fn in (af.ensemble.grad_fn(low), af.parallel.grad_fn(low)):
        assert train.make_step(None, OPTIMIZER, grad_fn=grad_fn).precision == "tf32"
    bf16 = functools.partial(train.with_precision(af.loss_fn, "bf16"), arch=TINY)
    for options, kept in (({"loss_fn": bf16}, "bf16"), ({"arch": TINY}, "float32")):  # never tf32
        private = af.privacy.dp_grad_fn(1.0, 1.0, 2.0, **options)
        assert train.make_step(None, OPTIMIZER, grad_fn=private).precision == kept


@pytest.mark.compiled
def test_a_pure_compiled_step_leaves_its_state(pure_step, key):
    state = initial(key, torch.float64)
    before = [t.clone() for t in tensors(state)]
    pure_step(state, images(TINY, 8, torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))


@pytest.mark.compiled
def test_a_donated_step_writes_into_the_state_and_spends_it(donated_step, key):
    state = initial(key, torch.float64)
    new, _ = donated_step(state, images(TINY, 8, torch.float64))
    pairs = zip(tensors(state), tensors(new), strict=True)
    assert all(old.data_ptr() == updated.data_ptr() for old, updated in pairs)
    assert new.step is not state.step
    assert state.step.item() < 0
    for step in (donated_step, train.make_step(tiny_loss, OPTIMIZER)):
        with pytest.raises(ValueError, match="was given to a donated step before"):
            step(state, images(TINY, 8, torch.float64))
    again, _ = donated_step(new, images(TINY, 8, torch.float64))
    assert again.step.item() == 2


@pytest.mark.compiled
def test_a_donated_step_goes_by_name_whatever_the_order(donated_step, eager_step, key):
    state, batch = initial(key, torch.float64), images(TINY, 8, torch.float64)
    expected, _ = eager_step(state, batch)
    velocity = dict(reversed(state.opt_state["velocity"].items()))
    ours, _ = donated_step(state._replace(opt_state={"velocity": velocity}), batch)
    torch.testing.assert_close(ours.params, expected.params, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(ours.opt_state, expected.opt_state, rtol=1e-10, atol=1e-13)


@pytest.mark.errors
def test_wrong_use_is_refused(eager_step, key):
    with pytest.raises(ValueError, match="cudagraph=True needs donate=True"):
        train.compile_step(eager_step, cudagraph=True)
    with pytest.raises(ValueError, match="cudagraph=True needs a state on CUDA, got cpu"):
        train.compile_step(eager_step, donate=True, cudagraph=True)(initial(key, torch.float32), images(TINY, 8))
    with pytest.raises(ValueError, match="make_step needs a loss_fn or a grad_fn"):
        train.make_step(None, OPTIMIZER)
    with pytest.raises(ValueError, match='precision must be "float32", "tf32" or "bf16"'):
        train.with_precision(tiny_loss, "fp8")
    with pytest.raises(ValueError, match="evaluate needs at least one example"):
        train.evaluate(tiny_forward, af.init(key, TINY), [])


def test_bf16_computes_low_over_float32_masters(key):
    params, batch = af.init(key, TINY), images(TINY, 64)
    low = train.with_precision(tiny_loss, "bf16")
    assert low(params, batch).dtype == torch.float32
    rounded = {n: p.bfloat16() for n, p in params.items()}
    assert torch.equal(low(params, batch), tiny_loss(rounded, (batch[0].bfloat16(), batch[1])))
    grads = torch.func.grad(low)(params, batch)
    exact = torch.func.grad(tiny_loss)(params, batch)
    assert all(g.dtype == torch.float32 for g in grads.values())
    error = rms([grads[n] - exact[n] for n in exact]) / rms(list(exact.values()))
    assert 1e-5 < error < 3e-2
    state, _ = train.make_step(low, OPTIMIZER)(initial(key, torch.float32), batch)
    assert all(p.dtype == torch.float32 for p in tensors(state))


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bf16", None)])
@pytest.mark.parametrize("before", [False, True])
def test_precision_holds_for_forward_and_backward_and_leaves_no_global_changed(key, precision, allowed, before):
    seen = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(x):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return g

    def spied(params, batch, *, key=None):
        return Spy.apply(tiny_loss(params, batch, key=key))

    step = train.make_step(train.with_precision(spied, precision), OPTIMIZER)
    torch.backends.cuda.matmul.allow_tf32 = before
    try:
        step(initial(key, torch.float32), images(TINY, 2))
        assert torch.backends.cuda.matmul.allow_tf32 is before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert seen == [before if allowed is None else allowed] * 2


def test_evaluate_counts_every_example_once(key):
    params, (x, y) = af.init(key, TINY.replace(num_classes=8)), images(TINY.replace(num_classes=8), 11)
    forward = functools.partial(af.forward, arch=TINY.replace(num_classes=8))
    logits = forward(params, x)
    ranks = (logits > logits.gather(1, y[:, None])).sum(1)
    result = train.evaluate(forward, params, zip(x.split(4), y.split(4), strict=True))
    assert result.count == 11
    assert result.top1 == pytest.approx((ranks < 1).double().mean().item())
    assert result.top5 == pytest.approx((ranks < 5).double().mean().item())
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    few = train.evaluate(tiny_forward, af.init(key, TINY), [images(TINY, 4), images(TINY, 0)])
    assert few.top5 == 1


@pytest.mark.gpu
@pytest.mark.compiled
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow, id="pure"),
        pytest.param({"donate": True}, id="donated"),
        pytest.param({"donate": True, "cudagraph": True}, id="cudagraph"),
    ],
)
def test_on_cuda_compiled_steps_are_the_eager_ones_of_a_cpu_in_float64(eager, eager_step, key, options):
    expected, expected_losses = eager[torch.float64]
    step = train.compile_step(eager_step, **options)
    params = {name: p.cuda() for name, p in initial(key, torch.float64).params.items()}
    state, losses = run(step, train.create_state(params, OPTIMIZER, key=key))
    torch.testing.assert_close(losses.cpu(), expected_losses, rtol=1e-9, atol=0)
    for ours, theirs in zip(tensors(state), tensors(expected), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.compiled
def test_a_cuda_graph_is_recorded_once(eager_step, key, monkeypatch):
    recorded = []
    enter = torch.cuda.graph.__enter__
    monkeypatch.setattr(torch.cuda.graph, "__enter__", lambda graph: (recorded.append(graph), enter(graph))[1])
    step = train.compile_step(eager_step, donate=True, cudagraph=True)
    params = {name: p.cuda() for name, p in initial(key, torch.float32).params.items()}
    state, _ = run(step, train.create_state(params, OPTIMIZER, key=key), steps=3)
    count = len(recorded)
    assert count
    run(step, state, steps=5)
    assert len(recorded) == count, "a graph was recorded anew"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_on_cuda_gradients_are_those_of_a_cpu_in_float64(key, name):
    arch = af.arch.get(name)
    params, (x, y) = af.init(key, arch), images(arch, 2)
    wide = {name: p.double() for name, p in params.items()}
    expected = torch.func.grad(af.loss_fn)(wide, (x.double(), y), arch=arch, key=key)
    low = torch.func.grad(af.loss_fn)(params, (x, y), arch=arch, key=key)
    on_cuda = {name: p.cuda() for name, p in params.items()}
    # cuDNN's float32 gradients of some weights are a thousand times less exact (parity/results/cuda_convolutions.md).
    with af.precision.tf32(False), torch.backends.cudnn.flags(enabled=False):
        ours = torch.func.grad(af.loss_fn)(on_cuda, (x.cuda(), y.cuda()), arch=arch, key=key.cuda())
    for layer, g in expected.items():
        budget = 3 * rms(low[layer].double() - g) + 1e-6 * rms(g)
        assert rms(ours[layer].cpu().double() - g) <= budget, layer
