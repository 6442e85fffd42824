"""Formulas over products of gradients, and influence against leaving examples out."""

import functools

import numpy as np
import pytest
import torch

import alexnet_func as af
from alexnet_func import influence, per_sample
from alexnet_func.arch import Arch, Conv, Linear
from tests.conftest import TINY, images
from tests.test_per_sample import close, looped

# Smooth, so that training has an end, and the Fisher matrix of labels drawn from its kind is near the Hessian.
SMALL = Arch("small", image_size=6, num_classes=3, features=(Conv(2, 3, stride=3),), classifier=(Linear(None),))


@pytest.fixture(scope="module")
def params(key):
    return af.init(key, TINY, dtype=torch.float64)


def flat(params, batch, key=None):
    return torch.cat([g.flatten(1) for g in looped(params, batch, key).values()], 1)


def test_diversity_coherence_and_cosines_are_their_formulas(params, key):
    batch = images(TINY, 5, torch.float64)
    g = flat(params, batch, key).numpy()
    diversity = (np.linalg.norm(g, axis=1) ** 2).sum() / np.linalg.norm(g.sum(0)) ** 2
    coherence = np.linalg.norm(g.mean(0)) ** 2 / (np.linalg.norm(g, axis=1) ** 2).mean()
    assert influence.gradient_diversity(params, batch, arch=TINY, key=key).item() == pytest.approx(diversity, rel=1e-10)
    assert influence.coherence(params, batch, arch=TINY, key=key, chunk_size=2).item() == pytest.approx(
        coherence, rel=1e-10
    )
    found = influence.cosines(per_sample.gram(params, batch, arch=TINY, key=key))
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    torch.testing.assert_close(found, torch.from_numpy(unit @ unit.T), rtol=1e-9, atol=1e-10)
    assert torch.equal(influence.cosines(torch.zeros(2, 2)), torch.zeros(2, 2))
    beside_zero = torch.tensor([[1.0, 0.5], [0.0, 0.0]]).double()
    for of in (lambda g: influence.cosines(g @ g.T), lambda g: influence.relative_influence(g, g)):
        assert torch.func.grad(lambda g, of=of: of(g).sum())(beside_zero).isfinite().all()


def test_gradients_that_are_alike_have_coherence_one(params):
    x, y = images(TINY, 1, torch.float64)
    same = (x.expand(6, -1, -1, -1), y.expand(6))
    assert influence.coherence(params, same, arch=TINY).item() == pytest.approx(1, rel=1e-10)
    assert influence.gradient_diversity(params, same, arch=TINY).item() == pytest.approx(1 / 6, rel=1e-10)


def test_tracin_is_the_sum_over_checkpoints(params):
    batch, other = images(TINY, 4, torch.float64), images(TINY, 3, torch.float64, seed=1)
    runs = [(params, 0.1), ({name: 0.9 * p for name, p in params.items()}, 0.01)]
    expected = sum(rate * flat(p, batch) @ flat(p, other).T for p, rate in runs)
    close({"": influence.tracin(runs, batch, other, arch=TINY)}, {"": expected})


@pytest.mark.parametrize(("n", "d"), [(5, 12), (12, 5), (6, 6), (1, 4)])
def test_influence_is_its_formula(n, d):
    g, h = torch.randn(n, d).double(), torch.randn(3, d).double()
    fisher = g.T @ g / n
    inverse = torch.linalg.inv(fisher + 0.01 * fisher.trace() / d * torch.eye(d).double())
    torch.testing.assert_close(influence.influence(g, h, damping=0.01), h @ inverse @ g.T / n, rtol=1e-9, atol=1e-10)
    assert not influence.influence(torch.zeros(n, d), h.float()).any()
    lengths = [((v @ inverse) * v).sum(1).sqrt() for v in (h, g)]
    relative = influence.relative_influence(g, h, damping=0.01)
    torch.testing.assert_close(relative, h @ inverse @ g.T / torch.outer(*lengths), rtol=1e-7, atol=1e-9)
    assert not influence.relative_influence(torch.zeros(n, d), h).any()
    assert (influence.relative_influence(g, 3 * g[:1])[0].argmax()) == 0


def fitted(params, x, y, weights):
    """Trained to the end on the weighted mean loss, with a little decay so that there is one end."""
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    solver = torch.optim.LBFGS(
        leaves.values(), max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        decay = sum(p.square().sum() for p in leaves.values())
        loss = (losses_of(leaves, x, y) * weights).mean() + 0.002 * decay
        loss.backward()
        return loss

    solver.step(closure)
    return {name: p.detach() for name, p in leaves.items()}


def losses_of(params, x, y):
    return -af.forward(params, x, arch=SMALL).log_softmax(1).gather(1, y[:, None])[:, 0]


@pytest.fixture(scope="module")
def left_out(key):
    """A trained network, its data, questions, and how much the questions' loss rose without each of ten examples."""
    generator = torch.Generator().manual_seed(0)
    x, asked = (torch.randn(n, 3, 6, 6, generator=generator).double() for n in (600, 8))
    teacher = af.init(key, SMALL, dtype=torch.float64)
    logits = af.forward(teacher, x, arch=SMALL)
    noise = torch.empty_like(logits).exponential_(generator=generator).log()
    y = (1.5 * logits / logits.std() - noise).argmax(1)
    start, questions = fitted(teacher, x, y, torch.ones(600)), (asked, torch.arange(8) % 3)
    others = [fitted(start, x, y, (torch.arange(600) != i).double()) for i in range(10)]
    rose = torch.stack([losses_of(other, *questions) - losses_of(start, *questions) for other in others], 1)
    return start, (x, y), questions, rose


@pytest.mark.parametrize("dim", [None, 64])
def test_influence_foretells_what_leaving_an_example_out_does(left_out, key, dim):
    """Each of ten examples is left out and the network trained on to the end: the loss of others changes as told."""
    params, batch, asked, rose = left_out
    features = functools.partial(flat_of, params) if dim is None else functools.partial(projected, params, key, dim)
    scores = influence.influence(features(batch), features(asked), damping=0.1)[:, :10]
    assert np.corrcoef(scores.flatten(), rose.flatten())[0, 1] > 0.75
    # Not only in sign and order: the size is told too.
    assert 0.3 < (scores * rose).sum() / scores.square().sum() < 3


def flat_of(params, batch):
    return torch.cat([g.flatten(1) for g in per_sample.grads(params, batch, arch=SMALL).values()], 1)


def projected(params, key, dim, batch):
    return per_sample.project(params, batch, key, dim, arch=SMALL)


@pytest.mark.errors
def test_mistakes_are_named():
    g = torch.randn(3, 4)
    with pytest.raises(
        ValueError, match=r"train \[N, d\] and asked \[M, d\] must fit, N >= 1, got \[3, 4\] and \[3, 5\]"
    ):
        influence.influence(g, torch.randn(3, 5))
    with pytest.raises(ValueError, match="damping must be positive, got 0"):
        influence.influence(g, g, damping=0)
    with pytest.raises(ValueError, match="tracin needs at least one checkpoint"):
        influence.tracin([], None, None)
