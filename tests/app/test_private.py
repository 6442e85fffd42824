"""Runs that are private, of views, of some parameters, or averaged: what is trained, spent, kept and refused."""

import json
import re

import pytest
import torch

import alexnet_func as af
from alexnet_func import checkpoint, model, privacy, train
from alexnet_func.app import cli, loop, models, optimizers, options, private, recipes, runs, setup, steps
from alexnet_func.arch import Arch, Conv, Linear, MaxPool, ReLU
from alexnet_func.data import preprocess

pytestmark = pytest.mark.usefixtures("few_digits")

SMALL = Arch(
    "small",
    image_size=32,
    num_classes=10,
    features=(Conv(4, 8, stride=4, padding=2), ReLU(), MaxPool(2, 2)),
    classifier=(Linear(8), ReLU(), Linear(None)),
)
CPU = torch.device("cpu")


@pytest.fixture
def unaccounted(monkeypatch):
    """The accountant takes seconds, and is of no concern to most tests."""
    monkeypatch.setattr(privacy, "noise_for", lambda target, delta, rate, steps, **sample: steps / (8 * target))
    monkeypatch.setattr(privacy, "epsilon", lambda noise, rate, steps, delta, **sample: steps / (8 * noise))


@pytest.fixture
def short(tmp_path):
    (tmp_path / "small.json").write_text(SMALL.to_json())
    return ["train", "--arch", str(tmp_path / "small.json"), "--limit", "64", "--batch-size", "16", "--device", "cpu"]


def recipe(**changes):
    given = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.1, "augmentation": "shift", **changes}
    return recipes.choose("digits", **given)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def params_of(out, name="checkpoint.safetensors"):
    return checkpoint.load(out / name)[0].params


