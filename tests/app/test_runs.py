import copy
import functools
import math

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import alexnet_func as af
from alexnet_func import checkpoint, optim, tensorfile, train, weights
from alexnet_func.app import cli, models, runs
from alexnet_func.data import preprocess
from tests.conftest import TINY

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c", "d", "e")
CONFIG = {"arch": TINY.to_json(), "mean": [0.5] * 3, "std": [0.2] * 3, "classes": list(CLASSES)}
CONFIG |= {"epochs": 1, "seed": 0, "lr": 0.1}


@pytest.fixture
def run(tmp_path):
    out = tmp_path / "run"
    params = af.init(af.random.key(0), TINY)
    state = train.create_state(params, optim.sgd(0.1, 0.9), key=af.random.key(1))
    assert runs.open_run(out, CONFIG, CPU) is None
    runs.save(out, runs.CHECKPOINT, runs.Progress(state, 1.5, 0, runs.Best(-1.0, 0)), CONFIG)
    return out


@pytest.fixture
def data(tmp_path):
    for split in ("train", "test"):
        for i, name in enumerate(CLASSES):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (15, 15), (40 * i, 9, 255 - i)).save(tmp_path / "data" / split / name / "0.png")
    return tmp_path / "data"


def test_a_run_comes_back(run):
    model = models.load_model(str(run), CPU)
    assert (model.arch, model.classes, model.note) == (TINY, CLASSES, "")
    assert model.moments == ((0.5,) * 3, (0.2,) * 3, None)
    progress = runs.open_run(run, {**CONFIG, "epochs": 3}, CPU)
    assert progress.loss_sum == 1.5
    assert all(torch.equal(progress.state.params[name], p) for name, p in model.params.items())


def test_bare_weights_are_float32_of_as_many_classes_as_they_have_and_said(tmp_path):
    module = torch.nn.DataParallel(torchvision.models.alexnet(num_classes=3).half())
    torch.save({"state_dict": module.state_dict(), "epoch": 9}, tmp_path / "w.pth")
    model = models.load_model(str(tmp_path / "w.pth"), CPU)
    assert model.arch == af.arch.ALEXNET.replace(num_classes=3)
    assert model.note == "read 16 tensors from state_dict, module. removed from their names, float16 to float32"
    assert (model.classes, {p.dtype for p in model.params.values()}) == (None, {torch.float32})
    images = torch.randn(1, 3, 224, 224)
    expected = module.module.float().eval()(images)
    assert torch.equal(af.forward(model.params, images, arch=model.arch), expected)


WRONG = (None, True, 5, -1, 0.5, math.nan, "x", "", [], [3], ["x"] * 5, [0.1] * 3, [-1.0] * 3, {}, {"a": 1}, [[]])
_TENSORS = (torch.zeros(()), torch.tensor(-7), torch.zeros(2), torch.zeros(2, 3), torch.zeros(8, dtype=torch.float16))
TENSORS = (*_TENSORS, torch.zeros(5, dtype=torch.int8), torch.zeros(2, dtype=torch.int64), torch.tensor([True]))


def lies(tensors, config):
    """The file's contents with each field of each dict in it, and each tensor, left out or replaced."""
    for path in (("run",), ("loss_sum",), *(("run", name) for name in config["run"])):
        for wrong in ("left out", *WRONG):
            other = copy.deepcopy(config)
            place = functools.reduce(dict.__getitem__, path[:-1], other)
            place.pop(path[-1]) if wrong == "left out" else place.update({path[-1]: wrong})
            yield tensors, other
    for name in tensors:
        rest = {other: t for other, t in tensors.items() if other != name}
        yield rest, config
        yield {**rest, f"{name}/x": tensors[name]}, config
        yield {**tensors, f"{name}/x": tensors[name]}, config
        for wrong in (*TENSORS, tensors[name].double(), tensors[name].half(), tensors[name] * math.nan):
            yield {**rest, name: wrong}, config
    for more in ("params", "x", "params/x", "opt_state", "", "/", "params/", "step/step"):
        yield {**tensors, more: torch.zeros(2)}, config
    yield {}, config
    yield tensors, {"mine": 1}
    yield tensors, {}


def changed_archs():
    """JSON of archs with each number or word of it another, and cut off."""
    text = TINY.to_json()
    words = text.split(" ")
    for i, word in enumerate(words):
        for other in ("-1,", "7,", '"x",', "[],", "1e9,", "{}"):
            yield " ".join([*words[:i], other + word[len(word.rstrip("}]")) :], *words[i + 1 :]])
        yield " ".join(words[:i])


def outcome(command, *arguments):
    """None where it went well; any error that is not one of the two that a command may end with goes up."""
    try:
        command(*arguments)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


