import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_func.data import datasets


@pytest.fixture
def photographs(tmp_path):
    """Two classes of sixteen images of 32x32 random pixels, for training and as many for testing."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "photographs" / split / name
            folder.mkdir(parents=True)
            for i in range(16):
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photographs"


@pytest.fixture
def few_digits(monkeypatch):
    """The digits with a tenth of their test images: most of a short run's time is their evaluation."""
    load = datasets.digits

    def few(root):
        whole = load(root)
        return whole._replace(test=whole.test.take(torch.arange(0, len(whole.test.labels), 10)))

    monkeypatch.setitem(datasets._LOADERS, "digits", few)
