"""`alexnet predict` over files, folders and what is neither; and no numbers from outputs that are not finite."""

import math
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

import alexnet_func as af
from alexnet_func.app import cli, inspection, models, score
from alexnet_func.app.progress import Show
from alexnet_func.data import datasets, folders, preprocess, sources
from tests.app.names import image
from tests.conftest import TINY

ARCH = TINY.replace(image_size=32, num_classes=10)
CPU = torch.device("cpu")


def network(last_bias=0.0):
    params = af.init(af.random.key(0), ARCH)
    params[list(params)[-1]] = torch.tensor([last_bias] + 9 * [0.0])
    return models.Model(ARCH, params, preprocess.Moments((0.3,) * 3, (0.4,) * 3), None)


@pytest.fixture
def predicted(monkeypatch, capsys):
    """Runs `alexnet predict` with a small network: exit code, lines that name no class, lines of error."""
    monkeypatch.setattr(models, "load_model", lambda source, device: network())

    def run(*words):
        code = cli.main(["predict", "run", *map(str, words)])
        out, error = capsys.readouterr()
        return code, [line for line in out.splitlines() if "%  class " not in line], error.splitlines()

    return run


def test_a_folder_stands_for_the_images_below_it_in_order(tmp_path, predicted):
    expected = [image(tmp_path / "photos" / name, 9) for name in ("a.png", "b.JPG", "deep/er/0.png", "deep/1.png")]
    for name in (".hidden.png", "._a.png", ".ipynb_checkpoints/a.png", "deep/.x/b.png"):
        image(tmp_path / "photos" / name, 9)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".DS_Store").write_bytes(b"\0")
    last = image(tmp_path / ".last.png", 9)  # hidden, but named
    code, lines, errors = predicted(tmp_path / "photos", last)
    expected = [*expected[:2], expected[3], expected[2], last]
    assert (code, errors) == (0, [])
    assert lines == ["passed over 1 file that is no image: 1 .txt", *(str(path) for path in expected)]


@pytest.mark.errors
def test_what_a_folder_holds_besides_and_one_that_is_closed_are_told(tmp_path, predicted, monkeypatch):
    first, inside = image(tmp_path / "first.png", 9), image(tmp_path / "mixed" / "1.png", 9)
    (tmp_path / "mixed" / "2.heic").write_bytes(b"-")
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "3.heic").write_bytes(b"-")
    hint = "1 file that is no image: 1 .heic (convert HEIC to JPEG to have it read)"
    below = folders.below

    def closed(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path / "locked"))
        return below(path)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(folders, "below", closed)
    code, lines, _ = predicted(first, *(tmp_path / name for name in ("mixed", "phone", "closed")))
    assert (code, lines) == (
        1,
        [
            str(first),
            f"passed over {hint}",
            str(inside),
            f"there are no images in the folder {tmp_path}/phone: it holds {hint}",
            f"{tmp_path}/closed/locked: Permission denied",
        ],
    )


@pytest.mark.errors
def test_what_cannot_be_read_is_told_in_its_place_and_does_not_stop_the_others(tmp_path, predicted):
    first, last = (image(tmp_path / name, 9) for name in ("first.png", "last.png"))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    os.symlink("nowhere", tmp_path / "dangling.png")
    os.mkfifo(tmp_path / "pipe.png")
    bad = ["none.png", "text.png", "empty", "dangling.png", "pipe.png", "x" * 300 + ".png", "nul\0.png"]
    code, lines, errors = predicted(first, *(f"{tmp_path}/{name}" for name in bad), last)
    assert code == 1
    assert (lines[0], lines[-1]) == (str(first), str(last))
    assert lines[1] == f"there is no image {tmp_path}/none.png"
    assert lines[2].startswith(f"{tmp_path}/text.png is not a readable image")
    assert lines[3] == f"there are no images in the folder {tmp_path}/empty"
    assert lines[5].startswith(f"{tmp_path}/pipe.png is not a readable image")
    missing = [lines[4], *lines[6:-1]]
    assert [line.split(str(tmp_path))[0] for line in missing] == ["there is no image "] * 3
    assert errors == [f"alexnet: 7 of 9 images could not be read; the first: {lines[1]}"]


@pytest.mark.errors
def test_no_images_at_all_is_a_line(predicted):
    assert predicted() == (
        1,
        [],
        ["alexnet: predict of what? Name image files or folders: alexnet predict RUN IMAGE ..."],
    )


@pytest.mark.parametrize("bias", [math.nan, math.inf, -math.inf])
def test_no_command_reports_numbers_from_outputs_that_are_not_finite(tmp_path, monkeypatch, capsys, bias):
    bad = network(bias)
    monkeypatch.setattr(af.data.preprocess, "stored_side", lambda _: 32)
    reading, show = sources.Reading(CPU), Show(Console())
    path, digits = str(image(tmp_path / "a.png", 9)), datasets.load("digits")
    for command in (
        lambda: score.evaluate(bad, digits, "digits", ten_crop=False, reading=reading, show=show),
        lambda: score.evaluate(bad, digits, "digits", ten_crop=True, reading=reading, show=show),
        lambda: score.predict(bad, [path, path], device=CPU, show=show),
        lambda: inspection.inspect(bad, digits, "digits", tmp_path / "out", limit=8, reading=reading, show=show),
    ):
        with pytest.raises(FloatingPointError, match="the network's outputs are not finite"):
            command()
    assert capsys.readouterr().out == ""
    assert not Path(tmp_path / "out").exists()
