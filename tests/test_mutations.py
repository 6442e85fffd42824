"""Small faults planted in the library in turn: the quick, uncompiled rows of `python -m parity` find every one."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import alexnet_func as af
from alexnet_func.arch import LRN, Conv, Dropout, Flatten, Linear, MaxPool
from parity import compute, problems
from parity.compositions import table

PLAIN = af.model.PLAIN


def plain(kind, **changes):
    """The layer function of that kind, given a changed record."""
    original = PLAIN[kind]

    def changed(at, x, *operands):
        values = {name: change(getattr(at.layer, name)) for name, change in changes.items()}
        return original(at._replace(layer=dataclasses.replace(at.layer, **values)), x, *operands)

    return changed


def swapped_groups(at, x, weight, bias):
    swapped = torch.cat(weight.chunk(at.layer.groups)[::-1])
    return original_conv(at, x, swapped, bias)


original_conv = PLAIN[Conv]
original_sgd, original_noise = af.optim.sgd, af.model.dropout_noise
original_make_step, original_create_state = af.train.make_step, af.train.create_state


def sgd_of_other_sign(rate, **options):
    optimizer = original_sgd(rate, **options)

    def update(grads, opt_state, params, step):
        negated = {name: -v for name, v in opt_state["velocity"].items()}
        return optimizer.update(grads, {"velocity": negated}, params, step)

    return optimizer._replace(update=update)


def sgd_of_half_the_decay(rate, **options):
    return original_sgd(rate, **{**options, "weight_decay": options["weight_decay"] / 2})


def of_another_example(layers, key, batch):
    return {name: noise.roll(1, 0) for name, noise in original_noise(layers, key, batch).items()}


def step_without_tape(*arguments, **options):
    step = original_make_step(*arguments, **options)
    return step._replace(function=torch.no_grad()(step.function))


def state_without_history(params, optimizer, **options):
    return original_create_state({name: p.detach() for name, p in params.items()}, optimizer, **options)


FAULTS = {
    "no_grad around the step": lambda m: m.setattr(af.train, "make_step", step_without_tape),
    "detach in create_state": lambda m: m.setattr(af.train, "create_state", state_without_history),
    "LRN's alpha off by the window": lambda m: m.setitem(PLAIN, LRN, plain(LRN, alpha=lambda alpha: alpha / 5)),
    "LRN's window one too small": lambda m: m.setitem(PLAIN, LRN, plain(LRN, size=lambda size: size - 1)),
    "groups swapped": lambda m: m.setitem(PLAIN, Conv, swapped_groups),
    "padding 1 instead of 2": lambda m: m.setitem(PLAIN, Conv, plain(Conv, padding=lambda p: 1 if p == 2 else p)),
    "ceil mode flipped": lambda m: m.setitem(PLAIN, MaxPool, plain(MaxPool, ceil_mode=lambda ceil: not ceil)),
    "no scale in dropout": lambda m: m.setitem(
        PLAIN, Dropout, lambda at, x, noise: x.where(noise < 1 - at.layer.rate, 0)
    ),
    "dropout keeps what it should drop": lambda m: m.setitem(
        PLAIN, Dropout, lambda at, x, noise: (x / (1 - at.layer.rate)).where(noise >= 1 - at.layer.rate, 0)
    ),
    "dropout keys of another example": lambda m: m.setattr(af.model, "dropout_noise", of_another_example),
    "flattened in another order": lambda m: m.setitem(PLAIN, Flatten, lambda at, x: x.movedim(-3, -1).flatten(-3)),
    "linear layers without bias": lambda m: m.setitem(PLAIN, Linear, lambda at, x, weight, bias: F.linear(x, weight)),
    "momentum's sign": lambda m: m.setattr(af.optim, "sgd", sgd_of_other_sign),
    "half of the weight decay": lambda m: m.setattr(af.optim, "sgd", sgd_of_half_the_decay),
}


def suite():
    """Whether each of the quick rows passes, by name; cheapest first."""
    chosen = [p for p in problems.problems() if p.quick and p.route == "eager" and p.quantity != "random draws"]
    chosen = [p for p in chosen if p.arch != "small"]  # whose other side is cached
    rows = {
        p.name: lambda p=p: compute.solve(p, "cpu").passed
        for p in sorted(chosen, key=lambda p: (p.arch != "alexnet_cifar", p.arch == "alexnet"))
    }
    cells = {
        table.name(subject, "grad"): lambda s=subject: table.row(s, ["grad"])[0].outcome != "WRONG"
        for subject, _ in table.chosen(quick=True)
    }
    return cells | rows


@pytest.mark.slow
@pytest.mark.errors
def test_the_suite_passes_without_a_fault():
    assert [name for name, passes in suite().items() if not passes()] == []


@pytest.mark.slow
@pytest.mark.errors
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    FAULTS[fault](monkeypatch)

    def found(passes):
        try:
            return not passes()
        except (RuntimeError, ValueError):
            return True  # shapes that no longer fit

    assert any(found(passes) for passes in suite().values())
