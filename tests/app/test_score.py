import functools

import pytest
import torch
from rich.console import Console

import alexnet_func as af
from alexnet_func.app import models, score
from alexnet_func.app.progress import Show
from alexnet_func.data import augment, datasets, preprocess, sources
from tests.conftest import TINY


@pytest.mark.parametrize("side", [32, 24])
def test_probabilities_are_averaged_over_the_papers_ten_crops(monkeypatch, capsys, side):
    arch = TINY.replace(image_size=side, num_classes=10)
    source = models.Model(arch, af.init(af.random.key(0), arch), preprocess.Moments((0.3,) * 3, (0.4,) * 3), None)
    monkeypatch.setattr(preprocess, "stored_side", lambda _: 32)
    test = datasets.load("digits").test
    views = augment.normalize(augment.to_float(augment.ten_crop(test.images, side)), *source.moments[:2])
    logits = torch.func.vmap(functools.partial(af.forward, source.params, arch=arch))(views)
    expected = af.train.evaluate(lambda _, x: x, {}, [(logits.softmax(-1).mean(1).log(), test.labels)])
    reading = sources.Reading(torch.device("cpu"))
    digits, show = datasets.load("digits"), Show(Console())
    found = score.evaluate(source, digits, "digits", ten_crop=True, reading=reading, show=show)
    assert list(found) == pytest.approx(list(expected), rel=1e-5)
    assert f"top-1 {found.top1:.2%}  top-5 {found.top5:.2%}" in capsys.readouterr().out


def test_a_class_that_all_views_give_no_probability_has_a_finite_loss(monkeypatch):
    arch = TINY.replace(image_size=32, num_classes=10)
    params = af.init(af.random.key(0), arch)
    last = list(params)[-1]
    params[last] = torch.tensor([200.0] + 9 * [0.0])
    source = models.Model(arch, params, preprocess.Moments((0.3,) * 3, (0.4,) * 3), None)
    monkeypatch.setattr(preprocess, "stored_side", lambda _: 32)
    reading = sources.Reading(torch.device("cpu"))
    digits, show = datasets.load("digits"), Show(Console())
    found = score.evaluate(source, digits, "digits", ten_crop=True, reading=reading, show=show)
    assert found.loss == pytest.approx(200 * 0.9, rel=0.05)
