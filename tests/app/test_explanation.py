"""`alexnet inspect --explain`: planted copies and planted wrong labels are found."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet_func.app import cli
from alexnet_func.data import datasets

TRAIN = ["--arch", "alexnet_cifar", "--batch-size", "8", "--lr", "2e-4", "--epochs", "8", "--device", "cpu"]


def shades(folder, count, seed=0):
    """Noise about a dark or a bright grey: two classes."""
    generator = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name, middle in (("bright", 160), ("dark", 90)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(generator.normal(middle, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def rows_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_a_copy_pulls_most_and_a_wrong_label_against(tmp_path, capsys):
    data, run = shades(tmp_path / "images", 12), tmp_path / "run"
    assert cli.main(["train", "--data", str(data), *TRAIN, "--out", str(run)]) == 0
    copied, wrong = data / "train" / "dark" / "3.png", data / "test" / "dark" / "5.png"
    shutil.copy(copied, tmp_path / "copied.png")
    shutil.copy(wrong, data / "train" / "bright" / "planted.png")
    capsys.readouterr()
    asked = ["--explain", str(tmp_path / "copied.png"), str(wrong)]
    assert cli.main(["inspect", str(run), "--data", str(data), "--device", "cpu", *asked]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path}/copied.png: dark" in out
    assert f"for     {copied} (dark, +1.000)" in out
    assert f"against {data}/train/bright/planted.png (bright, -" in out
    assert "nothing pulls it" not in out
    assert (run / "explain.png").stat().st_size > 10_000
    assert not (run / "inspect.csv").exists()
    rows = rows_of(run / "explain.csv")
    assert len(rows) == 2 * 2 * 25
    for file in (str(tmp_path / "copied.png"), str(wrong)):
        own = {int(row["rank"]): row for row in rows if row["image"] == file}
        falling = [float(own[rank]["alike"]) for rank in range(1, 26)]
        assert falling == sorted(falling, reverse=True)
        assert all(-1 <= alike <= 1 for alike in falling)
        rising = [float(own[-rank]["influence"]) for rank in range(1, 26)]
        assert rising == sorted(rising)
        assert {row["index"] for rank, row in own.items() if rank > 0} == {str(i) for i in range(25)}


def test_scores_are_the_mean_over_kept_checkpoints_and_views_those_of_training(tmp_path, capsys):
    data, run = shades(tmp_path / "images", 4), tmp_path / "run"
    train = ["train", "--data", str(data), *TRAIN, "--epochs", "4", "--keep-every", "2", "--out", str(run)]
    assert cli.main(train) == 0
    assert sorted(path.name for path in run.glob("epoch-*")) == ["epoch-000002.safetensors", "epoch-000004.safetensors"]
    image = str(data / "test" / "dark" / "0.png")

    def scores(source, *options):
        out = tmp_path / "out"
        words = ["inspect", str(source), "--data", str(data), "--device", "cpu", "--out", str(out)]
        assert cli.main([*words, "--explain", image, *options]) == 0
        rows = {row["index"]: row for row in rows_of(out / "explain.csv") if int(row["rank"]) > 0}
        return np.array([[float(rows[str(i)][name]) for name in ("alike", "influence")] for i in range(8)])

    together = scores(run)
    apart = [scores(run / name) for name in ("checkpoint.safetensors", "epoch-000002.safetensors")]
    np.testing.assert_allclose(together, np.mean(apart, 0), rtol=1e-3, atol=1e-5)
    assert not np.allclose(*apart, rtol=1e-2)
    viewed = scores(run / "checkpoint.safetensors", "--views", "3")
    assert not np.allclose(viewed, apart[0], rtol=1e-2)
    assert np.corrcoef(viewed[:, 0], apart[0][:, 0])[0, 1] > 0.5
    capsys.readouterr()


@pytest.mark.errors
def test_what_cannot_be_explained_is_named(tmp_path, capsys):
    data, run = shades(tmp_path / "images", 4), tmp_path / "run"
    assert (
        cli.main(["train", "--data", str(data), *TRAIN[:-4], "--epochs", "1", "--device", "cpu", "--out", str(run)])
        == 0
    )
    (tmp_path / "text.png").write_text("no image")
    ask = ["inspect", str(run), "--data", str(data), "--device", "cpu", "--explain"]
    for given, message in (
        (str(tmp_path / "text.png"), "text.png is not a readable image"),
        (str(tmp_path / "missing.png"), "there is no image"),
        ("", "explain is empty: name a file or a directory"),
    ):
        assert cli.main([*ask, given]) == 1
        assert message in capsys.readouterr().err
    good = str(data / "test" / "dark" / "0.png")
    assert cli.main([*ask, good, str(tmp_path / "text.png")]) == 0
    assert "left out: " in capsys.readouterr().out
    (run / "explain.csv").write_text("mine")
    assert cli.main([*ask, good]) == 1
    assert "explain.csv is not of alexnet inspect: choose another --out" in capsys.readouterr().err
    (run / "explain.csv").unlink()
    assert cli.main([*ask[:-1], "--views", "2"]) == 1
    assert "--views goes with --explain" in capsys.readouterr().err
    shutil.rmtree(data / "train")
    assert cli.main([*ask, str(data / "test" / "dark" / "0.png")]) == 1
    assert "has a test split alone: there are no training images to explain by" in capsys.readouterr().err


@pytest.mark.slow
def test_ten_wrong_labels_planted_in_the_digits_are_found(tmp_path, monkeypatch, capsys):
    """Each planted image is asked about: the network, which fits it or not, is pulled most by that very image."""
    load = datasets.digits
    whole = load(None)
    planted = list(range(0, 1000, 100))
    labels = whole.train.labels.clone()
    labels[planted] = (labels[planted] + 3) % 10
    lying = whole._replace(train=whole.train._replace(labels=labels))
    monkeypatch.setitem(datasets._LOADERS, "digits", lambda root: lying)
    run = tmp_path / "run"
    assert cli.main(["train", "--device", "cpu", "--out", str(run)]) == 0
    for i in planted:
        Image.fromarray(lying.train.images[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    asked = [str(tmp_path / f"{i}.png") for i in planted]
    assert cli.main(["inspect", str(run), "--device", "cpu", "--explain", *asked]) == 0
    first = {(row["image"], int(row["index"])) for row in rows_of(run / "explain.csv") if abs(int(row["rank"])) == 1}
    found = sum((str(tmp_path / f"{i}.png"), i) in first for i in planted)
    print(f"{found} of 10 first")
    assert found >= 9
