import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import alexnet_func as af
from alexnet_func.app import cli
from benchmarks import ablation, accuracy, ceilings, layers, report, scaling
from benchmarks.report import table
from benchmarks.timing import Row, Timing, interleaved


def test_rivals_take_turns_after_their_warmups():
    calls = []
    timed = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmups=2)
    turns = ["".join(calls[i : i + 2]) for i in range(0, 10, 2)]
    assert {"".join(sorted(turn)) for turn in turns} == {"ab"}
    assert len(set(turns)) == 2, "the order changes from turn to turn"
    assert all(t.best <= t.median <= t.worst for t in timed.values())


def test_a_table_relates_medians():
    base = Timing(0.010, 0.009, 0.012)
    rows = [Row("t", "plain", base, base, 100.0), Row("t", "ours", Timing(0.015, 0.01, 0.02), base, None, 0.012)]
    assert "| plain | 10.0 | 9.0 | 12.0 | 1.00 |  | 100 |" in table(rows)
    assert "| ours | 15.0 | 10.0 | 20.0 | 1.50 | 0.80 |  |" in table(rows)


@pytest.mark.compiled
def test_the_command_writes_what_it_prints(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "random", "--quick", "--out", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "af.random.uniform, eager" in printed
    assert printed.splitlines()[-2] in (tmp_path / "cpu" / "random.md").read_text()
    assert [row["name"] for row in json.loads((tmp_path / "cpu" / "random.json").read_text())["rows"]] == [
        "torch.rand",
        "af.random.uniform, eager",
        "af.random.uniform, compiled",
        "F.dropout",
        "af.ops.dropout from a key, compiled",
    ]


def test_an_unchanged_measurement_compares_as_one(tmp_path):
    base = Timing(0.010, 0.009, 0.012)
    rows = [
        Row("t", "plain", base, base),
        Row("t", "af", Timing(0.005, 0.005, 0.006), base),
        Row("m", "b", None, None, 3.0),
    ]
    report.write(tmp_path, "t", "about", "command", rows)
    assert "0.50 -> 0.50   1.00  t: af" in report.compared(rows, tmp_path / "t.json")
    assert (tmp_path / "t.png").stat().st_size


def test_the_ceilings_count_what_the_literature_counts():
    """714 million multiply-accumulates forward, and almost three times that in a step."""
    unit = ceilings.Ceilings(matmul=1e6, convolution=1e6, copy=float("inf"))
    assert round(ceilings.forward_seconds(af.arch.ALEXNET, 1, unit)) == 714
    first = 64 * 55 * 55 * 3 * 11 * 11 / 1e6
    assert ceilings.step_seconds(af.arch.ALEXNET, 1, unit) == pytest.approx(
        3 * ceilings.forward_seconds(af.arch.ALEXNET, 1, unit) - first
    )


def test_stages_are_all_layers_and_each_has_weights_once():
    for arch in (af.arch.ALEXNET_SMALL, af.arch.ALEXNET_CIFAR):
        stages = layers.stages(arch)
        assert len(stages) == 8
        names = [at.name for stage in stages for at in stage]
        params, image = af.init(af.random.key(0), arch), torch.zeros(3, 32, 32)
        assert names == list(af.model.activations(params, image, arch=arch))


def test_accuracies_have_their_mean_and_standard_deviation():
    slow = (accuracy.Point(9.0, 1e12, 0.5), accuracy.Point(19.0, 2e12, 0.82))
    fast = (accuracy.Point(14.0, 1e12, 0.86), accuracy.Point(28.0, 2e12, 0.84))
    results = [accuracy.Result(0, 0.82, 0.82, 20.0, slow), accuracy.Result(1, 0.84, 0.86, 30.0, fast)]
    private = [result._replace(epsilon=2.9, proven=0.25) for result in results]
    assert "| 0 | 82.00% | 82.00% | 20.0 | 19.0 (2 Top) |  | 2.900 | 0.250 |" in accuracy.report(
        "d", "about", "command", private
    )
    text = accuracy.report("d", "about", "command", results)
    assert "epsilon" not in text
    assert (
        "| seed | single view | mean over views | minutes | to 80% | to 85% |\n|---|---:|---:|---:|---:|---:|" in text
    )
    assert "| 0 | 82.00% | 82.00% | 20.0 | 19.0 (2 Top) |  |" in text
    assert "| 1 | 84.00% | 86.00% | 30.0 | 14.0 (1 Top) | 14.0 (1 Top) |" in text
    assert "| **mean** | 83.00% | 84.00% | 25.0 | | |" in text
    assert "| standard deviation | 1.41% | 2.83% | | | |" in text


def test_an_ablation_tells_differences_to_the_whole_recipe():
    whole, sgd = (0.8, 0.82), (0.7, 0.74)
    outcomes = [ablation.Outcome("the recipe", whole, 4e12), ablation.Outcome("SGD", sgd, 4e12)]
    text = ablation.report("d", 2, "about", "command", outcomes)
    assert "the mean of 2 seeds" in text
    within = ((np.var(whole, ddof=1) + np.var(sgd, ddof=1)) / 2) ** 0.5
    # A difference is that of two means of two seeds: within * sqrt(1/2 + 1/2).
    assert f"rows: {100 * within:.2f} points; standard error of a difference: {100 * within:.2f} points." in text
    assert "| the recipe | 81.00% |  | 4 |" in text
    assert "| SGD | 72.00% | -9.00 | 4 |" in text


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_an_ablation_runs_each_change_once_for_each_seed(tmp_path, monkeypatch, jobs):
    trained = []

    def told(*words):
        given = dict(zip(words[1::2], words[2::2], strict=True))
        trained.append((given["--out"], given.get("--lr", given.get("--arch"))))

    def course(run):
        number, seed = map(int, re.fullmatch(r"ablation-(\d+)-seed(\d)", run.name).groups())
        return [accuracy.Point(0.0, 7e12, number / 100 + seed / 1000)]

    monkeypatch.setattr(accuracy, "alexnet", told)
    monkeypatch.setattr(accuracy, "course", course)
    options = ["--data", "d", "--device", "cpu", "--seeds", "2", "--jobs", jobs, "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["ablation", *options, "--out", str(tmp_path)])
    assert ablation.main() == 0
    changes = [*ablation.CHANGES, *ablation.NETWORKS]
    assert len(trained) == len(set(trained)) == 2 * len(changes)
    text = (tmp_path / "cpu" / "ablation_d.md").read_text()
    for number, change in enumerate(changes):
        assert f"| {change} | {number + 0.05:.2f}% |" in text
        if change in ablation.NETWORKS:
            file = tmp_path / "runs" / f"ablation-{number}.json"
            assert af.arch.Arch.from_json(file.read_text()) == ablation.NETWORKS[change]
            assert (str(tmp_path / "runs" / f"ablation-{number}-seed1"), str(file)) in trained


def test_a_run_that_fails_ends_those_side_by_side():
    begun = []

    def run(number):
        begun.append(number)
        if number == 1:
            raise SystemExit("failed")
        time.sleep(0.2)

    with pytest.raises(SystemExit, match="failed"):
        accuracy.side_by_side(run, range(50), 2)
    assert len(begun) < 10, "of 50"


@pytest.mark.parametrize("change", ablation.CHANGES)
def test_every_change_of_the_ablation_is_one_of_the_recipe(change):
    fast = vars(cli._parsed(["train", "--recipe", "fast"]).recipe)
    changed = vars(cli._parsed(["train", "--recipe", "fast", *ablation.CHANGES[change]]).recipe)
    assert (changed == fast) == (change == "the recipe")


@pytest.mark.parametrize("change", ablation.NETWORKS)
def test_every_network_of_the_ablation_is_another_that_takes_the_same_images(change):
    network = ablation.NETWORKS[change]
    assert network != af.arch.ALEXNET_SMALL
    params = af.init(af.random.key(0), network)
    assert af.forward(params, torch.zeros(2, 3, 32, 32), arch=network).shape == (2, 10)


def test_the_course_of_a_run_counts_the_time_of_its_steps(tmp_path):
    config = {"batch_size": 30, "arch": af.arch.ALEXNET.to_json()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [{"step": 10, "images_per_second": 5, "test_accuracy": 0.5}]
    rows.append({"step": 20, "images_per_second": 10, "test_accuracy": 0.75})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    an_image = ceilings.step_operations(af.arch.ALEXNET)
    assert an_image == pytest.approx(2e6 * (3 * 714 - 64 * 55 * 55 * 3 * 11 * 11 / 1e6), rel=1e-3)
    assert accuracy.course(tmp_path) == ((1.0, 300 * an_image, 0.5), (1.5, 600 * an_image, 0.75))


@pytest.mark.slow
def test_the_accuracy_of_a_seed_is_what_training_and_evaluation_tell(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accuracy", "--data", "digits", "--seeds", "1", "--out", "results"]
    command += ["--device", "cpu", "--limit", "64", "--epochs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    folder = tmp_path / "results" / "cpu"
    entries = json.loads((folder / "accuracy_digits.json").read_text())
    assert len(entries) == 1
    assert entries[0]["single"] == pytest.approx(entries[0]["course"][-1]["accuracy"], abs=1e-4)
    assert f"| 0 | {entries[0]['single']:.2%} |" in (folder / "accuracy_digits.md").read_text()
    assert (folder / "curves_digits.png").is_file()
    assert (folder / "filters_digits.png").is_file()


def test_what_is_under_way_at_once_counts_once():
    assert scaling.union([]) == 0
    assert scaling.union([(5, 6), (0, 2), (1, 4), (2, 3), (4, 4)]) == 5