@pytest.mark.errors
def test_checkpoints_that_are_whole_but_lie_are_read_or_refused_by_name(run):
    file = run / runs.CHECKPOINT
    tensors, config = tensorfile.read(file)
    count = refused = 0
    for lying, about in lies(tensors, config):
        tensorfile.write(file, lying, about)
        messages = [
            outcome(models.load_model, str(run), CPU),
            outcome(runs.open_run, run, about.get("run") or {}, CPU),
        ]
        for message in filter(None, messages):
            assert str(run) in message
            assert message.count("\n") == 0
        count, refused = count + 1, refused + any(messages)
    assert refused > 0.6 * count


@pytest.mark.errors
def test_archs_that_lie_are_read_or_refused(run):
    file = run / runs.CHECKPOINT
    tensors, config = tensorfile.read(file)
    for arch in list(changed_archs())[::3]:
        tensorfile.write(file, tensors, {**config, "run": {**config["run"], "arch": arch}})
        outcome(models.load_model, str(run), CPU)


@pytest.mark.errors
def test_every_command_ends_on_a_lying_checkpoint_with_one_line(run, data, tmp_path, capsys):
    """A sample, since each command takes a while."""
    file, image = run / runs.CHECKPOINT, str(data / "test" / "a" / "0.png")
    tensors, config = tensorfile.read(file)
    commands = {
        "eval": ["eval", str(run), "--data", str(data)],
        "predict": ["predict", str(run), image],
        "inspect": ["inspect", str(run), "--data", str(data), "--out", str(tmp_path)],
        "init": ["train", "--data", str(data), "--arch", "alexnet_cifar", "--batch-size", "1", "--init", str(run)],
    }
    for i, (lying, about) in enumerate(lies(tensors, config)):
        if i % 41 and about != {"mine": 1}:
            continue
        tensorfile.write(file, lying, about)
        for name, command in commands.items():
            code = cli.main([*command, "--device", "cpu"])
            output = capsys.readouterr()
            assert code in (0, 1), (name, output)
            assert output.err.count("\n") == code


@pytest.mark.errors
def test_what_else_saved_it_or_is_missing_is_said(run):
    file = run / runs.CHECKPOINT
    state, saved = checkpoint.load(file)
    for config, message in (
        ({"mine": 1}, "is no checkpoint of alexnet train: its configuration has no run"),
        ({"run": {}}, "is no checkpoint of alexnet train: arch must be an arch as JSON, got nothing"),
        ({"run": {**CONFIG, "mean": [0.5]}}, r"mean must be 3 numbers, got \[0\.5\]"),
        ({"run": {**CONFIG, "std": [0.5, 0, 1]}}, "std must be 3 numbers above 0"),
        ({"run": {**CONFIG, "classes": ["a"]}}, r"classes must be 5 names, got \['a'\]"),
        ({"run": {**CONFIG, "arch": "{}"}}, "is no checkpoint of alexnet train: not the JSON of an arch"),
    ):
        checkpoint.save(file, state, config)
        with pytest.raises(ValueError, match=message):
            models.load_model(str(run), CPU)
    checkpoint.save(file, state, {"run": CONFIG})
    with pytest.raises(ValueError, match="is no checkpoint of alexnet train: loss_sum must be a number, got nothing"):
        runs.open_run(run, CONFIG, CPU)
    halved = state._replace(params={name: p.half() for name, p in state.params.items()})
    checkpoint.save(file, halved, saved)
    with pytest.raises(ValueError, match=r"checkpoint of alexnet train: it holds torch\.float16"):
        runs.open_run(run, CONFIG, CPU)
    for p in models.load_model(str(run), CPU).params.values():
        assert p.dtype == torch.float32


@pytest.mark.errors
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_from_every_file(run, tmp_path, monkeypatch, value):
    state, saved = checkpoint.load(run / runs.CHECKPOINT)
    state.params["features.0.bias"][3] = value
    checkpoint.save(run / runs.CHECKPOINT, state, saved)
    monkeypatch.setattr(weights, "ALEXNET", TINY)
    torch.save(state.params, tmp_path / "w.pth")
    save_file(state.params, tmp_path / "w.safetensors")
    for source in ("run", "w.pth", "w.safetensors"):
        with pytest.raises(ValueError, match=rf"{source} holds values that are not finite, in features\.0\.bias$"):
            load_tiny(tmp_path / source, monkeypatch)


def load_tiny(path, monkeypatch):
    monkeypatch.setattr(models, "_bare", lambda source: read_tiny(source))
    return models.load_model(str(path), CPU)


def read_tiny(source):
    params, note = weights.read(source)
    return models.Model(TINY, params, preprocess.Moments((0.5,) * 3, (0.2,) * 3), None, note)
