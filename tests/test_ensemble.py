import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad

import alexnet_func as af
from alexnet_func import ensemble, optim, train
from tests.conftest import TINY, images, tiny_loss

MEMBERS = 3


@pytest.fixture(scope="module")
def keys(key):
    return af.random.split(key, MEMBERS)


@pytest.fixture(scope="module")
def members(keys):
    return [af.init(k, TINY, dtype=torch.float64) for k in keys]


@pytest.fixture(scope="module")
def stacked(members):
    return ensemble.stack(members)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_init_draws_each_member_as_it_would_be_drawn_alone(keys, dtype):
    stacked = ensemble.init(keys, TINY, dtype=dtype)
    for i, k in enumerate(keys):
        alone = af.init(k, TINY, dtype=dtype)
        assert all(torch.equal(stacked[name][i], p) for name, p in alone.items())
    assert all(p.is_contiguous() for p in stacked.values())


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3), st.integers(1, 4))
@settings(max_examples=30)
def test_unstack_is_the_inverse_of_stack(shapes, count):
    members = [{str(i): torch.randn(shape) for i, shape in enumerate(shapes)} for _ in range(count)]
    back = ensemble.unstack(ensemble.stack(members))
    assert len(back) == count
    for member, again in zip(members, back, strict=True):
        assert all(torch.equal(member[name], again[name]) for name in member)
    twice = ensemble.stack(back)
    assert all(torch.equal(twice[name], p) for name, p in ensemble.stack(members).items())


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_forward_is_a_loop_over_the_members(stacked, members, keys, key, own, dropout, chunk_size):
    xs = torch.stack([images(TINY, 4, torch.float64, seed=i)[0] for i in range(MEMBERS)])
    x = xs if own else xs[0]
    for given_key in (key, keys) if dropout else (None,):
        ours = ensemble.forward(stacked, x, arch=TINY, key=given_key, chunk_size=chunk_size)
        for i, member in enumerate(members):
            member_key = keys[i] if dropout else None
            close(ours[i], af.forward(member, xs[i] if own else x, arch=TINY, key=member_key))


def test_one_image_is_shared(stacked, members):
    (x, *_), _ = images(TINY, 1, torch.float64)
    close(ensemble.forward(stacked, x, arch=TINY), torch.stack([af.forward(m, x, arch=TINY) for m in members]))


def test_the_average_is_of_probabilities(stacked, members):
    x, _ = images(TINY, 6, torch.float64)
    expected = sum(af.forward(m, x, arch=TINY).softmax(-1) for m in members) / MEMBERS
    average = ensemble.average(stacked, x, arch=TINY)
    close(average.exp(), expected)
    far = {name: 1e4 * p for name, p in stacked.items()}  # where probabilities underflow
    assert ensemble.average(far, x, arch=TINY).isfinite().all()


RATES = torch.tensor([0.1, 0.01, 0.0])


def rising(rate):
    """Momentum, decay and a schedule of the member's own rate."""
    return optim.sgd(lambda step: rate * (1 + step) / 5, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("make", [rising, functools.partial(optim.adamw, weight_decay=0.1)])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_training_is_a_loop_over_the_members_each_with_its_key_and_rate(stacked, members, key, own, make, chunk_size):
    optimizer = ensemble.optimizer(make, RATES)
    step = train.make_step(None, optimizer, grad_fn=ensemble.grad_fn(tiny_loss, chunk_size=chunk_size))
    state = train.create_state(stacked, optimizer, key=key)
    alone = [(m, make(rate).init(m)) for m, rate in zip(members, RATES, strict=True)]
    for i in range(4):
        batches = [images(TINY, 6, torch.float64, seed=10 * i + m * own) for m in range(MEMBERS)]
        batch = tuple(torch.stack(parts) for parts in zip(*batches, strict=True)) if own else batches[0]
        state, metrics = step(state, batch)
        keys = af.random.split(af.random.fold_in(key, i), MEMBERS)
        losses = []
        for m, (params, opt_state) in enumerate(alone):
            losses.append(tiny_loss(params, batches[m], key=keys[m]))
            grads = grad(tiny_loss)(params, batches[m], key=keys[m])
            alone[m] = make(RATES[m]).update(grads, opt_state, params, torch.tensor(i))
        close(metrics["losses"], torch.stack(losses))
        close(metrics["loss"], torch.stack(losses).mean())
    for m, member in enumerate(ensemble.unstack(state.params)):
        for name, p in member.items():
            close(p, alone[m][0][name])


@pytest.mark.compiled
def test_a_donated_step_is_the_eager_one(stacked, key):
    optimizer = ensemble.optimizer(rising, RATES)
    step = train.make_step(None, optimizer, grad_fn=ensemble.grad_fn(tiny_loss))
    eager, donated = (train.create_state(stacked, optimizer, key=key) for _ in range(2))
    compiled = train.compile_step(step, donate=True)
    for i in range(3):
        batch = images(TINY, 6, torch.float64, seed=i)
        (eager, expected), (donated, metrics) = step(eager, batch), compiled(donated, batch)
        torch.testing.assert_close(metrics["losses"], expected["losses"], rtol=1e-10, atol=1e-12)
    for name, p in eager.params.items():
        torch.testing.assert_close(donated.params[name], p, rtol=1e-10, atol=1e-12)


@pytest.mark.errors
def test_mistakes_are_named(stacked, members, key, keys):
    x, _ = images(TINY, 4, torch.float64)
    with pytest.raises(ValueError, match="members must not be empty"):
        ensemble.stack([])
    other = {**members[1], "classifier.4.bias": torch.zeros(6)}
    with pytest.raises(ValueError, match=r"member 1: classifier.4.bias must be \[5\], got \[6\]"):
        ensemble.stack([members[0], other])
    with pytest.raises(ValueError, match=r"keys must be \[M, 2\], one a member, .* got \[2\]"):
        ensemble.init(key, TINY)
    with pytest.raises(ValueError, match=r"x \[2, 4, 3, 15, 15\] holds batches for 2 members, and there are 3"):
        ensemble.forward(stacked, torch.stack([x, x]), arch=TINY)
    with pytest.raises(ValueError, match=r"key must have shape \[2\] or \[3, 2\], got \[2, 2\]"):
        ensemble.forward(stacked, x, arch=TINY, key=keys[:2])
    with pytest.raises(ValueError, match="stacked parameters must share a leading axis, one entry a member"):
        ensemble.forward(members[0], x, arch=TINY)
    with pytest.raises(ValueError, match=r"rates must have shape \[3\], one a member, got \[2\]"):
        ensemble.optimizer(rising, RATES[:2]).init(stacked)
    with pytest.raises(ValueError, match="the members are on cpu but rates are on meta"):
        ensemble.optimizer(rising, RATES.to("meta")).init(stacked)
    with pytest.raises(ValueError, match=r"labels must lie in 0..4, got 0..9"):
        ensemble.grad_fn(tiny_loss)(stacked, (x, torch.tensor([0, 1, 2, 9])), key)
