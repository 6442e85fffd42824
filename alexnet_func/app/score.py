"""Evaluation and prediction with a trained network, as `alexnet eval` and `alexnet predict` print them."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from alexnet_func import losses, model, train
from alexnet_func.app.progress import Show
from alexnet_func.app.runs import Model
from alexnet_func.data import augment, datasets, images, preprocess, sources
from alexnet_func.data.sources import Reading, Source


def evaluate(source: Model, data: str, root: str, *, ten_crop: bool, reading: Reading, show: Show) -> train.Metrics:
    """Prints accuracy and loss on the test split, by class, and the confusion matrix of up to twenty classes.

    With `ten_crop` probabilities are averaged over ten crops: Krizhevsky et al. 2012, section 4.1; over the image and
    its mirror image where a crop is the whole image. Raises ValueError where the data set has other classes than the
    network.
    """
    dataset = datasets.load(data, root=root)
    check_classes(source, data, dataset.classes)
    log_p, labels = [], []
    test = sources.open_split(dataset.test, preprocess.stored_side(source.arch), reading, "test")
    for crops, y in _views(test, source, ten_crop):
        with torch.no_grad():
            logits = model.forward(source.params, crops.flatten(0, 1), arch=source.arch)
        views = logits.log_softmax(-1).unflatten(0, crops.shape[:2])
        log_p.append(views.logsumexp(1) - math.log(crops.shape[1]))
        labels.append(y)
    # The mean probabilities' logarithms are logits with the same softmax.
    result = train.evaluate(lambda _, x: x, {}, [(torch.cat(log_p), torch.cat(labels))])
    confusion = losses.confusion_matrix(torch.cat(log_p).argmax(-1), torch.cat(labels), source.arch.num_classes)
    _print(confusion, dataset.classes, show)
    if test.unreadable:
        show.line(f"{len(test.unreadable)} unreadable left out")
    show.line(f"loss {result.loss:.4f}  top-1 {result.top1:.2%}  top-5 {result.top5:.2%}")
    return result


def check_classes(source: Model, data: str, classes: tuple[str, ...]) -> None:
    """Raises ValueError unless the network was made for the data set's classes."""
    if len(classes) != source.arch.num_classes or source.classes not in (None, classes):
        raise ValueError(
            f"the network knows {source.arch.num_classes} classes ({_some(source.classes)}), "
            f"{data} has {len(classes)} ({_some(classes)})"
        )


def predict(source: Model, paths: list[str], *, device: torch.device, show: Show) -> None:
    """Prints the five likeliest classes of each image with their probabilities."""
    names = source.classes or tuple(f"class {i}" for i in range(source.arch.num_classes))
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no image {path}")
        image = images.read(Path(path), preprocess.stored_side(source.arch)).to(device)
        crop = augment.center_crop(image, source.arch.image_size)
        x = augment.normalize(augment.to_float(crop), source.mean, source.std)
        with torch.no_grad():
            probabilities = model.forward(source.params, x, arch=source.arch).softmax(-1)
        best = probabilities.topk(min(5, len(names)))
        show.line(path)
        for p, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            show.line(f"  {p:7.2%}  {names[index]}")


def _views(test: Source, source: Model, ten_crop: bool) -> Iterator[tuple[Tensor, Tensor]]:
    size = source.arch.image_size
    for index, pixels in test.fetch(torch.arange(len(test.labels)).split(64)):
        if not ten_crop:
            crops = augment.center_crop(pixels, size)[:, None]
        elif pixels.shape[-1] > size:
            crops = augment.ten_crop(pixels, size)
        else:  # five times the same crop, and its mirror image
            crops = torch.stack([pixels, pixels.flip(-1)], 1)
        yield augment.normalize(augment.to_float(crops), source.mean, source.std), test.labels[index]


def _print(confusion: Tensor, classes: tuple[str, ...], show: Show) -> None:
    count = len(classes)
    matrix = count <= 20
    table = Table(title="rows: true class; columns: predicted class" if matrix else None)
    for heading in ("class", "images", "right", *(str(i) for i in range(count) if matrix)):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for i, name in enumerate(classes):
        total, right = int(confusion[i].sum()), int(confusion[i, i])
        share = f"{right / total:.2%}" if total else "-"
        table.add_row(f"{i} {name}", str(total), share, *(str(n) for n in confusion[i].tolist() if matrix))
    show.console.print(table)


def _some(classes: tuple[str, ...] | None) -> str:
    return "unnamed" if classes is None else ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
