import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

import alexnet_func as af
from alexnet_func import hybrid
from tests.conftest import TINY, images


def cross_entropy_in_numpy(logits, labels, smoothing):
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    classes = logits.shape[-1]
    target = np.full_like(logits, smoothing / classes)
    target[np.arange(len(labels)), labels] += 1 - smoothing
    return -(target * log_p).sum(-1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_the_formula(smoothing):
    logits = torch.randn(7, 5, dtype=torch.float64) * 3
    labels = torch.randint(5, (7,))
    ours = af.losses.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert ours.item() == pytest.approx(cross_entropy_in_numpy(logits.numpy(), labels.numpy(), smoothing), rel=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_a_batch_is_the_mean_over_examples(smoothing):
    logits, labels = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    each = vmap(lambda row, label: af.losses.cross_entropy(row, label, smoothing))(logits, labels)
    assert each.shape == (7,)
    batch = af.losses.cross_entropy(logits, labels, smoothing)
    torch.testing.assert_close(each.mean(), batch)
    torch.testing.assert_close(each[3], af.losses.cross_entropy(logits[3], labels[3], smoothing))


def test_leading_axes_are_all_batch():
    logits, labels = torch.randn(2, 5, 5), torch.randint(5, (2, 5))
    flat = af.losses.cross_entropy(logits.reshape(10, 5), labels.reshape(10))
    assert torch.equal(af.losses.cross_entropy(logits, labels), flat)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    logits = torch.randn(4, 5)
    labels = torch.tensor([0, 4, 2, 2])
    ours = af.losses.cross_entropy(logits, labels.to(dtype))
    assert torch.equal(ours, af.losses.cross_entropy(logits, labels))


def test_half_precision_logits_are_reduced_in_float32():
    logits, labels = torch.randn(100, 10).bfloat16(), torch.randint(10, (100,))
    ours = af.losses.cross_entropy(logits, labels)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, af.losses.cross_entropy(logits.float(), labels))


@given(st.integers(1, 6), st.integers(1, 9), st.randoms(use_true_random=False))
def test_accuracy_counts_labels_among_the_k_largest(classes, n, random):
    k = random.randint(1, classes)
    logits = [random.sample(range(100), classes) for _ in range(n)]
    labels = [random.randrange(classes) for _ in range(n)]
    hits = [
        label in sorted(range(classes), key=lambda c: -row[c])[:k] for row, label in zip(logits, labels, strict=True)
    ]
    ours = af.losses.accuracy(torch.tensor(logits).float(), torch.tensor(labels), k=k)
    assert ours.item() == pytest.approx(sum(hits) / n)


def test_confusion_matrix_is_a_count_of_pairs():
    predicted, labels = torch.randint(4, (50,)), torch.randint(4, (50,))
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for p, y in zip(predicted.tolist(), labels.tolist(), strict=True):
        expected[y, p] += 1
    assert torch.equal(af.losses.confusion_matrix(predicted, labels, 4), expected)


def test_nan_is_never_right():
    logits = torch.full((3, 2), torch.nan)
    logits[0, 1], logits[1] = 2.0, torch.tensor([1.0, 0.0])
    assert af.losses.accuracy(logits, torch.tensor([1, 0, 0]), k=2).item() == pytest.approx(1 / 3)


def test_accuracy_takes_one_example():
    assert af.losses.accuracy(torch.tensor([0.0, 2.0, 1.0]), torch.tensor(1)) == 1


def test_loss_fn_is_cross_entropy_of_forward(key):
    params, (x, y) = af.init(key, TINY), images(TINY, 4)
    for k in (None, key):
        expected = torch.nn.functional.cross_entropy(af.forward(params, x, arch=TINY, key=k), y)
        assert torch.equal(af.loss_fn(params, (x, y), arch=TINY, key=k), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss_fn", [af.loss_fn, hybrid.loss_fn])
def test_loss_fn_smooths_labels(key, loss_fn, smoothing):
    params, (x, y) = af.init(key, TINY), images(TINY, 5)
    logits = af.forward(params, x, arch=TINY).double().numpy()
    ours = loss_fn(params, (x, y), arch=TINY, label_smoothing=smoothing)
    assert ours.item() == pytest.approx(cross_entropy_in_numpy(logits, y.numpy(), smoothing), rel=1e-6)


@pytest.mark.compiled
@pytest.mark.parametrize("label", [-100, -1, 5])
def test_no_label_is_left_out_where_none_are_looked_at(label):
    # -100 is what torch's own function passes over.
    compiled = torch.compile(lambda logits, labels: af.losses.cross_entropy(logits, labels), backend="eager")
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        compiled(torch.zeros(2, 5), torch.tensor([1, label]))
