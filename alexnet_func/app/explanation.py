"""Why an image is seen as it is: the training images that pull the prediction, as `inspect --explain` tells."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet_func import influence, model, per_sample, random
from alexnet_func.app import score
from alexnet_func.app.models import Model
from alexnet_func.app.progress import Show
from alexnet_func.data import preprocess, sources
from alexnet_func.data.preprocess import Moments
from alexnet_func.data.records import Dataset
from alexnet_func.data.sources import Reading, Source

_BATCH = 64  # images whose captures are in memory at once
_DIM = 2048  # 400 MB for the 50,000 images of CIFAR-10, and ten times that to compare them
_DAMPING = 0.1
_TOLD, _SHOWN, _WRITTEN = 3, 6, 50  # training images for and against: on a line, in the picture, in the table
_COLUMNS = ("image", "predicted", "rank", "index", "file", "label", "alike", "influence")


class Pull(NamedTuple):
    """A training image's `place`, `file`, `label`; how much its gradient is `alike`, -1 to 1, and its `influence`."""

    place: int
    file: str
    label: str
    alike: float
    influence: float


class Explained(NamedTuple):
    """An image and what it is seen as, with the training images most for that and most against it, in order."""

    file: str
    predicted: str
    pixels: Tensor
    pro: list[Pull]
    contra: list[Pull]


def explain(
    source: Model,
    dataset: Dataset,
    data: str,
    out: Path,
    paths: Sequence[str],
    *,
    limit: int | None,
    reading: Reading,
    show: Show,
) -> None:
    """Writes `explain.png` and `explain.csv` into `out`, a line for each training image among the first and last 50.

    Gradients, projected to 2,048 dimensions, of the loss of the label that is predicted for the image are compared with
    every training image's own. For the prediction are those most alike, by `influence.relative_influence`: a copy that
    has that label comes first. Against it are those with the lowest `influence.influence`, where length counts.

    Raises ValueError where the data set has no training images or other classes than the network, and for images that
    cannot be read.
    """
    from alexnet_func.app import plots  # matplotlib takes a second to load

    if not len(dataset.train.labels):
        raise ValueError(f"{data} has a test split alone: there are no training images to explain by")
    dataset = score.with_labels_of(source, dataset, data)
    split = preprocess.limited(dataset.train, limit)
    side, moments = preprocess.stored_side(source.arch), Moments(source.mean, source.std)
    images = sources.open_split(split, side, reading, "train")
    files = [file for path in paths for file in score.image_files(path, show)]
    pixels = torch.stack([score.read_image(file, side, reading.orientation) for file in files])
    x = preprocess.middle(pixels.to(reading.device), source.arch, moments)
    with torch.no_grad():
        predicted = score.finite(model.forward(source.params, x, arch=source.arch)).argmax(-1)
    key = random.key(0, reading.device)
    places, labels, features = _features(images, source, moments, key, show)
    asked = per_sample.project(source.params, (x, predicted), key, _DIM, arch=source.arch, chunk_size=_BATCH)
    alike = influence.relative_influence(features, asked, _DAMPING).cpu()
    pull = influence.influence(features, asked, _DAMPING).cpu()

    def pulls(row: int, order: Tensor) -> list[Pull]:
        columns = (tensor[order[:_WRITTEN]].tolist() for tensor in (places, labels, alike[row], pull[row]))
        return [
            Pull(place, split.names[place] if split.names else "", dataset.classes[label], *values)
            for place, label, *values in zip(*columns, strict=True)
        ]

    explained = []
    for i, (file, image, guess) in enumerate(zip(files, pixels, predicted.tolist(), strict=True)):
        pro = pulls(i, alike[i].argsort(descending=True, stable=True))
        explained.append(
            Explained(str(file), dataset.classes[guess], image, pro, pulls(i, pull[i].argsort(stable=True)))
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "explain.csv", explained)
    plots.explanation(explained, lambda pulled: _pixels(images, pulled), out / "explain.png", _SHOWN)
    _tell(explained, show)
    show.line(f"wrote {out / 'explain.png'} and {out / 'explain.csv'}")


def _features(
    images: Source, source: Model, moments: Moments, key: random.Key, show: Show
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every training image that can be read its index, its label, and its gradient, projected."""
    orders = list(torch.arange(len(images.labels)).split(_BATCH))
    batches = preprocess.indexed_batches(images, orders, source.arch, moments)
    found = [
        (index.cpu(), y.cpu(), per_sample.project(source.params, (x, y), key, _DIM, arch=source.arch))
        for index, (x, y) in show.track("comparing gradients", batches, len(orders))
    ]
    sources.check_any(len(found), images, "the training split")
    places, labels, features = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    finite = features.isfinite().all(1).cpu()
    if not finite.all():
        show.line(f"{int((~finite).sum())} training images without a finite gradient left out")
    return places[finite], labels[finite], features[finite.to(features.device)]


def _tell(explained: Sequence[Explained], show: Show) -> None:
    for one in explained:
        show.line(f"{one.file}: {one.predicted}")
        if not any(pull.alike for pull in one.pro):
            show.line("  the prediction is so certain that its gradient is zero: nothing pulls it")
            continue
        show.line("  for     " + ", ".join(f"{_named(pull)} {pull.alike:+.3f})" for pull in one.pro[:_TOLD]))
        show.line("  against " + ", ".join(f"{_named(pull)} {pull.influence:+.2g})" for pull in one.contra[:_TOLD]))


def _named(pull: Pull) -> str:
    return f"{pull.file or f'image {pull.place}'} ({pull.label},"


def _pixels(images: Source, pulled: Sequence[Pull]) -> Tensor:
    chosen = torch.tensor([pull.place for pull in pulled])
    return torch.cat([pixels.cpu() for _, pixels in images.fetch([chosen])])


def _write_csv(path: Path, explained: Sequence[Explained]) -> None:
    """Of each image the training images most for its prediction, ranks 1, 2, ..., and most against it, -1, -2, ....

    Names as in `inspect.csv`.
    """
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for one in explained:
            for sign, pulled in ((1, one.pro), (-1, one.contra)):
                for rank, pull in enumerate(pulled, 1):
                    values = (f"{pull.alike:.6g}", f"{pull.influence:.6g}")
                    writer.writerow([one.file, one.predicted, sign * rank, pull.place, pull.file, pull.label, *values])
