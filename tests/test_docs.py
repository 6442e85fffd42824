"""Python blocks of README and pages run as written, a page in one namespace; commands and links lead somewhere."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import alexnet_func as af
from alexnet_func.app import cli
from benchmarks import __main__ as benchmarks
from benchmarks import accuracy
from parity import __main__ as parity

ROOT = Path(__file__).parent.parent
# The README and the pages, in the order in which they are read.
PAGES = ["README.md", *(f"docs/{name}" for name in re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))]
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
COMMANDS = list(
    dict.fromkeys(
        line.split("#")[0].strip()
        for text in TEXTS.values()
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    )
)
BLOCKS = {page: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for page, text in TEXTS.items()}
TOLD = {
    "docs/index.md": r"torch\.Size\(\[4, 10, 512\]\)\n",
    "docs/guides/per_sample.md": r"torch\.Size\(\[4, 10, 512\]\)\n",
    "docs/guides/private.md": r"[89]\d% right, epsilon 3\.00 at delta 1e-4\n",
    "docs/guides/through_training.md": r"learned rate 0\.0[3-9]\d*, loss 2\.[12]\d*\n",
}
SHAPES = {
    "README.md": {"logits": (4, 1000), "norms": (4,)},
    "docs/index.md": {"sweep": (2, 4, 1000)},
    "docs/guides/per_sample.md": {"norms": (8,), "slopes": (8,), "products": (8, 8), "scores": (2, 8)},
    "docs/guides/ensembles.md": {"logits": (8, 10), "rates": (3,)},
    "docs/guides/curvature.md": {"kernel": (2, 2, 10, 10)},
}


@pytest.mark.compiled  # some of them
@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_python_blocks_run_as_written(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS[page]:
        exec(compile(block, page, "exec"), names)
    assert re.fullmatch(TOLD.get(page, ""), capsys.readouterr().out)
    for name, shape in SHAPES.get(page, {}).items():
        assert names[name].shape == shape, name
    if "metrics" in names:
        assert names["metrics"]["loss"].isfinite()
    if "meta_grads" in names:
        assert all(g.any() for g in names["meta_grads"].values())


def test_the_plan_prints_its_table(capsys):
    plan = (ROOT / "SCALING.md").read_text()
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
    "examples/archs/one_conv.json": str(ROOT / "examples" / "archs" / "one_conv.json"),
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


@pytest.mark.parametrize("page", [*PAGES, "SCALING.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        if link.startswith("https://") or path.startswith("api/"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_pages_of_the_navigation_are_all_there_are():
    assert {f"docs/{p.relative_to(ROOT / 'docs')}" for p in (ROOT / "docs").rglob("*.md")} == set(PAGES[1:])


def test_the_picture_of_the_rooms_is_drawn_from_todays_imports():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    assert rooms.PICTURE.read_text() == rooms.drawn(rooms.edges()), "python docs/rooms.py draws it anew"
    told = set(re.findall(r"`(\w+)`", TEXTS["docs/design.md"]))
    assert {room for edge in rooms.edges() for room in edge} - {
        "checks",
        "fields",
        "files",
        "tape",
        "threefry_kernel",
    } <= told


@pytest.mark.compiled  # not because it compiles, but for the pass without runtime type checking
def test_the_site_is_built_without_a_warning_and_shows_every_public_name(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    shown = {page.stem: page.read_text() for page in (tmp_path / "api").glob("*.html")}
    for room in af.__all__:
        for name in getattr(getattr(af, room), "__all__", ()):
            assert f"{room}.{name}" in shown or f'id="alexnet_func.{room}.{name}"' in shown[room], (room, name)
    notebook = (tmp_path / "repository" / "AlexNet.ipynb.html").read_text()
    assert all(sign in notebook for sign in ('<h2 id="training">', "data:image/png;base64,", "test accuracy"))
    assert "cell_type" not in notebook
    for page in tmp_path.rglob("*.html"):
        assert "https://unpkg.com" not in page.read_text(), "a page works without a network"


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`?make (\w+)", TEXTS["README.md"]))
    assert {"train", "test", "help", "docs"} <= named
    assert all(f"\n{target}:" in makefile for target in named)