def test_a_private_run_tells_what_it_has_spent_and_spends_no_more_than_asked(tmp_path, short, capsys):
    out = tmp_path / "run"
    assert cli.main([*short, "--epochs", "2", "--dp-epsilon", "1", "--dp-max-norm", "0.5", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    found = rows(out)
    spent = [row["epsilon"] for row in found]
    assert spent == sorted(spent)
    assert 0.99 < spent[-1] <= 1
    assert [f"{s:.3f}" for s in spent] == re.findall(r"epsilon (\d\.\d{3})", told)
    config = json.loads((out / "config.json").read_text())
    size = privacy.padded_size(64, 1 / 4)
    assert (config["sampling_rate"], config["sample_size"], config["steps"], config["delta"]) == (0.25, size, 8, 0.01)
    assert f"noise multiplier {config['noise_multiplier']:g}" in told
    for steps_done, epsilon in zip((4, 8), spent, strict=True):
        expected = privacy.epsilon(config["noise_multiplier"], 0.25, steps_done, 0.01, examples=64, size=size)
        assert epsilon == pytest.approx(expected)
    assert (config["mean"], config["std"]) == ([0.5] * 3, [0.25] * 3)  # not of the training images
    assert not (out / "noise.key").exists()


def test_a_private_run_is_the_librarys_step_on_its_samples(tmp_path, short, unaccounted):
    """By hand, with the key that the run kept in its directory until it had ended."""
    out, kept = tmp_path / "run", []
    forget = private.forget
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private, "forget", lambda path: (kept.append((path / "noise.key").read_text()), forget(path)))
        assert cli.main([*short, "--epochs", "1", "--dp-epsilon", "1", "--views", "2", "--out", str(out)]) == 0
    words = torch.tensor([int(kept[0][:8], 16), int(kept[0][8:], 16)]).to(torch.uint32)
    noise_key, sample_key, _ = af.random.split(af.random.wrap_key_data(words), 3).unbind()
    config = json.loads((out / "config.json").read_text())
    dataset = af.data.datasets.load("digits")
    images = preprocess.limited(dataset.train, 64)
    prepare = preprocess.in_views(preprocess.preparation("shift", 32, private.MOMENTS), 2)
    chosen = recipes.choose("digits", epochs=1, batch_size=16, dp_epsilon=1.0)
    optimizer = optimizers.optimizer(chosen, SMALL, 4)
    init_key, _, data_key = af.random.split(af.random.key(0), 3).unbind()
    augment_key = setup.epoch_keys(data_key, 0)[1]
    state = train.create_state(model.init(init_key, SMALL), optimizer, key=noise_key)
    noise = config["noise_multiplier"]
    step = train.make_step(None, optimizer, grad_fn=privacy.dp_grad_fn(1.0, noise, 16.0, arch=SMALL, views=2))
    for i in range(4):
        index, weights = privacy.poisson_sample(af.random.fold_in(sample_key, i), 64, 0.25, config["sample_size"])
        index = index[weights > 0]
        x = prepare(af.random.fold_in(augment_key, i), index, images.images[index])
        state, _ = step(state, (x, images.labels[index]))
    for name, p in params_of(out).items():
        torch.testing.assert_close(p, state.params[name], rtol=1e-5, atol=1e-6)


def stopped_after(count, monkeypatch, short, *extra):
    """Runs until so many steps are done, is killed without a word, and leaves a checkpoint of an earlier step."""
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    save, done = runs.save, []

    def save_then_die(*arguments):
        done.append(1)
        save(*arguments)
        if len(done) > count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save", save_then_die)
        assert cli.main([*short, *extra]) == 130


def test_a_resumed_private_run_draws_the_noise_that_it_drew(tmp_path, short, monkeypatch, unaccounted):
    """Were a step run again with other noise, two results of it would be known, and only one is accounted for."""
    out = tmp_path / "run"
    private_run = [
        *short,
        "--epochs",
        "2",
        "--dp-epsilon",
        "4",
        "--dp-quantile",
        "0.5",
        "--ema",
        "0.5",
        "--dp-max-norm",
    ]
    private_run += ["0.5", "--batch-size", "32", "--out", str(out)]
    monkeypatch.setattr(private.secrets, "randbits", lambda count: 0x0123456789ABCDEF >> (64 - count))
    stopped_after(2, monkeypatch, private_run)
    assert (out / "noise.key").read_text() == "0123456789abcdef\n"
    assert (out / "noise.key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(private.secrets, "randbits", lambda count: pytest.fail("a new key"))
    assert cli.main([*private_run, "--resume"]) == 0
    resumed = rows(out)
    monkeypatch.setattr(private.secrets, "randbits", lambda count: 0x0123456789ABCDEF)
    whole = tmp_path / "whole"
    assert cli.main([str(whole) if word == str(out) else word for word in private_run]) == 0
    for ours, theirs in zip(resumed, rows(whole), strict=True):
        assert {**ours, "images_per_second": 0} == {**theirs, "images_per_second": 0}
    for name, p in params_of(out).items():
        assert torch.equal(p, params_of(whole)[name])
    assert resumed[0]["max_norm"] != resumed[1]["max_norm"]
    assert cli.main([*private_run, "--resume"]) == 0  # finished: it needs no key
    # What a checkpoint holds tells nothing of the noise.
    key = checkpoint.load(out / "checkpoint.safetensors")[0].key
    assert torch.equal(key, af.random.split(af.random.key(0), 3)[1])


@pytest.mark.errors
def test_a_private_run_goes_on_as_it_began_or_not_at_all(tmp_path, short, monkeypatch, capsys, unaccounted):
    out = tmp_path / "run"
    private_run = [*short, "--dp-epsilon", "1", "--out", str(out)]
    stopped_after(2, monkeypatch, private_run, "--epochs", "2")
    capsys.readouterr()
    for change in (["--epochs", "3"], ["--epochs", "2", "--dp-epsilon", "8"]):
        assert cli.main([*private_run, *change, "--resume"]) == 1
        assert "a private run goes on with both as they were" in capsys.readouterr().err
    assert cli.main([*private_run, "--epochs", "2", "--dp-max-norm", "2", "--resume"]) == 1
    assert "was trained otherwise: dp_max_norm 1.0 -> 2.0" in capsys.readouterr().err
    key = (out / "noise.key").read_text()
    (out / "noise.key").write_text("0123")
    assert cli.main([*private_run, "--epochs", "2", "--resume"]) == 1
    assert "noise.key holds no key of a private run" in capsys.readouterr().err
    (out / "noise.key").unlink()
    assert cli.main([*private_run, "--epochs", "2", "--resume"]) == 1
    assert "noise.key is gone, and without it a private run cannot go on" in capsys.readouterr().err
    (out / "noise.key").write_text(key)
    assert cli.main([*private_run, "--epochs", "2", "--resume"]) == 0


@pytest.mark.errors
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dp-epsilon", "0"], "--dp-epsilon must lie in (0, inf), got 0.0"),
        (["--dp-epsilon", "nan"], "--dp-epsilon must lie in (0, inf), got nan"),
        (["--dp-epsilon", "1", "--dp-delta", "1"], "--dp-delta must lie in (0, 1), got 1.0"),
        (["--dp-epsilon", "1", "--dp-max-norm", "-1"], "--dp-max-norm must lie in (0, inf), got -1.0"),
        (["--dp-epsilon", "1", "--dp-quantile", "1"], "--dp-quantile must lie in (0, 1), got 1.0"),
        (["--dp-delta", "1e-5"], "--dp-delta needs --dp-epsilon: how much may be spent?"),
        (["--dp-audit", "9"], "--dp-audit needs --dp-epsilon: how much may be spent?"),
        (["--dp-epsilon", "1", "--dp-audit", "65"], "--dp-audit 65 is more than the 64 training images"),
        (["--dp-epsilon", "1", "--precision", "bf16"], "wants sums in float32, not --precision bf16"),
        (["--dp-epsilon", "1", "--reduction", "bf16"], "wants sums in float32, not --reduction bf16"),
        (["--dp-epsilon", "1", "--label-smoothing", "0.1"], "it needs --label-smoothing 0"),
        (["--label-smoothing", "1.5"], "--label-smoothing must be at most 1, got 1.5"),
        (["--dp-epsilon", "1", "--recipe", "paper"], "does not go with the paper's colour noise"),
        (["--views", "0"], "--views must be at least 1, got 0"),
        (["--ema", "1"], "--ema must lie in [0, 1), got 1.0"),
        (["--freeze", "feature.*"], "--freeze feature.* matches none of the parameters features.0.weight, features.0"),
        (["--freeze", "*"], "--freeze * leaves no parameter to train"),
        (["--arch", "no.json"], "No such file"),
    ],
)
def test_mistakes_are_named(short, words, told, capsys):
    assert cli.main([*short, *words]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.errors
def test_a_file_that_is_no_arch_is_named(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert cli.main(["train", "--arch", str(tmp_path / "a.json")]) == 1
    assert "a.json: not the JSON of an arch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--dp-epsilon", "1"],
        pytest.param(["--compile", "--optimizer", "adamw"], marks=pytest.mark.compiled),
    ],
    ids=str,
)
def test_frozen_parameters_stay_and_the_others_are_trained(tmp_path, short, extra, unaccounted):
    out = tmp_path / "run"
    words = [*short, "--freeze", "features.*", "classifier.2.bias", *extra, "--ema", "0.5"]
    assert cli.main([*words, "--epochs", "1", "--out", str(out)]) == 0
    start = model.init(af.random.split(af.random.key(0), 3)[0], SMALL)
    state = checkpoint.load(out / "checkpoint.safetensors")[0]
    same = {name for name, p in state.params.items() if torch.equal(p, start[name])}
    assert same == {"features.0.weight", "features.0.bias", "classifier.2.bias"}
    assert list(state.opt_state["ema"]) == ["classifier.0.weight", "classifier.0.bias", "classifier.2.weight"]
    if "--dp-epsilon" not in extra:
        assert cli.main([*words, "--epochs", "2", "--out", str(out), "--resume"]) == 0


