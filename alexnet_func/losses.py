"""Cross-entropy, accuracy, and `loss_fn`, the scalar that training differentiates."""

from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Integer
from torch import Tensor

from alexnet_func.arch import ALEXNET, Arch
from alexnet_func.checks import visible
from alexnet_func.model import PLAIN, Params, Table, forward

__all__ = [
    "Batch",
    "accuracy",
    "confusion_matrix",
    "cross_entropy",
    "loss_fn",
]

Batch = tuple[Tensor, Tensor]

# torch leaves examples of this label out, -100 by default, without a word where labels are not looked at.
_NO_LABEL = -(2**63)


def cross_entropy(
    logits: Float[Tensor, "*n classes"], labels: Integer[Tensor, "*n"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Computes the mean of `-log softmax(logits)[label]` over all leading axes, in nats.

    Accepts [K] logits with a scalar label. With `label_smoothing` s the target is `1 - s` on the label plus `s / K`
    everywhere (Szegedy et al. 2016, section 7). Half-precision logits are raised to float32 first. Errors as
    `check_labels` raises them, and ValueError for labels of another shape than the logits' leading axes.
    """
    _check_fit(logits, labels)
    if not isinstance(label_smoothing, Real) or not 0 <= label_smoothing <= 1:  # of a tensor torch cuts the gradient
        raise ValueError(f"label_smoothing must be a Python number in [0, 1], got {label_smoothing!r}")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.dim() > 2:  # torch would take the second axis for the classes
        logits, labels = logits.flatten(0, -2), labels.flatten()
    return F.cross_entropy(logits, labels.long(), label_smoothing=label_smoothing, ignore_index=_NO_LABEL)


def accuracy(logits: Float[Tensor, "*n classes"], labels: Integer[Tensor, "*n"], k: int = 1) -> Float[Tensor, ""]:
    """Computes the fraction (0 to 1) of examples whose label is among the `k` largest logits.

    An example with a NaN counts as wrong. Raises ValueError unless 1 <= k <= classes; label errors as `cross_entropy`
    raises them.
    """
    _check_fit(logits, labels)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k must lie in 1..{logits.shape[-1]}, got {k}")
    hits = (logits.topk(k).indices == labels[..., None]).any(-1)
    return (hits & ~logits.isnan().any(-1)).float().mean()


def confusion_matrix(
    predicted: Integer[Tensor, "n"], labels: Integer[Tensor, "n"], num_classes: int
) -> Integer[Tensor, "classes classes"]:
    """Counts how often each true class (row) was predicted as each class (column).

    Errors as `check_labels` raises them.
    """
    check_labels(predicted, num_classes)
    check_labels(labels, num_classes)
    return (labels * num_classes + predicted).bincount(minlength=num_classes**2).view(num_classes, num_classes)


def loss_fn(
    params: Params,
    batch: Batch,
    *,
    arch: Arch = ALEXNET,
    key: Int32[Tensor, "*k 2"] | None = None,
    table: Table = PLAIN,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Computes `cross_entropy(forward(params, x, arch=arch, key=key, table=table), y, label_smoothing)`.

    `batch = (x, y)`. The pair and its labels are checked before the forward pass. Errors as `forward` and
    `check_labels` raise them.
    """
    x, y = check_pair(batch)
    check_labels(y, arch.num_classes)
    return cross_entropy(forward(params, x, arch=arch, key=key, table=table), y, label_smoothing)


def check_pair(batch: Any) -> Batch:
    """`batch` as (x, y). Raises TypeError or ValueError where it is no pair of tensors."""
    if not isinstance(batch, tuple | list):
        raise TypeError(f"batch must be a pair (x, y), got {type(batch).__name__}")
    if len(batch) != 2:
        raise ValueError(f"batch must be a pair (x, y), got {len(batch)} parts")
    x, y = batch
    return x, y


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raises TypeError unless labels are integers, ValueError where one lies outside 0 .. num_classes - 1.

    The range is looked at on a CPU alone and not while code is traced: on a GPU looking would wait for it.
    Under torch.func transforms the labels inside the wrappers are checked, all examples of a vmap at once.
    """
    if not isinstance(labels, Tensor) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels must be an integer tensor, got {given}")
    values = visible(labels)
    if values is None or not values.numel():
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}")


def _check_fit(logits: Tensor, labels: Tensor) -> None:
    check_labels(labels, logits.shape[-1])
    if labels.shape != logits.shape[:-1]:
        wanted = list(logits.shape[:-1])
        raise ValueError(f"labels must have shape {wanted} to fit the logits, got {list(labels.shape)}")
