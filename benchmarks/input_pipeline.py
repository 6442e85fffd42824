"""How fast are images read and augmented? Against torchvision's transforms, ImageFolder and DataLoader: 32x32 images in
memory; JPEG files read by one process, since the start of worker processes would be what is measured; prepared shards.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.func import vmap
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import alexnet_func as af
from alexnet_func.data import augment, memory, prepare, shards, stream
from alexnet_func.data.datasets import Dataset, Files
from alexnet_func.data.shards import Shards
from benchmarks import timing
from benchmarks.timing import Row

BATCH = 128
FILES = 1024  # two shards, one for each of two processors


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table of augmentation in memory and one of decoding; the second on a CPU wherever the images go."""
    repeats = 1 if quick else 9
    images = torch.randint(256, (BATCH, 3, 32, 32), dtype=torch.uint8, device=device)
    keys = af.random.split(af.random.key(0, device), BATCH)
    crop = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])

    def keyed() -> Tensor:
        return vmap(_augmented)(keys, images)

    compiled = torch.compile(lambda keys, images: vmap(_augmented)(keys, images), fullgraph=True, dynamic=False)
    assert torch.equal(compiled(keys, images), keyed())
    measured = timing.interleaved(
        {
            "torchvision.transforms.v2, image by image": lambda: torch.stack([crop(image) for image in images]),
            "af.data.augment by vmap, eager": keyed,
            "af.data.augment by vmap, compiled": lambda: compiled(keys, images),
        },
        repeats=repeats,
        device=device,
    )
    base = next(iter(measured.values()))
    yield [Row(f"crop and flip of {BATCH} 32x32 images", name, t, base) for name, t in measured.items()]

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as elsewhere:
        paths = _photographs(Path(folder), 64 if quick else FILES)
        files = Files(tuple(paths), torch.zeros(len(paths), dtype=torch.int64))
        source, target = Dataset(files, files, ("pictures",)), Path(elsewhere) / "shards"
        prepare.prepare(source, target)
        prepared, _, _ = shards.load(target)
        readers = {
            "torchvision ImageFolder, DataLoader": _by_torchvision(folder),
            "af.data.stream": _by_stream(paths),
            "af.data.shards": lambda: sum(len(images) for _, images in _from_shards(prepared)),
            "af.data.shards, 224x224 crops and flips": _augmented_shards(prepared),
        }
        measured = timing.interleaved(readers, repeats=repeats, warmups=1)
        base = next(iter(measured.values()))
        yield [Row(f"{len(paths)} JPEG files of 500x375 to 256x256", name, t, base) for name, t in measured.items()]

        writers = {"decoding alone": lambda: memory.decode(files, 256), "alexnet prepare": lambda: _anew(files, target)}
        measured = timing.interleaved(writers, repeats=repeats, warmups=1)
        base = next(iter(measured.values()))
        yield [Row(f"{len(paths)} JPEG files to shards", name, t, base) for name, t in measured.items()]


def _augmented(key: Tensor, image: Tensor) -> Tensor:
    crop_key, flip_key = af.random.split(key)
    return augment.random_flip(flip_key, augment.padded_crop(crop_key, image, 4))


def _anew(files: Files, target: Path) -> None:
    shutil.rmtree(target)
    prepare.prepare(Dataset(files, Files((), torch.zeros(0, dtype=torch.int64)), ("pictures",)), target)


def _from_shards(prepared: Shards) -> Iterator[tuple[Tensor, Tensor]]:
    return shards.batches(prepared, torch.arange(len(prepared.labels)).split(BATCH))


def _augmented_shards(prepared: Shards) -> Callable[[], int]:
    def call() -> int:
        count = 0
        for index, images in _from_shards(prepared):
            crop_keys, flip_keys = af.random.split(af.random.key(0), 2 * len(index)).view(2, -1, 2).unbind()
            count += len(augment.random_flips(flip_keys, augment.random_crops(crop_keys, images, 224)))
        return count

    return call


def _photographs(folder: Path, count: int) -> list[Path]:
    """Smooth pictures of the size of a photograph, in one class."""
    (folder / "pictures").mkdir()
    paths = [folder / "pictures" / f"{i}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        coarse = af.random.uniform(af.random.key(i), (1, 3, 24, 32))
        picture = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)[0]
        torchvision.io.write_jpeg((255 * picture).to(torch.uint8), str(path), quality=90)
    return paths


def _by_torchvision(folder: str) -> Callable[[], int]:
    resize = v2.Compose([v2.PILToTensor(), v2.Resize(256), v2.CenterCrop(256)])
    dataset = torchvision.datasets.ImageFolder(folder, transform=resize)

    def call() -> int:
        return sum(len(x) for x, _ in DataLoader(dataset, BATCH))

    return call


def _by_stream(paths: list[Path]) -> Callable[[], int]:
    orders = torch.arange(len(paths)).split(BATCH)

    def call() -> int:
        batches = stream.batches(paths, orders, side=256, workers=0)
        return sum(len(batch.images) for batch in batches)

    return call
