"""What a network was trained on, its commands use again: the same way up, and held out."""

import json
import re
import shutil

import pytest
from PIL import Image

from alexnet_func.app import cli

TRAIN = ["--arch", "alexnet_cifar", "--batch-size", "16", "--epochs", "1", "--device", "cpu", "--lr", "1e-4"]


@pytest.fixture
def lying(photographs):
    """Photographs whose tag says that they lie on their side."""
    for path in photographs.rglob("*.png"):
        exif = Image.Exif()
        exif[274] = 6
        Image.open(path).save(path, exif=exif)
    return photographs


def losses(capsys, run, data, *options):
    """What the run's own evaluation gave, and what that of the command gives."""
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--data", str(data), "--device", "cpu", *options]) == 0
    out = capsys.readouterr().out
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return f"{row['test_loss']:.4f}", re.search(r"loss (\d+\.\d+)", out)[1], out


@pytest.mark.parametrize("trained", ["exif", "stored"])
def test_images_are_turned_as_in_training_unless_told(tmp_path, lying, capsys, trained):
    run, shards = tmp_path / "run", tmp_path / "shards"
    other = {"exif": "stored", "stored": "exif"}[trained]
    assert cli.main(["train", "--data", str(lying), "--orientation", trained, "--out", str(run), *TRAIN]) == 0
    first, again, _ = losses(capsys, run, lying)
    assert first == again
    first, turned, _ = losses(capsys, run, lying, "--orientation", other)
    assert first != turned
    assert cli.main(["prepare", str(lying), str(shards), "--side", "32", "--orientation", trained]) == 0
    first, prepared, _ = losses(capsys, run, shards)
    assert first == prepared
    image = str(next(lying.rglob("*.png")))
    told = []
    for options in ([], ["--orientation", trained], ["--orientation", other]):
        assert cli.main(["predict", str(run), image, "--device", "cpu", *options]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != told[2]


def test_another_part_held_out_than_in_training_is_told(tmp_path, photographs, capsys):
    data, run = tmp_path / "classes", tmp_path / "run"
    shutil.copytree(photographs / "train", data)
    assert cli.main(["train", "--data", str(data), "--holdout", "0.25", "--out", str(run), *TRAIN]) == 0
    first, again, out = losses(capsys, run, data, "--holdout", "0.25")
    assert first == again
    assert "may have seen" not in out
    _, _, out = losses(capsys, run, data, "--holdout", "0.5")
    assert "trained with --holdout 0.25, and may have seen images held out here" in out


@pytest.mark.errors
@pytest.mark.parametrize(
    "words",
    [
        *(["train", option, ""] for option in ("--data", "--out", "--init", "--root")),
        *(["eval", ""], ["prepare", "", "x"], ["prepare", "x", ""], ["inspect", "x", "--out", ""]),
    ],
)
def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    assert re.fullmatch(r"alexnet: .*empty.*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.errors
def test_a_test_split_alone_has_nothing_to_inspect(tmp_path, photographs, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", "--data", str(photographs), "--out", str(run), *TRAIN]) == 0
    shutil.rmtree(photographs / "train")
    shards = tmp_path / "shards"
    assert cli.main(["prepare", str(photographs), str(shards), "--side", "32"]) == 0
    for data in (photographs, shards):
        capsys.readouterr()
        assert cli.main(["inspect", str(run), "--data", str(data), "--device", "cpu"]) == 1
        assert "has a test split alone: there are no training images to inspect" in capsys.readouterr().err
    assert not (run / "inspect.csv").exists()
