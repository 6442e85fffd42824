"""Which training images pull hardest on the parameters, as `alexnet inspect` shows them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet_func import curvature
from alexnet_func.app import score, tables
from alexnet_func.app.models import Model
from alexnet_func.app.progress import Show
from alexnet_func.data import preprocess, sources
from alexnet_func.data.records import Dataset
from alexnet_func.data.sources import Reading, Source
from alexnet_func.examples import examples

_BATCH = 64  # images whose captures are in memory at once
_SHOWN = 32
_FOR_NOISE_SCALE = 512
_COLUMNS = ("index", "file", "label", "predicted", "loss", "gradient_norm")


class Findings(NamedTuple):
    """By image, in the order read: its index, label, prediction, loss in nats and gradient norm; and `shares`.

    `shares` is by layer: the mean over images of that layer's part of the squared norm, 0..1.
    """

    indices: Tensor
    label: Tensor
    predicted: Tensor
    loss: Tensor
    norm: Tensor
    shares: dict[str, float]


def inspect(
    source: Model, dataset: Dataset, data: str, out: Path, *, limit: int | None, reading: Reading, show: Show
) -> None:
    """Writes `inspect.csv`, every training image by falling gradient norm, and `inspect.png` into `out`.

    Gradients are of each image's own loss, in evaluation and of the middle of the image. Raises ValueError where the
    data set has no training images or other classes than the network, and where another `inspect.csv` would be
    overwritten; FloatingPointError where its outputs are not finite.
    """
    from alexnet_func.app import plots  # matplotlib takes a second to load

    if not len(dataset.train.labels):
        raise ValueError(f"{data} has a test split alone: there are no training images to inspect")
    dataset = score.with_labels_of(source, dataset, data)
    tables.check_ours(out / "inspect.csv", _COLUMNS)
    split = preprocess.limited(dataset.train, limit)
    images = sources.open_split(split, preprocess.stored_side(source.arch), reading, "train")
    found = _find(images, source)
    scale = _noise_scale(images, source)

    out.mkdir(parents=True, exist_ok=True)
    order = found.norm.argsort(descending=True)
    tables.write(out / "inspect.csv", _COLUMNS, _rows(found, order, split.names, dataset.classes))
    top = order[:_SHOWN]
    pixels = _pixels(images, found.indices[top])
    captions = [
        (dataset.classes[label], dataset.classes[guess], norm)
        for label, guess, norm in zip(
            found.label[top].tolist(), found.predicted[top].tolist(), found.norm[top].tolist(), strict=True
        )
    ]
    plots.inspection(pixels, captions, found.norm, found.shares, out / "inspect.png")

    middle, far = (found.norm.quantile(q).item() for q in (0.5, 0.99))
    show.line(f"{len(found.norm)} training images: gradient norm {middle:.3g} in the median, {far:.3g} at 99 %")
    show.line("  ".join(f"{name} {share:.1%}" for name, share in found.shares.items()))
    show.line(scale)
    if images.unreadable:
        show.line(f"{len(images.unreadable)} unreadable left out")
    show.line(f"wrote {out / 'inspect.png'} and {out / 'inspect.csv'}")


def _find(images: Source, source: Model) -> Findings:
    parts: list[tuple[Tensor, ...]] = []
    squares: list[Tensor] = []
    layers: list[str] = []
    orders = torch.arange(len(images.labels)).split(_BATCH)
    for index, (x, y) in preprocess.indexed_batches(images, orders, source.arch, source.moments):
        (part,) = examples(source.params, (x, y), arch=source.arch)
        by_name = part.squares()
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in by_name))
        by_layer = [by_name[f"{layer}.weight"] + by_name[f"{layer}.bias"] for layer in layers]
        squares.append(torch.stack(by_layer).cpu())
        with torch.no_grad():
            predicted = score.logits_of(source, x).argmax(-1)
        parts.append((index.cpu(), y.cpu(), predicted.cpu(), part.losses.cpu()))
    indices, label, predicted, loss = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    square = torch.cat(squares, 1)
    total = square.sum(0)
    shares = (square / total).nan_to_num(0).mean(1)
    return Findings(indices, label, predicted, loss, total.sqrt(), dict(zip(layers, shares.tolist(), strict=True)))


def _noise_scale(images: Source, source: Model) -> str:
    orders = preprocess.shuffle(len(images.labels))[:_FOR_NOISE_SCALE].split(_BATCH)
    parts = [batch for _, batch in preprocess.indexed_batches(images, orders, source.arch, source.moments)]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if len(y) < 3:
        return "gradient noise scale: needs at least three images"
    found = curvature.gradient_noise_scale(source.params, (x, y), arch=source.arch, chunk_size=_BATCH)
    scale, error = float(found.scale), float(found.standard_error)
    if not 0 < scale < math.inf:
        return f"gradient noise scale: {len(y)} images are too few to tell their mean gradient from noise"
    return f"gradient noise scale {scale:,.0f} +- {error:,.0f} images, from {len(y)} of them"


def _pixels(images: Source, index: Tensor) -> Tensor:
    return torch.cat([pixels.cpu() for _, pixels in images.fetch(index.split(_BATCH))])


def _rows(found: Findings, order: Tensor, names: tuple[str, ...], classes: tuple[str, ...]) -> Iterator[list]:
    columns = [tensor[order].tolist() for tensor in found[:5]]
    for index, label, predicted, loss, norm in zip(*columns, strict=True):
        name = names[index] if names else ""
        yield [index, name, classes[label], classes[predicted], f"{loss:.6g}", f"{norm:.6g}"]