def test_an_average_is_what_is_evaluated_told_and_read_again(tmp_path, short, capsys):
    out = tmp_path / "run"
    assert cli.main([*short, "--ema", "0.9", "--epochs", "2", "--out", str(out)]) == 0
    state = checkpoint.load(out / "checkpoint.safetensors")[0]
    read = models.load_model(str(out), CPU)
    for name, p in read.params.items():
        assert torch.equal(p, state.opt_state["ema"][name])
        assert not torch.equal(p, state.params[name])
    capsys.readouterr()
    assert cli.main(["eval", str(out), "--device", "cpu"]) == 0
    assert f"test accuracy {rows(out)[-1]['test_accuracy'] * 100:.2f} %" in capsys.readouterr().out


def setting(chosen, plan=None, secret=None):
    return steps.Setting(options.Run(device="cpu"), chosen, SMALL, CPU, plan, secret)


def test_views_of_a_plain_step_are_the_mean_over_them(key):
    chosen = recipe(views=3, schedule="constant", momentum=0.0, weight_decay=0.0)
    prepare = preprocess.preparation("shift", 32, private.MOMENTS)
    optimizer, step = steps.made(setting(chosen), 4, prepare)
    state = train.create_state(model.init(key, SMALL), optimizer, key=key)
    index, labels = torch.tensor([5, 2]), torch.tensor([1, 0])
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    after, _ = step(state, (key, index, pixels, labels))
    x = torch.stack([prepare(af.random.fold_in(key, k), index, pixels) for k in range(3)])
    assert not torch.equal(x[0], x[1])

    def mean(p):
        return torch.stack([af.loss_fn(p, (view, labels), arch=SMALL) for view in x]).mean()

    for name, g in torch.func.grad(mean)(state.params).items():
        torch.testing.assert_close(after.params[name], state.params[name] - 0.1 * g, rtol=1e-5, atol=1e-6)


