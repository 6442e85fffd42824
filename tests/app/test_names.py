"""Whatever files, classes and directories are called, commands go through with it and show it literally."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from alexnet_func.app import cli, models, runs
from alexnet_func.app.text import shown
from tests.app.names import FILE_NAMES, HOSTILE, fuzzed, image

CLASSES = (
    "cat [1]",
    "[b]mug",
    ":smile:",
    "$x^2$",
    r"$\foo{$",
    "_hidden",
    "two  blanks",
    "a\nb\x1b[31m",
    "猫😀",
    "שלום",
)
TRAIN = ["--arch", "alexnet_cifar", "--epochs", "1", "--batch-size", "8", "--optimizer", "sgd", "--device", "cpu"]


def said(capsys, *words):
    """What a command that succeeds prints."""
    code = cli.main(words)
    out, error = capsys.readouterr()
    assert (code, error) == (0, "")
    assert all(line.isprintable() for line in out.splitlines())
    return out


def through_all_commands(tmp_path, capsys, classes, files):
    """Makes a folder `[data]` of these classes with the files as training images, and has every command at it."""
    data, run, shards = (str(tmp_path / name) for name in ("[data] $x$", "run [/b]", "shards :smile:"))
    for i, name in enumerate(classes):
        image(tmp_path / data / "test" / name / "0.png", 5 * i % 200)
    for i, name in enumerate(files):
        image(tmp_path / data / "train" / classes[i % len(classes)] / f"{name}.png", 5 * i % 200, i)

    assert f" on {data}: " in said(capsys, "train", "--data", data, *TRAIN, "--out", run)
    assert json.loads((tmp_path / run / runs.CONFIG).read_text())["classes"] == sorted(classes)
    assert models.load_model(run, torch.device("cpu")).classes == tuple(sorted(classes))
    assert (tmp_path / run / "confusion.png").exists()
    table = said(capsys, "eval", run, "--data", data)
    assert all(f" {i} {shown(name)} " in table for i, name in enumerate(sorted(classes)))
    out = said(capsys, "predict", run, os.path.join(data, "train")).splitlines()
    paths = [str(path) for path in (tmp_path / data / "train").glob("*/*")]
    assert sorted(line for line in out if not line.startswith(" ")) == sorted(map(shown, paths))
    assert {line[11:] for line in out if line.startswith(" ")} <= set(map(shown, classes))
    assert f"wrote {run}/inspect.png" in said(capsys, "inspect", run, "--data", data)
    with open(tmp_path / run / "inspect.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["file"] for row in rows) == sorted(paths)
    assert {row["label"] for row in rows} == {os.path.basename(os.path.dirname(path)) for path in paths}
    assert f"{shards} holds {len(files)} training" in said(capsys, "prepare", data, shards, "--side", "32")
    assert json.loads((tmp_path / shards / "manifest.json").read_text())["classes"] == sorted(classes)
    assert said(capsys, "eval", run, "--data", shards) == table


def test_hostile_names_go_through_all_commands(tmp_path, capsys):
    classes = [*CLASSES, os.fsdecode(b"caf\xe9")]
    files = [name for name in FILE_NAMES if len(os.fsencode(name)) < 250]
    through_all_commands(tmp_path, capsys, classes, files)


@pytest.mark.slow
def test_500_fuzzed_names_go_through_all_commands(tmp_path, capsys):
    names = fuzzed(500)
    through_all_commands(tmp_path, capsys, names[:100], names[100:])
    through_all_commands(tmp_path / "few", capsys, names[:12], names[12:60])  # so few that pictures name them


@pytest.mark.errors
@pytest.mark.parametrize("name", [*HOSTILE, "x" * 5000])
def test_a_name_in_an_error_is_shown_literally_on_one_line(name, tmp_path, capsys):
    for words in (
        ["train", "--data", str(tmp_path / "none" / name)],
        ["train", "--out", "/dev/null/" + name, "--limit", "64"],
        ["eval", str(tmp_path / name)],
        ["predict", str(tmp_path / name) + ".pth", "x.png"],
        ["inspect", str(tmp_path / name), "--data", f"./{name}"],
        ["prepare", str(tmp_path / name), str(tmp_path / "out")],
    ):
        assert cli.main(words) == 1
        error = capsys.readouterr().err
        assert error.endswith("\n")
        assert error[:-1].isprintable()
        if name.isprintable() and "\\" not in name and "'" not in name:
            assert name in error


@pytest.mark.errors
@pytest.mark.parametrize("words", [["\x1b[31m[/b]\udcff"], ["train", "--\x1b]"], ["train", "--optimizer", "a\x1b[31m"]])
def test_wrong_options_reach_the_terminal_escaped(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert all(line.isprintable() for line in error.splitlines())
    assert shown(words[-1]) in error


def test_what_the_terminals_encoding_lacks_is_escaped(tmp_path):
    program = (
        "import sys; from alexnet_func.app import cli, models, score\n"
        "cli._model = lambda *_: models.Model(*[None] * 4); sys.argv[0] = 'alexnet'\n"
        "score.predict = lambda source, paths, show, **_: [show.line(path) for path in paths]\n"
        "sys.exit(cli.script())"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", program, "predict", "run", os.fsdecode(b"\xff") + "猫😀é.png"]
    run = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert (run.stdout, run.stderr) == (b"\\xff\\u732b\\U0001f600\\xe9.png\n", b"")
