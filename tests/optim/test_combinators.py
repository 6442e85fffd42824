"""Against optax, whose names and arguments these have, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.func import grad, jvp, vmap

from alexnet_func import checkpoint, optim, random, train

STEPS = 6
DTYPE = torch.float64


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (5, 3), "bias": (4,)}
    return {name: torch.randn(shape, generator=generator, dtype=DTYPE) for name, shape in shapes.items()}


PARAMS = drawn(0)
GRADS = [{name: (0.3 + i) * g for name, g in drawn(10 + i).items()} for i in range(STEPS)]


def run(optimizer, steps=STEPS):
    own, state = PARAMS, optimizer.init(PARAMS)
    for i in range(steps):
        own, state = optimizer.update(GRADS[i], state, own, torch.tensor(i))
    return own, state


def run_optax(transform, steps=STEPS):
    with jax.enable_x64(True):
        own = {name: jnp.asarray(p.numpy()) for name, p in PARAMS.items()}
        state = transform.init(own)
        for i in range(steps):
            grads = {name: jnp.asarray(g.numpy()) for name, g in GRADS[i].items()}
            updates, state = transform.update(grads, state, own)
            own = optax.apply_updates(own, updates)
        return {name: torch.from_numpy(np.array(p)) for name, p in own.items()}


def is_weight(name):
    return name == "weight"


def mask(tree):
    return {name: is_weight(name) for name in tree}


PAIRS = {
    "clip": (
        lambda: optim.chain(optim.clip_by_global_norm(2.0), optim.sgd(0.1, 0.9)),
        lambda: optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(0.1, 0.9)),
    ),
    "no decay on biases": (
        lambda: optim.chain(optim.masked(optim.add_decayed_weights(0.1), is_weight), optim.sgd(0.1, 0.9)),
        lambda: optax.chain(optax.add_decayed_weights(0.1, mask), optax.sgd(0.1, 0.9)),
    ),
    "clip within a mask": (
        lambda: optim.chain(optim.masked(optim.clip_by_global_norm(0.5), is_weight), optim.adamw(0.1)),
        lambda: optax.chain(optax.masked(optax.clip_by_global_norm(0.5), mask), optax.adamw(0.1, weight_decay=0.01)),
    ),
    "ema of gradients": (
        lambda: optim.chain(optim.ema(0.8), optim.sgd(0.1)),
        lambda: optax.chain(optax.ema(0.8), optax.sgd(0.1)),
    ),
    "accumulate": (
        lambda: optim.accumulate(optim.sgd(0.1, 0.9), 3),
        lambda: optax.MultiSteps(optax.sgd(0.1, 0.9), 3),
    ),
    "partition of chains": (
        lambda: optim.partition(
            lambda name: name,
            {
                "weight": optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1, 0.9)),
                "bias": optim.chain(optim.ema(0.5), optim.adamw(0.2)),
            },
        ),
        lambda: optax.partition(
            {
                "weight": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
                "bias": optax.chain(optax.ema(0.5), optax.adamw(0.2, weight_decay=0.01)),
            },
            lambda tree: {name: name for name in tree},
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_parts_are_optaxs(name):
    ours, theirs = PAIRS[name]
    rtol = 1e-6 if name == "accumulate" else 1e-12  # optax accumulates in float32
    torch.testing.assert_close(run(ours())[0], run_optax(theirs()), rtol=rtol, atol=1e-14)


def test_global_norm_is_that_of_all_entries_together():
    flat = torch.cat([g.flatten() for g in GRADS[0].values()])
    torch.testing.assert_close(optim.global_norm(GRADS[0]), flat.norm(), rtol=1e-14, atol=0)
    many = {"a": torch.full((30_000_000,), 1e-3), "b": torch.full((), 2.0)}
    assert optim.global_norm(many).item() == pytest.approx((30_000_000 * 1e-6 + 4) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden_by_clipping(value):
    grads = {name: g.clone() for name, g in GRADS[0].items()}
    grads["bias"][0] = value
    clipped, _ = optim.clip_by_global_norm(1.0).update(grads, {}, PARAMS, torch.tensor(0))
    assert clipped["bias"][0].isnan()
    assert not clipped["weight"].any() or clipped["weight"].isnan().all()


def test_zero_gradients_are_neither_scaled_nor_without_derivative():
    zeros = {name: torch.zeros_like(p) for name, p in PARAMS.items()}
    for bound in (1.0, 0.0):

        def clipped(g, bound=bound):
            return optim.clip_by_global_norm(bound).update(g, {}, PARAMS, torch.tensor(0))[0]["bias"].sum()

        assert clipped(zeros) == 0
        assert all(torch.equal(g, torch.full_like(g, name == "bias")) for name, g in grad(clipped)(zeros).items())


def test_the_average_of_parameters_is_its_sum_and_is_evaluated_as_they_are():
    decay = 0.7
    optimizer = optim.averaged(optim.sgd(0.1, 0.9), decay)
    own, state = PARAMS, optimizer.init(PARAMS)
    visited = []
    for i in range(STEPS):
        own, state = optimizer.update(GRADS[i], state, own, torch.tensor(i))
        visited.append(own)
    weights = decay ** np.arange(STEPS - 1, -1, -1)
    weights = torch.from_numpy(weights / weights.sum())
    for name, average in state["ema"].items():
        expected = torch.tensordot(weights, torch.stack([p[name] for p in visited]), 1)
        torch.testing.assert_close(average, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(own, run(optim.sgd(0.1, 0.9))[0], rtol=0, atol=0)
    logits = train.evaluate(
        lambda p, x: x @ p["weight"].T, state["ema"], [(torch.ones(2, 3, dtype=DTYPE), own["bias"][:2].long() * 0)]
    )
    assert logits.count == 2


def test_accumulation_rests_between_updates_and_schedules_count_updates():
    seen = []

    def schedule(step):
        seen.append(int(step))
        return torch.tensor(0.1, dtype=torch.float64)

    optimizer = optim.accumulate(optim.sgd(schedule), 3)
    own, state = PARAMS, optimizer.init(PARAMS)
    for i in range(STEPS):
        new, state = optimizer.update(GRADS[i], state, own, torch.tensor(i))
        assert all(torch.equal(new[name], own[name]) for name in own) == (i % 3 != 2)
        own = new
    assert seen == [0, 1]


def test_accumulating_a_split_batch_is_one_step_on_the_whole():
    x, y = torch.randn(12, 5, dtype=DTYPE), torch.randn(12, 3, dtype=DTYPE)

    def loss(p, batch, *, key=None):
        return (batch[0] @ p["weight"] - batch[1]).square().mean()

    start = {"weight": PARAMS["weight"]}
    whole = optim.sgd(0.1, 0.9)
    expected, _ = train.make_step(loss, whole)(train.create_state(start, whole, key=random.key(0)), (x, y))
    parts = optim.accumulate(whole, 3)
    step, state = train.make_step(loss, parts), train.create_state(start, parts, key=random.key(0))
    for part in zip(x.split(4), y.split(4), strict=True):
        state, _ = step(state, part)
    torch.testing.assert_close(state.params, expected.params, rtol=1e-12, atol=1e-14)


NESTED = {
    "chain": lambda: optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1, 0.9)),
    "averaged accumulation": lambda: optim.averaged(optim.accumulate(optim.sgd(0.1), 2), 0.9),
    "partition": PAIRS["partition of chains"][0],
}


@pytest.mark.parametrize("name", NESTED)
def test_a_run_is_saved_and_goes_on_with_the_same_bits(name, tmp_path):
    optimizer = NESTED[name]()
    step = train.make_step(lambda p, b, *, key=None: sum((t * t * b).sum() for t in p.values()), optimizer)
    state = train.create_state(PARAMS, optimizer, key=random.key(0))
    for i in range(5):
        if i == 3:
            checkpoint.save(tmp_path / "state", state, {})
            resumed, _ = checkpoint.load(tmp_path / "state")
        state, _ = step(state, torch.tensor(1.0 + i))
    for i in (3, 4):
        resumed, _ = step(resumed, torch.tensor(1.0 + i))
    for ours, theirs in zip(*map(torch.utils._pytree.tree_leaves, (resumed, state)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.compiled
@pytest.mark.parametrize("name", NESTED)
def test_donated_steps_equal_the_eager_ones(name):
    optimizer = NESTED[name]()
    eager = train.make_step(lambda p, b, *, key=None: sum((t * t * b).sum() for t in p.values()), optimizer)
    donated = train.compile_step(eager, donate=True)
    ours, theirs = (train.create_state(PARAMS, optimizer, key=random.key(0)) for _ in range(2))
    for i in range(4):
        ours, _ = donated(ours, torch.tensor(1.0 + i))
        theirs, _ = eager(theirs, torch.tensor(1.0 + i))
    torch.testing.assert_close(ours.params, theirs.params, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.opt_state, theirs.opt_state, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: optim.sgd(s, momentum=0.9, weight_decay=0.1),
        lambda s: optim.sgd(0.1, momentum=s, weight_decay=0.1),
        lambda s: optim.sgd(0.1, momentum=0.9, weight_decay=s, form="paper"),
        lambda s: optim.adamw(0.1, b1=s, weight_decay=0.1),
        lambda s: optim.adamw(0.1, weight_decay=s),
        lambda s: optim.chain(optim.clip_by_global_norm(s), optim.sgd(0.1)),
        lambda s: optim.averaged(optim.sgd(0.1), s),
    ],
)
def test_a_setting_may_be_a_tensor_and_is_differentiated_and_mapped(make):
    def total(setting):
        own, state = run(make(setting), 3)
        return sum(t.square().sum() for t in (*own.values(), *torch.utils._pytree.tree_leaves(state)))

    setting, h = torch.tensor(0.3, dtype=DTYPE), 1e-6
    torch.testing.assert_close(total(setting), total(0.3), rtol=1e-13, atol=0)
    slope = (total(setting + h) - total(setting - h)) / (2 * h)
    torch.testing.assert_close(grad(total)(setting), slope, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(jvp(total, (setting,), (torch.ones_like(setting),))[1], slope, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        vmap(total)(torch.stack([setting, setting / 2])), torch.stack([total(setting), total(setting / 2)])
    )


@pytest.mark.errors
def test_mistakes_are_named():
    sgd, clip = optim.sgd(0.1, 0.9), optim.clip_by_global_norm(1.0)
    with pytest.raises(TypeError, match=r"optimizer must be an optim\.Optimizer, got Transform, which only transforms"):
        optim.chain(sgd, clip)
    with pytest.raises(TypeError, match="part 0 of a chain must be a gradient Transform, got Optimizer"):
        optim.chain(sgd, sgd)
    with pytest.raises(TypeError, match=r"optimizer must be an optim\.Optimizer, got NoneType"):
        optim.chain()
    with pytest.raises(ValueError, match="grads: missing bias"):
        optim.masked(clip, is_weight).update({"weight": PARAMS["weight"]}, {}, PARAMS, torch.tensor(0))
    with pytest.raises(TypeError, match="masked takes a gradient Transform, got Optimizer"):
        optim.masked(sgd, is_weight)
    for wrong in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="every must be a positive integer"):
            optim.accumulate(sgd, wrong)
    for make in (optim.clip_by_global_norm, optim.add_decayed_weights):
        with pytest.raises(ValueError, match="must not be negative, got -1"):
            make(torch.tensor(-1.0))
        with pytest.raises(ValueError, match="must not be negative, got nan"):
            make(float("nan"))
    for wrong in (1.0, torch.tensor(1.5), -0.1):
        with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
            optim.ema(wrong)
    for optimizer in (optim.chain(clip, sgd), optim.averaged(sgd, 0.9), optim.accumulate(sgd, 2)):
        with pytest.raises(ValueError, match="opt_state must be what this optimizer's init makes"):
            optimizer.update(GRADS[0], {"velocity": PARAMS}, PARAMS, torch.tensor(0))
    with pytest.raises(ValueError, match="opt_state must be what this optimizer's init makes"):
        optim.averaged(sgd, 0.9).update(GRADS[0], optim.adamw(0.1).init(PARAMS), PARAMS, torch.tensor(0))
