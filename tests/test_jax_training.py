import sys

import jax
import numpy as np
import pytest
import torch
from torch.func import grad

import alexnet_func as af
from parity import criteria, training
from parity.programs import in_jax, in_torch

RULES = list(training.HYPER)


def agree(ours, theirs):
    assert all(t.dtype == torch.float64 for t in (*ours.values(), *theirs.values()))
    assert min(t.norm() for t in theirs.values()) > 1e-3
    verdict = criteria.close(ours, theirs, tolerance=1e-10)
    assert verdict.passed, verdict.detail


@pytest.mark.parametrize("quantity", training.BOTH)
def test_training_and_derivatives_through_it_are_those_of_jax_and_optax(quantity):
    agree(*training.BOTH[quantity]())


@pytest.mark.parametrize("rule", RULES)
def test_a_whole_training_differentiates_by_its_initial_parameters_as_in_jax(rule):
    agree(*training.both_meta_gradients(rule, training.STEPS))


def test_the_same_program_gives_the_same_numbers_in_jax_and_here():
    quickly_compiled = jax.jit(in_jax.run, compiler_options={"xla_backend_optimization_level": 0})
    with jax.enable_x64(True):
        theirs = quickly_compiled(jax.random.key(0))
    agree(in_torch.run(af.random.key(0)), {name: torch.from_numpy(np.array(value)) for name, value in theirs.items()})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("which", [0, 1])
def test_hypergradients_are_slopes_of_the_final_loss(rule, which):
    given = training.task(training.STEPS)
    hyper = [torch.tensor(value, dtype=torch.float64) for value in training.HYPER[rule]]
    found = grad(training.final_loss, argnums=1 + which)(given.params, *hyper, rule, given)
    delta = 1e-5 * hyper[which]

    def moved(by):
        return training.final_loss(given.params, *(h + by * (i == which) for i, h in enumerate(hyper)), rule, given)

    torch.testing.assert_close(found, (moved(delta) - moved(-delta)) / (2 * delta), rtol=1e-6, atol=0)


def test_dropout_and_the_second_order_are_what_is_compared():
    given = training.task(training.INNER_STEPS)
    optimizer = training.OPTIMIZERS["sgd"](*training.HYPER["sgd"])
    after, losses = training.trained(optimizer, given)
    _, others = training.trained(optimizer, given._replace(key=af.random.key(0)))
    assert (losses - others).abs().min() > 1e-3
    first_order = grad(training.loss_fn)(after, given.query)
    full, _ = training.both_meta_gradients()
    assert not criteria.close(first_order, full, tolerance=0.1).passed


def test_without_optax_the_oracle_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError) as caught:
        training.theirs("sgd", 1)
    assert caught.value.name == "optax"
