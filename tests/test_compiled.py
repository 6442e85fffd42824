"""Donated steps that are interrupted, and spent states that come back in another guise."""

import copy
import io
import signal

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

import alexnet_func as af
from alexnet_func import checkpoint, optim, train

OPTIMIZER = optim.sgd(1e-4, 0.9)
BATCH = torch.arange(1.0, 4.0)


def loss(params, batch, *, key=None):
    return sum((p * batch * (i + 1)).square().sum() for i, p in enumerate(params.values()))


EAGER = train.make_step(loss, OPTIMIZER)


def fresh():
    params = {f"w{i}": torch.linspace(-1, 1, 3) + i for i in range(6)}
    return train.create_state(params, OPTIMIZER, key=af.random.key(0))


def values(state):
    return [t.clone() for t in pytree.tree_leaves((state.params, state.opt_state))]


@pytest.fixture
def traced(monkeypatch):
    """Donated steps whose graphs run as they were traced, operation after operation, and stop after `limit` of them."""
    compiler, limit = torch.compile, []

    def interruptible(graph, inputs):
        def run(*arguments):
            class Interrupted(torch.fx.Interpreter):
                done = 0

                def run_node(self, node):
                    self.done += 1
                    if limit and self.done > limit[0]:
                        raise KeyboardInterrupt
                    return super().run_node(node)

            return Interrupted(graph).run(*arguments)

        return run

    backend = aot_autograd(
        fw_compiler=interruptible, inference_compiler=interruptible, keep_inference_input_mutations=True
    )

    def compile_(function, *, fullgraph, dynamic, **_):
        return compiler(function, fullgraph=fullgraph, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_)
    return limit


@pytest.mark.compiled
def test_an_interrupted_step_leaves_no_torn_state_in_use(traced):
    step = train.compile_step(EAGER, donate=True)
    step(fresh(), BATCH)  # traced once
    torn = 0
    for limit in range(0, 400, 2):
        traced[:] = [limit]
        state = fresh()
        before = values(state)
        try:
            step(state, BATCH)
        except KeyboardInterrupt:
            written = [not torch.equal(a, b) for a, b in zip(values(state), before, strict=True)]
            torn += any(written) and not all(written)
            traced[:] = []
            with pytest.raises(ValueError, match=r"given to a donated step before, .* or was interrupted"):
                step(state, BATCH)
            with pytest.raises(ValueError, match="was given to a donated step before"):
                EAGER(state, BATCH)
        else:
            break
    assert torn > 3, "no interruption fell between the writes"


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one may fall into a finalizer
def test_interrupted_by_a_signal_at_any_moment_a_state_is_whole_or_refused():
    def interrupt(*_):
        raise KeyboardInterrupt

    step = train.compile_step(EAGER, donate=True)
    state, whole = fresh(), [values(fresh())]
    for _ in range(200):
        state, _ = step(state, BATCH)
        whole.append(values(state))
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = refused = 0
    try:
        for i in range(120):
            state = fresh()
            try:
                signal.setitimer(signal.ITIMER_REAL, 5e-5 * (1 + i % 40))
                for _ in range(200):
                    state, _ = step(state, BATCH)
            except (KeyboardInterrupt, SystemError):  # what one becomes in a generator that torch 2.11 reads
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if state.step < 0:
                refused += 1
                with pytest.raises(ValueError, match="was interrupted"):
                    step(state, BATCH)
            else:
                assert any(all(map(torch.equal, values(state), then)) for then in whole)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20
    assert refused


GUISES = {
    "itself": lambda state: state,
    "clones": lambda state: pytree.tree_map(torch.clone, state),
    "deepcopy": copy.deepcopy,
    "replaced": lambda state: state._replace(params={name: p.clone() for name, p in state.params.items()}),
    "a cloned step": lambda state: state._replace(step=state.step.clone()),
    "pickled": lambda state: _loaded(state),
    "later": lambda state: state._replace(step=state.step + 1_000_000),
    "detached": lambda state: pytree.tree_map(torch.Tensor.detach, state),
    "rebuilt": lambda state: train.TrainState(*state),
}


def _loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.compiled
@pytest.mark.usefixtures("traced")
def test_a_spent_state_is_refused_in_any_guise(tmp_path):
    step = train.compile_step(EAGER, donate=True)
    spent = fresh()
    step(spent, BATCH)
    for name, guise in GUISES.items():
        for use in (step, EAGER, train.compile_step(EAGER)):
            with pytest.raises(ValueError, match="was given to a donated step before"):
                use(guise(spent), BATCH)
            assert name
        with pytest.raises(ValueError, match="was given to a donated step before"):
            checkpoint.save(tmp_path / "spent", guise(spent), {})
        shown = guise(spent)
        with pytest.raises(ValueError, match="was given to a donated step before"):
            vmap(lambda b, state=shown: EAGER(state, b)[1]["loss"])(torch.stack([BATCH, BATCH]))
    assert not list(tmp_path.iterdir())


@pytest.mark.compiled
@pytest.mark.usefixtures("traced")
def test_what_the_compiler_refuses_leaves_the_state_good():
    step = train.compile_step(EAGER, donate=True)
    state = fresh()
    before = values(state)
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        step(state, torch.ones(7))
    assert all(torch.equal(a, b) for a, b in zip(values(state), before, strict=True))
    assert state.step == 0
    state, _ = step(state, BATCH)
    assert state.step == 1


@pytest.mark.compiled
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("donate", [False, True], ids=["compiled", "donated"])
def test_a_compiled_step_refuses_transforms_and_names_the_way(donate):
    step = train.compile_step(EAGER, donate=donate)
    refused = pytest.raises(
        ValueError, match=r"step cannot be differentiated, .*use the eager step of train\.make_step"
    )
    with refused:
        grad(lambda p: step(fresh()._replace(params=p), BATCH)[1]["loss"])(fresh().params)
    with refused:
        vmap(lambda b: step(fresh(), b)[1]["loss"])(torch.stack([BATCH, BATCH]))
    with refused:
        step(fresh()._replace(params={name: p.requires_grad_() for name, p in fresh().params.items()}), BATCH)
    with refused:  # a transform that wraps nothing of what is given
        rate = torch.tensor(0.1)
        grad(lambda r: _stepped(r, donate)[1]["loss"])(rate)
    with refused:
        _stepped(torch.tensor(0.1, requires_grad=True), donate)


def _stepped(rate, donate):
    optimizer = optim.sgd(rate)
    state = train.create_state({"w": torch.ones(3)}, optimizer, key=af.random.key(0))
    return train.compile_step(train.make_step(loss, optimizer), donate=donate)(state, BATCH)


def test_a_step_is_data():
    assert EAGER.compilation is None
    assert EAGER.precision is None
    donated = train.compile_step(EAGER, donate=True)
    assert donated.function is EAGER.function
    assert donated.compilation.donate
    assert not donated.compilation.cudagraph
    low = train.make_step(train.with_precision(loss, "tf32"), OPTIMIZER)
    assert (low.precision, train.compile_step(low).precision) == ("tf32", "tf32")
    for step in (EAGER, donated):
        with pytest.raises(AttributeError):
            step.precision = "bf16"
        assert not hasattr(step, "__dict__")


@pytest.mark.errors
def test_what_is_no_state_is_named():
    for wrong in (None, {}, fresh()._asdict(), tuple(fresh())):
        with pytest.raises(TypeError, match=f"state must be a TrainState, .* got {type(wrong).__name__}"):
            EAGER(wrong, BATCH)
