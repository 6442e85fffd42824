"""Clipping, products and frozen layers against other libraries, where they are: `pip install -e '.[peers]'`."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import alexnet_func as af
from alexnet_func import per_sample
from tests.conftest import images
from tests.test_per_sample import close, norms_of, plain_module

ARCH = af.arch.ALEXNET_CIFAR
WANTED = "is not installed: pip install -e '.[peers]'"


def linear(params, example, *, key=None):
    """Whose gradient is the example."""
    return params["w"] @ example


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 5.0, float("inf")])
def test_clipping_has_jax_privacys_table_of_edge_cases(max_norm):
    clipping = pytest.importorskip("jax_privacy.clipping", reason=f"jax-privacy {WANTED}")
    rows = np.array([[0, 0, 0], [3, 4, 0], [0.3, 0.4, 0], [1e18, 0, 0], [1e-18, 0, 0]], np.float32)
    for row in rows:
        theirs, norm = clipping.clip_pytree({"w": row}, max_norm)
        ours, norms = per_sample.clipped_sum(
            {"w": torch.ones(3)}, torch.from_numpy(row[None]), max_norm, loss_fn=linear
        )
        np.testing.assert_allclose(ours["w"].numpy(), np.asarray(theirs["w"]), rtol=1e-6)
        np.testing.assert_allclose(float(norms), float(norm), rtol=1e-6)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_example_of_no_finite_value_contributes_nothing_as_in_jax_privacy(bad):
    clipping = pytest.importorskip("jax_privacy.clipping", reason=f"jax-privacy {WANTED}")
    rows = np.array([[bad] * 3, [3, 4, 0]], np.float32)
    theirs = sum(np.asarray(clipping.clip_pytree({"w": row}, 1.0)[0]["w"]) for row in rows)
    ours, _ = per_sample.clipped_sum(
        {"w": torch.ones(3)}, torch.from_numpy(rows), 1.0, loss_fn=linear, nonfinite="zero"
    )
    np.testing.assert_allclose(ours["w"].numpy(), theirs, rtol=1e-6)


@pytest.mark.errors
@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_negative_bound_is_refused_by_both():
    clipping = pytest.importorskip("jax_privacy.clipping", reason=f"jax-privacy {WANTED}")
    with pytest.raises(ValueError, match="non-negative"):
        clipping.clip_pytree({"w": np.ones(3)}, -1.0)
    with pytest.raises(ValueError, match="max_norm must not be negative"):
        per_sample.clipped_sum({"w": torch.ones(3)}, torch.ones(2, 3), -1.0, loss_fn=linear)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_torchjds_gramian_is_ours(key):
    autogram = pytest.importorskip("torchjd.autogram", reason=f"torchjd {WANTED}")
    params = af.init(key, ARCH, dtype=torch.float64)
    x, y = images(ARCH, 4, torch.float64)
    module = plain_module(ARCH, params)
    engine = autogram.Engine(module, batch_dim=0)
    theirs = engine.compute_gramian(cross_entropy(module(x), y, reduction="none"))
    torch.testing.assert_close(per_sample.gram(params, (x, y), arch=ARCH), theirs.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_opacus_clips_frozen_layers_alike(key):
    opacus = pytest.importorskip("opacus", reason=f"opacus {WANTED}")
    params = af.init(key, ARCH, dtype=torch.float64)
    x, y = images(ARCH, 4, torch.float64)
    module = plain_module(ARCH, params)
    named = dict(zip(params, module.parameters(), strict=True))
    frozen = {name: p for name, p in params.items() if name.startswith("features.0")}
    for name in frozen:
        named[name].requires_grad_(False)
    trained = {name: p for name, p in params.items() if name not in frozen}
    wrapped = opacus.grad_sample.wrap_model(module, grad_sample_mode="hooks", loss_reduction="sum")
    cross_entropy(wrapped(x), y, reduction="sum").backward()
    own = torch.optim.SGD([named[name] for name in trained], lr=0.1)
    optimizer = opacus.optimizers.DPOptimizer(own, noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=4)
    norms = norms_of({name: named[name].grad_sample for name in trained})
    optimizer.clip_and_accumulate()
    ours, found = per_sample.clipped_sum(trained, (x, y), 0.5, arch=ARCH, frozen=frozen)
    close({"": found}, {"": norms})
    for name, g in ours.items():  # they add 1e-6 to norms
        torch.testing.assert_close(g, named[name].summed_grad, rtol=1e-5, atol=1e-9)
