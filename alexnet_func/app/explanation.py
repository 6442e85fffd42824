"""Why an image is seen as it is: the training images that pull the prediction, as `inspect --explain` tells."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet_func import influence, per_sample, random
from alexnet_func.app import score, tables
from alexnet_func.app.models import Model
from alexnet_func.app.progress import Show
from alexnet_func.data import augment, preprocess, sources
from alexnet_func.data.records import Dataset
from alexnet_func.data.sources import Reading, Source
from alexnet_func.losses import Batch

_BATCH = 64  # images whose captures are in memory at once
_DIM = 2048  # 400 MB for the 50,000 images of CIFAR-10, and ten times that to compare them
_DAMPING = 0.1
_TOLD, _SHOWN, _WRITTEN = 3, 6, 50  # training images for and against: on a line, in the picture, in the table
_DRAWN = 16  # images in the picture
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
    sources_of: Sequence[Model],
    dataset: Dataset,
    data: str,
    out: Path,
    paths: Sequence[str],
    *,
    limit: int | None,
    views: int | None,
    reading: Reading,
    show: Show,
) -> None:
    """Writes `explain.png` and `explain.csv` into `out`, a line for each training image among the first and last 50.

    Gradients, projected to 2,048 dimensions, of the loss of the label that is predicted for the image are compared with
    every training image's own, of its middle or of so many `views`, augmented as the network was trained. For the
    prediction are those most alike, by `influence.relative_influence`: a copy that has that label comes first. Against
    it are those with the lowest `influence.influence`, where length counts. Of a run's several checkpoints, the last
    first, scores are the mean; the last predicts.

    Raises ValueError where the data set has no training images or other classes than the network, for images of which
    none can be read, where another `explain.csv` would be overwritten, and for views of a network that tells no
    augmentation.
    """
    from alexnet_func.app import plots  # matplotlib takes a second to load

    source = sources_of[0]
    if not len(dataset.train.labels):
        raise ValueError(f"{data} has a test split alone: there are no training images to explain by")
    if views is not None and source.augmentation is None:
        raise ValueError("--views: this network does not tell how its training images were augmented")
    dataset = score.with_labels_of(source, dataset, data)
    tables.check_ours(out / "explain.csv", _COLUMNS)
    split = preprocess.limited(dataset.train, limit)
    side = preprocess.stored_side(source.arch)
    images = sources.open_split(split, side, reading, "train")
    asked = score.read_images(paths, side, reading.orientation, show)
    found = _scores(sources_of, images, torch.stack(list(asked.values())), views, reading.device, show)

    explained = _explained(found, asked, split.names, dataset.classes)
    out.mkdir(parents=True, exist_ok=True)
    tables.write(out / "explain.csv", _COLUMNS, _rows(explained))
    drawn = explained[:_DRAWN]
    plots.explanation(drawn, lambda pulled: _pixels(images, pulled), out / "explain.png", _SHOWN)
    _tell(explained, show)
    if len(explained) > len(drawn):
        show.line(f"the picture has the first {len(drawn)} of {len(explained)} images, the table all")
    show.line(f"wrote {out / 'explain.png'} and {out / 'explain.csv'}")


class _Scores(NamedTuple):
    """Of M images [M] labels, and by them of N training images `alike` and `pull`, [M, N]; of these index and label."""

    predicted: Tensor
    alike: Tensor
    pull: Tensor
    places: Tensor
    labels: Tensor


def _explained(
    found: _Scores, asked: Mapping[str, Tensor], names: Sequence[str], classes: Sequence[str]
) -> list[Explained]:
    def pulls(row: int, order: Tensor) -> list[Pull]:
        kept = (found.places, found.labels, found.alike[row], found.pull[row])
        columns = (tensor[order[:_WRITTEN]].tolist() for tensor in kept)
        return [
            Pull(place, names[place] if names else "", classes[label], *values)
            for place, label, *values in zip(*columns, strict=True)
        ]

    explained = []
    for i, (file, image) in enumerate(asked.items()):
        pro = pulls(i, found.alike[i].argsort(descending=True, stable=True))
        contra = pulls(i, found.pull[i].argsort(stable=True))
        explained.append(Explained(file, classes[int(found.predicted[i])], image, pro, contra))
    return explained


def _scores(
    sources_of: Sequence[Model], images: Source, asked: Tensor, views: int | None, device: torch.device, show: Show
) -> _Scores:
    key, last = random.key(0, device), sources_of[0]

    def middle(source: Model) -> Tensor:
        return preprocess.middle(asked.to(device), source.arch, source.moments)

    with torch.no_grad():
        predicted = score.logits_of(last, middle(last)).argmax(-1)
    alike, pull, finite = [], [], []
    for source in sources_of:
        places, labels, features = _features(images, source, views, key, show)
        good = features.isfinite().all(1)
        features = features.where(good[:, None], 0)
        batch = (middle(source), predicted)
        own = per_sample.project(source.params, batch, key, _DIM, arch=source.arch, chunk_size=_BATCH)
        alike.append(influence.relative_influence(features, own, _DAMPING).cpu())
        pull.append(influence.influence(features, own, _DAMPING).cpu())
        finite.append(good.cpu())
    kept = torch.stack(finite).all(0)
    if not kept.all():
        show.line(f"{int((~kept).sum())} training images without a finite gradient left out")
    mean_alike, mean_pull = (torch.stack(scores).mean(0)[:, kept] for scores in (alike, pull))
    return _Scores(predicted.cpu(), mean_alike, mean_pull, places[kept], labels[kept])


def _features(
    images: Source, source: Model, views: int | None, key: random.Key, show: Show
) -> tuple[Tensor, Tensor, Tensor]:
    """Of every training image that can be read its index, its label, and its gradient, projected."""
    batch = _BATCH if views is None else max(1, _BATCH // views)
    orders = list(torch.arange(len(images.labels)).split(batch))
    if views is None:
        batches = preprocess.indexed_batches(images, orders, source.arch, source.moments)
    else:
        batches = _viewed(images, orders, source, views)
    found = [
        (index.cpu(), y.cpu(), per_sample.project(source.params, (x, y), key, _DIM, arch=source.arch, views=views))
        for index, (x, y) in show.track("comparing gradients", batches, len(orders))
    ]
    sources.check_any(len(found), images, "the training split")
    places, labels, features = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return places, labels, features


def _viewed(images: Source, orders: Sequence[Tensor], source: Model, views: int) -> Iterator[tuple[Tensor, Batch]]:
    assert source.augmentation is not None
    components = (
        augment.rgb_components(preprocess.sample(images)) if source.augmentation in preprocess.COLOURED else None
    )
    prepare = preprocess.preparation(source.augmentation, source.arch.image_size, source.moments, components)
    key = random.key(1, images.labels.device)  # not that of the projection
    for index, pixels in images.fetch(orders):
        if len(index):
            yield index, (preprocess.in_views(prepare, views)(key, index, pixels), images.labels[index])


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


def _rows(explained: Sequence[Explained]) -> Iterator[list]:
    """Of each image the training images most for its prediction, ranks 1, 2, ..., and most against it, -1, -2, ...."""
    for one in explained:
        for sign, pulled in ((1, one.pro), (-1, one.contra)):
            for rank, pull in enumerate(pulled, 1):
                values = (f"{pull.alike:.6g}", f"{pull.influence:.6g}")
                yield [one.file, one.predicted, sign * rank, pull.place, pull.file, pull.label, *values]
