"""The studies of the paper's claims: statistics, readings of curves, ensembles that resume, and what is compared."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch.func import grad

import alexnet_func as af
from alexnet_func.app import recipes
from alexnet_func.arch import LRN, AvgPool, Dropout, MaxPool
from benchmarks import accuracy
from benchmarks.paper import __main__ as program
from benchmarks.paper import averaging, claims, figure1, ladder, members, statistics, trials


def test_intervals_are_scipys():
    values = [3.0, 4.5, 2.5, 3.25]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    mean, half = statistics.interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert statistics.interval([2.0]) == (2.0, math.inf)
    assert statistics.told([2.0]) == "2.00 %"
    assert statistics.told([1.0, 3.0], "points") == "2.00 points ± 12.71"


def test_a_claim_is_decided_only_where_the_interval_leaves_zero_out():
    assert statistics.verdict([1.0, 1.1, 0.9]) == "agrees"
    assert statistics.verdict([-1.0, -1.1, -0.9]) == "disagrees"
    assert statistics.verdict([1.0, -1.0, 0.5]) == "undecided"
    assert statistics.verdict([1.0]) == "undecided"
    assert statistics.ratio_interval([12.0, 24.0], [2.0, 4.0]) == pytest.approx((6, 6, 6))
    with pytest.raises(ValueError, match="no values"):
        statistics.interval([])


def test_curves_are_read_where_they_cross():
    assert figure1.reached([0.5, 0.3, 0.2]) == pytest.approx(2.0)  # halfway between the middles at 1.5 and 2.5
    assert figure1.reached([0.2]) == 0.5
    assert figure1.reached([0.9, 0.8]) == math.inf
    assert figure1._best([[0.5, 0.6], [0.3, 0.2]]) == 1
    assert figure1._best([[0.5, float("nan")], [0.4, float("nan")]]) == 0


def some(count=40):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return members.of(pixels, torch.arange(count) % 4)


def test_members_train_as_they_would_alone_and_resume_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "BATCH", 16)
    images, arch = some(), af.arch.CUDA_CONVNET_26.replace(num_classes=4)
    plan = members.Plan(arch, (5, 6), (0.01, 0.003), figure1._sgd)
    whole, errors = members.trained(plan, images, 3, tmp_path / "whole", lambda rows: False)
    members.trained(plan, images, 2, tmp_path / "parts", lambda rows: False)
    parts, again = members.trained(plan, images, 3, tmp_path / "parts", lambda rows: False)
    assert again == errors
    assert all(torch.equal(p, parts[name]) for name, p in whole.items())
    assert members.trained(plan, images, 9, tmp_path / "parts", lambda rows: True)[1] == errors
    params, velocity = af.init(af.random.key(6), arch), {}
    one, _ = members.trained(plan, images, 1, tmp_path / "one", lambda rows: False)  # before kinks part rounded paths
    for index in af.random.permutation(af.random.fold_in(af.random.key(1), 0), 40).long().split(16):
        x = (images.pixels[index].float() / 255 - images.moments.image) * 255
        g = grad(af.loss_fn)(params, (x, images.labels[index]), arch=arch)
        velocity = {n: 0.9 * velocity.get(n, 0) - 0.003 * g[n] for n in params}
        params = {n: p + velocity[n] for n, p in params.items()}
    for name, p in params.items():
        torch.testing.assert_close(one[name][1], p, rtol=1e-3, atol=1e-5)


def test_an_average_is_of_the_members_predictions():
    images, test = some(), some(12)
    arch = af.arch.CUDA_CONVNET_26.replace(num_classes=4)
    params = af.ensemble.init(af.random.split(af.random.key(0), averaging.MEMBERS), arch)
    alone, together = averaging.errors(arch, params, images, test)
    x = (test.pixels.float() / 255 - images.moments.image) * 255
    p = torch.stack([af.forward(m, x, arch=arch).softmax(-1) for m in af.ensemble.unstack(params)])
    assert alone == pytest.approx([100 * float((m.argmax(-1) != test.labels).float().mean()) for m in p])
    assert together == pytest.approx(100 * float((p.mean(0).argmax(-1) != test.labels).float().mean()))


def test_each_claim_differs_in_what_it_is_about_alone():
    def kinds(arch, kind):
        return [layer for layer in (*arch.features, *arch.classifier) if isinstance(layer, kind)]

    assert len(kinds(claims.NORMALIZED, LRN)) == 2
    assert tuple(at for at in claims.NORMALIZED.features if not isinstance(at, LRN)) == claims.BASE.features
    assert {(at.kernel_size, at.stride) for at in kinds(claims.APART, MaxPool | AvgPool)} == {(2, 2)}
    assert af.arch.param_shapes(claims.APART) == af.arch.param_shapes(claims.BASE)
    assert [at.convention for at in kinds(claims.DROPPED, Dropout)] == ["classic"]
    shapes = [list(af.arch.param_shapes(arch).values()) for arch in (claims.DROPPED, claims.BASE)]
    assert shapes[0] == shapes[1]
    line = claims.row(claims.CLAIMS[0], (20.0, 21.0, 20.5), (22.0, 23.1, 22.4))
    assert "| all |" in line
    assert line.endswith("| 2.00 points ± 0.25 | agrees |")


def test_claims_of_overfitting_are_pairs_on_a_tenth_of_the_images_for_five_times_the_epochs(tmp_path, monkeypatch):
    trained = {}

    def trains(each, setting):
        trained.update({trial.name: trial.words for trial in each})
        return [trials.Outcome((float(len(trial.name)),), (1.0,), 8) for trial in each]

    monkeypatch.setattr(claims, "outcomes", trains)
    table = claims.run(trials.Setting("somewhere", tmp_path, 1), 8)
    tenths = {name for name, words in trained.items() if words[-2:] == ("--limit", "5000")}
    ending = "40-epochs-of-5000"
    assert tenths == {f"claims-{ending}", f"claims-shift-flip-{ending}", f"claims_dropout-{ending}"}
    assert all(words[4:6] == ("--epochs", "40") for name, words in trained.items() if name in tenths)
    assert all("--limit" not in words for name, words in trained.items() if name not in tenths)
    assert all(words[4:6] == ("--epochs", "8") for name, words in trained.items() if name not in tenths)
    assert [line.split("|")[4].strip() for line in table.splitlines()[2:]] == ["all", "all", "5,000", "5,000"]


def test_the_ladder_tells_which_schedules_are_shorter():
    rung = ladder.RUNGS[0]
    line = ladder.row(rung, trials.Outcome((25.0, 27.0), (5.0, 7.0), 10))
    assert line.startswith("| cuda_convnet_26 | original | 2 | 26.00 % ± 12.71 | 26 % | 6.0 | 1.3 |")
    assert "shortened: 3 of 10 epochs" in ladder.row(rung, trials.Outcome((25.0,), (5.0,), 3))
    assert {rung.name for rung in ladder.RUNGS} <= set(recipes.BY_NAME)
    assert ladder.trial(rung, 3) == ("cuda_convnet_26-3", ("--recipe", "cuda_convnet_26", "--epochs", "3"), False, None)


def test_minutes_are_those_of_the_steps(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"batch_size": 60, "arch": af.arch.ALEXNET.to_json()}))
    rows = [(10, 10), (20, 5), (30, None)]
    lines = [json.dumps({"step": s, "images_per_second": rate, "test_accuracy": 0.5}) for s, rate in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [point.minutes for point in accuracy.course(tmp_path)] == pytest.approx([1.0, 3.0, 4.5])


def test_what_is_on_record_to_its_end_is_not_trained_again(tmp_path, monkeypatch):
    told = []

    def trains(*words):
        run = Path(words[words.index("--out") + 1])
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"batch_size": 60, "epochs": 2, "arch": af.arch.ALEXNET.to_json()}))
        lines = [{"step": i + 1, "images_per_second": 1.0, "test_accuracy": 0.25 * (i + 1)} for i in range(2)]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        told.append(words)
        return []

    monkeypatch.setattr(accuracy, "alexnet", trains)
    setting = trials.Setting("somewhere", tmp_path, 2, jobs=2)
    both = [trials.Trial("a", ("--epochs", "2")), trials.Trial("b", (), seeds=1)]
    expected = [trials.Outcome((50.0, 50.0), (2.0, 2.0), 2), trials.Outcome((50.0,), (2.0,), 2)]
    assert trials.outcomes(both, setting) == expected
    assert len(told) == 3
    run = tmp_path / "b-float32-seed0"
    (run / "metrics.jsonl").write_text('{"step": 1, "images_per_second": 1, "test_accuracy": 0.1}')
    monkeypatch.setattr(accuracy, "alexnet", lambda *words: told.append(words))
    trials.outcomes(both, setting)
    assert len(told) == 4
    assert "--resume" in told[-1]
    assert str(run) in told[-1]
    (run / "metrics.jsonl").unlink()  # as a run is whose first epoch has not ended
    assert not trials._done(run)


def test_every_study_runs_and_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figure1, "RATES", (0.001, 0.003))
    monkeypatch.setattr(accuracy, "alexnet", lambda *words: ["test accuracy 75.00 % (10 images)\n"])
    points = (accuracy.Point(0.1, 1e9, 0.5),) * 9 + (accuracy.Point(1.0, 1e10, 0.75),)
    monkeypatch.setattr(accuracy, "course", lambda run: points)
    setting = ["--data", "digits", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    words = [*setting, "--seeds", "1", "--epochs", "1", "--limit", "128", "--network", "cuda_convnet_26"]
    monkeypatch.setattr("sys.argv", ["paper", *words])
    assert program.main() == 0
    tables = {path.stem: path.read_text() for path in (tmp_path / "out" / "cpu").glob("*.md")}
    assert set(tables) == {"paper_figure1", "paper_ladder", "paper_claims", "paper_averaging"}
    assert "not within 1" in tables["paper_figure1"]
    assert "| 25.00 % | 26 % | 1.0 |" in tables["paper_ladder"]
    assert tables["paper_claims"].count("undecided") == 4
    assert (tmp_path / "out" / "cpu" / "paper_figure1.png").is_file()
