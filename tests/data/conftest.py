import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, of one colour each: 100 times the class, the number in the class, 7."""
    for split in ("train", "val"):
        for i, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            for j in range(3):
                Image.new("RGB", (8, 8), (i * 100, j, 7)).save(tmp_path / split / name / f"{j}.png")
    return tmp_path