def test_a_padded_step_is_that_of_the_sampled_alone(key, unaccounted):
    """As a compiled step and ranks need it; also where nobody is sampled."""
    chosen = recipe(dp_epsilon=3.0)
    plan = private.planned(chosen, 64)
    prepare = preprocess.preparation("shift", 32, private.MOMENTS)
    optimizer, step = steps.made(setting(chosen, plan, key), 4, prepare)
    padded = steps._padded(step, plan.sample_size)
    state = train.create_state(model.init(key, SMALL), optimizer, key=key)
    generator = torch.Generator().manual_seed(0)
    for count in (5, 0):
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        batch = (key, torch.arange(count), pixels, torch.arange(count) % 10)
        (ours, metrics), (theirs, others) = padded(state, batch), step(state, batch)
        assert metrics["count"] == others["count"] == count
        for name, p in theirs.params.items():
            torch.testing.assert_close(ours.params[name], p, rtol=1e-5, atol=1e-6)


def test_an_audit_leaves_images_out_by_coins_and_tells_a_lower_bound(short, unaccounted, monkeypatch, capsys):
    taken, sampled = [], private.sampled
    monkeypatch.setattr(private, "sampled", lambda *given: taken.append(sampled(*given)) or taken[-1])
    monkeypatch.setattr(private.secrets, "randbits", lambda count: 7)
    assert cli.main([*short, "--epochs", "4", "--dp-epsilon", "1", "--dp-audit", "40"]) == 0
    secrets = private.secret(None, False, CPU)
    chosen, included = private.audited(recipe(dp_epsilon=1.0, dp_audit=40), 64, secrets)
    assert len(set(chosen.tolist())) == 40
    assert 10 < included.sum() < 30
    seen = set(torch.cat(taken).tolist())
    assert seen.isdisjoint(chosen[~included].tolist())
    assert len(seen & set(chosen[included].tolist())) > 10
    words = r"audit of 40 images: epsilon is at least (\S+) with 95 % confidence, and at most (\S+)\n"
    told = re.search(words, capsys.readouterr().out)
    assert float(told[1]) <= float(told[2]) == 1


@pytest.mark.compiled
def test_a_compiled_private_run_is_the_eager_one(tmp_path, short, monkeypatch, unaccounted):
    monkeypatch.setattr(private.secrets, "randbits", lambda count: 7)
    words = [*short, "--dp-epsilon", "1", "--freeze", "features.0.bias", "--epochs", "1", "--out"]
    assert cli.main([*words, str(tmp_path / "a")]) == 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert cli.main([*words, str(tmp_path / "b"), "--compile"]) == 0
    for name, p in params_of(tmp_path / "a").items():
        torch.testing.assert_close(params_of(tmp_path / "b")[name], p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "delta"), [(1442, 1e-4), (50_000, 1e-5), (1000, 1e-4), (999, 1e-3), (1_281_167, 1e-7)])
def test_delta_is_the_largest_power_of_ten_below_one_in_the_images(n, delta, unaccounted):
    plan = private.planned(recipe(dp_epsilon=8.0, batch_size=n // 4, epochs=1), n)
    assert plan.delta == pytest.approx(delta)
    assert plan.delta < 1 / n


def test_streamed_images_and_shards_serve_samples_of_nobody(tmp_path, photographs, short, monkeypatch, unaccounted):
    monkeypatch.setattr(private, "sampled", lambda plan, secrets, left_out, step: torch.arange(3 * (step % 2)))
    words = [*short[:3], "--batch-size", "16", "--device", "cpu", "--epochs", "2", "--dp-epsilon", "8", "--data"]
    assert cli.main([*words, str(photographs), "--stream", "--workers", "0"]) == 0
    assert cli.main(["prepare", str(photographs), str(tmp_path / "shards"), "--side", "32"]) == 0
    for how in ([], ["--stream"]):
        assert cli.main([*words, str(tmp_path / "shards"), *how]) == 0
