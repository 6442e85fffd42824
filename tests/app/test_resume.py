"""What a run directory must not lose: finite checkpoints, what lies there already, and which data it was of."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from alexnet_func import checkpoint, files
from alexnet_func.app import cli, loop, runs, setup
from alexnet_func.arch import ALEXNET_SMALL, Dropout

pytestmark = pytest.mark.usefixtures("few_digits")
SHORT = ["train", "--limit", "64", "--batch-size", "32", "--device", "cpu"]


def own(folder, *options):
    network = ["--arch", "alexnet_cifar", "--batch-size", "16"]
    return ["train", "--data", str(folder), *network, "--device", "cpu", *options]


@pytest.mark.errors
def test_a_finite_checkpoint_is_never_replaced_by_one_that_is_not(tmp_path, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main([*SHORT, *out, "--epochs", "1"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.safetensors")}
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)  # a checkpoint after every step
    run_epoch = loop.run_epoch

    def diverging(job, start, *rest):
        names = list(start.state.params)
        start.state.params[names[-1]].fill_(float("nan"))
        return run_epoch(job, start, *rest)

    monkeypatch.setattr(loop, "run_epoch", diverging)
    capsys.readouterr()
    assert cli.main([*SHORT, *out, "--epochs", "2", "--resume"]) == 1
    assert "the loss is nan in epoch 2: try a smaller --lr than 0.05" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.safetensors")} == before


@pytest.mark.errors
def test_parameters_that_are_not_finite_are_not_saved_though_the_loss_is(tmp_path, monkeypatch, capsys):
    evaluate = loop.evaluate

    def after(job, state, *rest):
        result = evaluate(job, state, *rest)
        state.params["features.0.bias"][0] = float("inf")
        return result

    monkeypatch.setattr(loop, "evaluate", after)
    assert cli.main([*SHORT, "--out", str(tmp_path / "run"), "--epochs", "1"]) == 1
    assert "step 2 left parameters that are not finite" in capsys.readouterr().err
    kept = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")[0]
    assert kept.step == 0
    assert all(p.isfinite().all() for p in kept.params.values())


def test_data_are_known_by_what_they_hold_not_by_their_path(tmp_path, photographs, monkeypatch, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(own(photographs, *out, "--epochs", "1")) == 0
    staged = tmp_path / "elsewhere"
    shutil.copytree(photographs, staged)
    monkeypatch.chdir(tmp_path)
    for epochs, path in enumerate((f"{photographs}/", "photographs", "./photographs/../elsewhere", staged), start=2):
        assert cli.main(own(path, *out, "--epochs", str(epochs), "--resume")) == 0, capsys.readouterr().err
    capsys.readouterr()
    for change, found in (
        (lambda: (staged / "test" / "a" / "3.png").unlink(), "other test images"),
        (
            lambda: (staged / "train" / "a" / "3.png").rename(staged / "train" / "b" / "16.png"),
            "other training images, other test images",
        ),
    ):
        change()
        assert cli.main(own(staged, *out, "--epochs", "9", "--resume")) == 1
        assert capsys.readouterr().err == f"alexnet: {tmp_path / 'run'} was trained otherwise: {found}\n"


@pytest.mark.errors
def test_other_settings_are_told_briefly(tmp_path, photographs, capsys):
    out = ["--out", str(tmp_path / "run"), "--epochs", "1"]
    assert cli.main(own(photographs, *out)) == 0
    capsys.readouterr()
    assert cli.main(["train", "--data", "digits", "--device", "cpu", *out, "--resume"]) == 1
    error = capsys.readouterr().err
    assert "arch alexnet_cifar of 2 classes -> alexnet_small of 10 classes" in error
    assert "batch_size 16 -> 64" in error
    assert len(error) < 600


@pytest.mark.errors
def test_another_network_of_the_same_name_is_told_apart(tmp_path, capsys):
    """As where a release changes one: a checkpoint of the former is neither resumed nor taken for a start."""
    former = ALEXNET_SMALL.replace(classifier=(Dropout(0.5), *ALEXNET_SMALL.classifier))
    (tmp_path / "former.json").write_text(former.to_json())
    out = ["--epochs", "1", "--out", str(tmp_path / "run")]
    assert cli.main([*SHORT, *out, "--arch", str(tmp_path / "former.json")]) == 0
    capsys.readouterr()
    assert cli.main([*SHORT, *out, "--arch", "alexnet_small", "--resume"]) == 1
    assert "trained otherwise: arch alexnet_small of 10 classes -> another that reads alike" in capsys.readouterr().err
    start = ["--init", str(tmp_path / "run"), "--out", str(tmp_path / "next")]
    assert cli.main([*SHORT, *start, "--arch", "alexnet_small"]) == 1
    told = f"alexnet: --init {tmp_path / 'run'} holds another alexnet_small, and --arch is alexnet_small\n"
    assert capsys.readouterr().err == told
    assert cli.main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0


def test_a_start_is_known_by_the_checkpoint_not_by_the_spelling_of_init(tmp_path, photographs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(own(photographs, "--out", "first", "--epochs", "1")) == 0
    again = own(photographs, "--out", "second", "--init")
    assert cli.main([*again, "first", "--epochs", "1"]) == 0
    assert cli.main([*again, "./gone", "--epochs", "2", "--resume"]) == 0


@pytest.mark.errors
def test_a_directory_in_use_is_refused_and_a_killed_process_leaves_it_free(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    program = "import sys, time; from pathlib import Path; from alexnet_func import files\n"
    program += "with files.locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "in\n"
    assert cli.main([*SHORT, "--out", str(out), "--epochs", "1"]) == 1
    assert capsys.readouterr().err == (f"alexnet: {out} is in use by another process: wait for it or choose another\n")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with files.locked(out):
        pass


def test_a_finished_run_says_so_and_goes_on_when_asked(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main([*SHORT, *out, "--epochs", "1"]) == 0
    before = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    result = capsys.readouterr().out.splitlines()[-1]
    assert cli.main([*SHORT, *out, "--epochs", "1", "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "finished before, after epoch 1: a larger --epochs or --patience goes on"
    assert lines[-1] == result
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == before


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    options = [*SHORT, "--out", str(run), "--epochs", "9", "--lr", "1e-9", "--schedule", "constant"]
    assert cli.main([*options, "--patience", "2"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    accuracies = [row["test_accuracy"] for row in rows]
    best = accuracies.index(max(accuracies)) + 1
    assert len(rows) == best + 2 < 9
    kept, about = checkpoint.load(run / "best.safetensors")
    assert (int(kept.step), about["best_epoch"], about["best_accuracy"]) == (2 * best, best, max(accuracies))
    capsys.readouterr()
    assert cli.main(["eval", str(run / "best.safetensors"), "--device", "cpu"]) == 0
    assert f"test accuracy {100 * max(accuracies):.2f} %" in capsys.readouterr().out
    assert cli.main([*options, "--patience", "2", "--resume"]) == 0
    assert "finished before" in capsys.readouterr().out


FOREIGN = {
    "config.json": ('{"mine": 1}', "that alexnet train did not write"),
    "metrics.jsonl": ('{"epoch": 1}\n', "of a run whose checkpoint.safetensors is gone"),
    "curves.png": ("a picture", "holds curves.png and no checkpoint.safetensors"),
    "best.safetensors": ("", "holds best.safetensors and no checkpoint.safetensors"),
    "images-train.safetensors": ("mine", "which alexnet train did not write"),
}


@pytest.mark.errors
@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["fresh", "resumed"])
def test_what_a_run_did_not_begin_is_not_overwritten(tmp_path, capsys, name, resume):
    text, message = FOREIGN[name]
    (tmp_path / name).write_text(text)
    assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "1", *resume]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


@pytest.mark.errors
def test_a_foreign_configuration_beside_a_checkpoint_is_not_overwritten(tmp_path, capsys):
    assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "1"]) == 0
    (tmp_path / "config.json").write_text('{"mine": 1}')
    assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "2", "--resume"]) == 1
    assert "config.json that alexnet train did not write" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("name", ["best.safetensors", "checkpoint.safetensors"])
def test_whatever_ends_the_first_epochs_save_the_run_can_be_resumed(tmp_path, monkeypatch, name):
    save = runs.save

    def full(out, file, progress, config):
        if file == name and progress.epochs:
            raise OSError("No space left on device")
        save(out, file, progress, config)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "save", full)
        assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "1"]) == 1
    assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "1", "--resume"]) == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("line", ['{"epoch": 1}', '{"epoch": "x"}', "[1]", "\xff", '{"epoch": 1, "step": 2, "train'])
def test_lines_of_the_metrics_that_are_no_rows_are_dropped(tmp_path, line):
    metrics = tmp_path / "metrics.jsonl"
    row = json.dumps(dict.fromkeys(runs.ROW, 1))
    metrics.write_bytes(f"{row}\n{line}\n".encode("latin-1"))
    runs.keep_metrics(tmp_path, 3)
    assert metrics.read_text() == f"{row}\n"


@pytest.mark.errors
@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"step": 10**6}, "after 1 epochs of 2 steps it tells of step 1000000"),
        ({"epochs": -3}, "epochs must be a whole number, got -3"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
    ],
)
def test_a_checkpoint_that_lies_about_its_place_is_refused(tmp_path, capsys, lie, message):
    assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "1"]) == 0
    path = tmp_path / "checkpoint.safetensors"
    state, about = checkpoint.load(path)
    step = torch.tensor(lie.pop("step", int(state.step)))
    checkpoint.save(path, state._replace(step=step), {**about, **lie})
    capsys.readouterr()
    assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "2", "--resume"]) == 1
    assert message in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, monkeypatch):
    def killed(*_):
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(setup, "fresh", killed)
        with pytest.raises(RuntimeError, match="killed"):
            cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "1"])
    assert (tmp_path / "config.json").exists()
    for resume in ([], ["--resume"]):
        assert cli.main([*SHORT, "--out", str(tmp_path), "--epochs", "1", *resume]) == 0
        (tmp_path / "checkpoint.safetensors").unlink()
        for name in ("best.safetensors", "metrics.jsonl", "curves.png", "filters.png", "confusion.png"):
            (tmp_path / name).unlink()


def test_what_is_left_out_is_the_same_in_memory_and_streamed(tmp_path, photographs, capsys):
    (photographs / "train" / "a" / "5.png").write_bytes(b"no image")
    (photographs / "test" / "b" / "1.png").write_bytes(b"no image")
    rows, states = [], []
    for name, how in (("memory", ["--no-stream"]), ("stream", ["--stream", "--workers", "0"])):
        out = tmp_path / name
        assert cli.main(own(photographs, "--skip-bad-images", "--epochs", "2", "--out", str(out), *how)) == 0
        assert capsys.readouterr().out.splitlines()[-2] == "2 unreadable images left out"
        lines = (out / "metrics.jsonl").read_text().splitlines()
        rows.append([{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines])
        states.append(checkpoint.load(out / "checkpoint.safetensors")[0])
    assert rows[0] == rows[1]
    assert all(torch.equal(states[0].params[name], p) for name, p in states[1].params.items())


def test_cudnn_sums_in_one_order_during_a_run_and_as_before_after_it(monkeypatch):
    seen, run_epoch = [], loop.run_epoch

    def watched(*arguments):
        seen.append(torch.backends.cudnn.deterministic)
        return run_epoch(*arguments)

    monkeypatch.setattr(loop, "run_epoch", watched)
    assert cli.main([*SHORT, "--epochs", "1"]) == 0
    assert seen == [True]
    assert not torch.backends.cudnn.deterministic
