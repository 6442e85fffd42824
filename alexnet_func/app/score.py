"""Evaluation and prediction with a trained network, as `alexnet eval` and `alexnet predict` print them."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from alexnet_func import losses, model, routes, train
from alexnet_func.app.models import Model
from alexnet_func.app.progress import Show
from alexnet_func.app.text import said
from alexnet_func.data import augment, folders, images, preprocess, sources
from alexnet_func.data.records import Dataset
from alexnet_func.data.sources import Reading, Source


def evaluate(
    source: Model, dataset: Dataset, data: str, *, ten_crop: bool, reading: Reading, show: Show
) -> train.Metrics:
    """Prints loss, top-1, of more than five classes top-5, accuracy by class and the confusion matrix of up to twenty.

    With `ten_crop` probabilities are averaged over ten crops: Krizhevsky et al. 2012, section 4.1; over the image and
    its mirror image where a crop is the whole image. Raises ValueError where the data set has other classes than the
    network, FloatingPointError where its outputs are not finite.
    """
    dataset = with_labels_of(source, dataset, data)
    log_p, labels = [], []
    test = sources.open_split(dataset.test, preprocess.stored_side(source.arch), reading, "test")
    for crops, y in _views(test, source, ten_crop):
        with torch.no_grad():
            logits = logits_of(source, crops.flatten(0, 1))
        views = logits.log_softmax(-1).unflatten(0, crops.shape[:2])
        log_p.append(views.logsumexp(1) - math.log(crops.shape[1]))
        labels.append(y)
    sources.check_any(len(labels), test, "the test split")
    # The mean probabilities' logarithms are logits with the same softmax.
    result = train.evaluate(lambda _, x: x, {}, [(torch.cat(log_p), torch.cat(labels))])
    confusion = losses.confusion_matrix(torch.cat(log_p).argmax(-1), torch.cat(labels), source.arch.num_classes)
    _table(confusion, dataset.classes, show)
    if test.unreadable:
        show.line(f"{len(test.unreadable)} unreadable left out")
    top5 = f"  top-5 {result.top5:.2%}" if source.arch.num_classes > 5 else ""
    show.line(f"loss {result.loss:.4f}  top-1 {result.top1:.2%}{top5}")
    return result


def with_labels_of(source: Model, dataset: Dataset, data: str) -> Dataset:
    """The data set, labelled as the network numbers its classes. A test split alone may lack some of them.

    Raises ValueError where the network was made for other classes.
    """
    known, found = source.classes, dataset.classes
    if known is not None and not len(dataset.train.labels) and set(found) <= set(known):
        places = torch.tensor([known.index(name) for name in found])
        return dataset._replace(test=dataset.test._replace(labels=places[dataset.test.labels]), classes=known)
    if len(found) != source.arch.num_classes or known not in (None, found):
        raise ValueError(
            f"the network knows {source.arch.num_classes} classes ({_some(known)}), {data} has {len(found)} "
            f"({_some(found)}): --data names its own"
        )
    return dataset


def logits_of(source: Model, x: Tensor) -> Tensor:
    """The logits of images, by the route of training. Raises FloatingPointError where one is infinite or not a number,
    as nothing told of it is true.
    """
    logits = model.forward(source.params, x, arch=source.arch, table=routes.fused(source.arch))
    if not logits.isfinite().all():
        raise FloatingPointError(
            "the network's outputs are not finite, so they say nothing: it diverged in training, or its file is damaged"
        )
    return logits


def predict(
    source: Model,
    paths: Iterable[str],
    *,
    device: torch.device,
    show: Show,
    orientation: images.Orientation = "exif",
) -> None:
    """Prints the five likeliest classes of each image with their probabilities, and why another could not be read.

    A folder stands for the images below it, and what is passed over there is told. Raises ValueError at the end if any
    could not be read, FloatingPointError where the network's outputs are not finite.
    """
    reasons: list[str] = []
    count = 0
    for file in itertools.chain.from_iterable(image_files(given, show) for given in paths):
        count += 1
        try:
            image = read_image(file, preprocess.stored_side(source.arch), orientation)
        except (OSError, ValueError) as error:
            reasons.append(said(error))
            show.line(reasons[-1])
        else:
            likeliest = _likeliest(source, image.to(device))
            show.line(str(file))
            for p, name in likeliest:
                show.line(f"  {p:7.2%}  {name}")
    if reasons:
        raise ValueError(f"{len(reasons)} of {count} images could not be read; the first: {reasons[0]}")


def _likeliest(source: Model, image: UInt8[Tensor, "3 side side"]) -> list[tuple[float, str]]:
    """The five likeliest classes, by falling probability."""
    names = source.classes or tuple(f"class {i}" for i in range(source.arch.num_classes))
    x = preprocess.middle(image, source.arch, source.moments)
    with torch.no_grad():
        best = logits_of(source, x).softmax(-1).topk(min(5, len(names)))
    return [(p, names[index]) for p, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


def image_files(given: str, show: Show) -> Iterable[Path]:
    """The images below a folder, of which what is no image is told; of anything else, what was given."""
    try:
        found = folders.below(Path(given)) if os.path.isdir(given) else None
    except OSError:  # to read it is the error
        found = None
    if found is None or not found.paths:
        return (Path(given),)
    if found.passed_over:
        show.line(f"passed over {folders.describe(found.passed_over)}")
    return found.paths


def read_image(path: Path, side: int, orientation: images.Orientation) -> UInt8[Tensor, "3 side side"]:
    """The image in that file. Raises FileNotFoundError that says what is there instead, and as `images.read` does."""
    if os.path.isdir(path):
        others = folders.below(path).passed_over
        held = f": it holds {folders.describe(others)}" if others else ""
        raise FileNotFoundError(f"there are no images in the folder {path}{held}")
    if not os.path.exists(path):  # nor can there be, of a name that no file has
        raise FileNotFoundError(f"there is no image {path}")
    return images.read(path, side, orientation=orientation)


def read_images(
    paths: Iterable[str], side: int, orientation: images.Orientation, show: Show
) -> dict[str, UInt8[Tensor, "3 side side"]]:
    """The images of those files and folders by file, but for those that cannot be read, which is told.

    Raises ValueError where that is so of all.
    """
    read: dict[str, Tensor] = {}
    reasons: list[str] = []
    for file in itertools.chain.from_iterable(image_files(given, show) for given in paths):
        try:
            read[str(file)] = read_image(file, side, orientation)
        except (OSError, ValueError) as error:
            reasons.append(said(error))
    if not read:
        raise ValueError(reasons[0])
    show.lines(f"left out: {reason}" for reason in reasons)
    return read


def _views(test: Source, source: Model, ten_crop: bool) -> Iterator[tuple[Tensor, Tensor]]:
    size = source.arch.image_size
    for index, pixels in test.fetch(torch.arange(len(test.labels)).split(64)):
        if not len(index):
            continue
        if not ten_crop:
            crops = augment.center_crop(pixels, size)[:, None]
        elif pixels.shape[-1] > size:
            crops = augment.ten_crop(pixels, size)
        else:  # five times the same crop, and its mirror image
            crops = torch.stack([pixels, pixels.flip(-1)], 1)
        yield source.moments.normalized(augment.to_float(crops)), test.labels[index]


def _table(confusion: Tensor, classes: tuple[str, ...], show: Show) -> None:
    count = len(classes)
    matrix = count <= 20
    rows = []
    for i, name in enumerate(classes):
        total, right = int(confusion[i].sum()), int(confusion[i, i])
        share = f"{right / total:.2%}" if total else "-"
        rows.append((f"{i} {name}", str(total), share, *(str(n) for n in confusion[i].tolist() if matrix)))
    headings = ("class", "images", "right", *(str(i) for i in range(count) if matrix))
    show.table("rows: true class; columns: predicted class" if matrix else None, headings, rows)


def _some(classes: tuple[str, ...] | None) -> str:
    return "unnamed" if classes is None else ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
