"""The README's Python blocks run as written, in one namespace; its commands are those of the Makefile and the CLI."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from alexnet_func.app import cli
from benchmarks import __main__ as benchmarks
from benchmarks import accuracy
from parity import __main__ as parity

README = Path(__file__).parent.parent / "README.md"
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(), flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.compiled
def test_python_blocks_run_as_written(capsys):
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    shape, private, learned = capsys.readouterr().out.splitlines()
    assert shape == "torch.Size([4, 10, 512])"
    assert re.fullmatch(r"[89]\d% right, epsilon 3\.00 at delta 1e-4", private)
    assert namespace["sweep"].shape == (2, 4, 1000)
    assert namespace["norms"].shape == namespace["slopes"].shape == (8,)
    assert namespace["products"].shape == (8, 8)
    assert namespace["scores"].shape == (2, 8)
    assert namespace["members"]["features.0.weight"].shape[0] == 3
    assert namespace["metrics"]["loss"].isfinite()
    assert namespace["logits"].shape == (8, 10)
    assert namespace["kernel"].shape == (2, 2, 10, 10)
    assert all(g.any() for g in namespace["meta_grads"].values())
    rate, loss = re.fullmatch(r"learned rate (\S+), loss (\S+)", learned).groups()
    assert float(rate) > 0.03
    assert float(loss) < 2.25


def test_the_plan_prints_its_table(capsys):
    plan = (README.parent / "SCALING.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", plan, flags=re.DOTALL)
    exec(compile(script, "SCALING.md", "exec"), {})
    assert f"```\n{capsys.readouterr().out}```" in plan


# What stands in for downloads, for photographs and for hours.
STAND_INS = {
    "cifar10": "digits",
    "torchvision": "runs/cifar10",
    "inspect": "inspect --limit 16",
    "train": "train --limit 4 --batch-size 2 --epochs 1 --device cpu",
    "1442": "2",  # images a step of the private digits, and 60 epochs of them, 100 images of them for an audit
    "60": "1",
    "100": "4",
    "examples/archs/one_conv.json": str(README.parent / "examples" / "archs" / "one_conv.json"),
}


@pytest.fixture
def photographs(tmp_path):
    """Two classes of two images, and the two that are to be recognised."""
    places = [tmp_path / "photographs" / split / name for split in ("train", "test") for name in ("cat", "dog")]
    for place in places:
        place.mkdir(parents=True)
    for number, name in enumerate(("cat", "dog")):
        image = Image.new("RGB", (300, 280), (90 * number, 50, 20))
        for file in (f"photographs/train/{name}/0.jpg", f"photographs/train/{name}/1.jpg"):
            image.save(tmp_path / file)
        image.save(tmp_path / f"photographs/test/{name}/0.jpg")
        image.save(tmp_path / f"{name}.jpg")
    return tmp_path


def test_the_alexnet_commands_run_in_their_order(photographs, monkeypatch, capsys):
    monkeypatch.chdir(photographs)
    commands = [line for line in COMMANDS if re.match(r"\.venv/bin/(alexnet|torchrun)", line)]
    assert len(commands) > 8
    for command in commands:
        words = [STAND_INS.get(word, word) for word in command.split()]
        arguments = " ".join(words[words.index("alexnet_func") + 1 :] if "torchrun" in command else words[1:]).split()
        if "torchrun" in command:
            shutil.rmtree("runs/cifar10")
        assert cli.main(arguments) == 0, (command, capsys.readouterr().err)
    assert (photographs / "shards" / "manifest.json").is_file()


@pytest.mark.parametrize("program", [parity, benchmarks], ids=["parity", "benchmarks"])
def test_the_other_programs_take_the_options_shown(program, monkeypatch, capsys):
    name = program.__name__.split(".")[0]
    shown = [
        line.split()[3:] for line in COMMANDS if line.startswith(f".venv/bin/python -m {name} ") or line.endswith(name)
    ]
    assert len(shown) > 3
    for arguments in shown:
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--list"])
        assert program.main() == 0, arguments
        assert capsys.readouterr().out


def test_the_accuracy_table_is_made_by_options_of_alexnet_train(monkeypatch, capsys):
    (command,) = [line for line in COMMANDS if "benchmarks.accuracy" in line]

    def trained_once(seed, run, options, training):
        short = [word for word in training if word != "--compile"]
        assert cli.main(["train", "--limit", "4", "--batch-size", "2", "--epochs", "1", "--device", "cpu", *short]) == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "_result", trained_once)
    monkeypatch.setattr(sys, "argv", command.split()[2:])
    with pytest.raises(KeyboardInterrupt):
        accuracy.main()
    assert "test accuracy" in capsys.readouterr().out


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "SCALING.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (README.parent / page).read_text())
    inner = [link for link in links if not link.startswith("https://")]
    assert inner
    for link in inner:
        path, _, anchor = link.partition("#")
        target = README.parent / (path or page)
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text()
    named = set(re.findall(r"`?make (\w+)", README.read_text()))
    assert {"train", "test", "help"} <= named
    assert all(f"\n{target}:" in makefile for target in named)
