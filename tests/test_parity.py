import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

import alexnet_func as af
from parity import __main__ as command
from parity import compute, criteria, inputs, problems, references, report
from parity.compositions import table
from parity.oracles import by_jax, by_numpy
from parity.problems import Problem
from tests.conftest import TINY, images


def test_bitwise_finds_one_changed_bit():
    reference = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    assert criteria.bitwise({n: t.clone() for n, t in reference.items()}, reference).passed
    off = {n: t.clone() for n, t in reference.items()}
    off["b"][2] = torch.nextafter(off["b"][2], torch.tensor(10.0))
    verdict = criteria.bitwise(off, reference)
    assert not verdict.passed
    assert verdict.worst == "b"
    assert verdict.detail.startswith("1 of 2 differ, worst b by ")


@pytest.mark.parametrize(
    "ours",
    [
        {},
        {"b": torch.zeros(2)},
        {"a": torch.zeros(3)},
        {"a": torch.zeros(2).double()},
        {"a": torch.tensor([0, torch.nan])},
    ],
)
def test_bitwise_finds_other_names_shapes_dtypes_and_nans(ours):
    assert not criteria.bitwise(ours, {"a": torch.tensor([0, torch.nan])}).passed


def test_the_sign_of_zero_counts_and_nan_equals_nothing():
    assert not criteria.bitwise({"a": torch.tensor([-0.0])}, {"a": torch.tensor([0.0])}).passed
    nan = {"a": torch.tensor([torch.nan])}
    assert not criteria.bitwise(nan, nan).passed
    assert not criteria.budget(nan, nan, {"a": torch.ones(1).double()}).passed
    assert not criteria.close(nan, {"a": torch.ones(1).double()}).passed


def test_the_budget_is_twice_the_references_error_and_one_rounding():
    exact = {"a": torch.full((2000,), 3.0, dtype=torch.float64)}
    reference = {"a": torch.full((2000,), 3.0) + 1e-3}
    error = (reference["a"].double() - 3).square().mean().sqrt()
    for factor, passes in ((0, True), (1, True), (1.99, True), (2.01, False), (-1.99, True), (-2.01, False)):
        verdict = criteria.budget({"a": (exact["a"] + factor * error).float()}, reference, exact)
        assert verdict.passed == passes
        assert verdict.share == pytest.approx(abs(factor) / 2, abs=1e-3)
    few = {n: t[:999] for n, t in exact.items()}, {n: t[:999] for n, t in reference.items()}
    assert criteria.budget({"a": (few[0]["a"] + 2.9 * error).float()}, few[1], few[0]).passed
    exactly = {"a": exact["a"].float()}
    step = torch.nextafter(exactly["a"], torch.tensor(9.0))
    assert criteria.budget(exactly, exactly, exact).share == 0
    assert not criteria.budget({"a": step}, exactly, exact).passed


def test_close_is_the_relative_2_norm_a_tensor():
    exact = {"large": torch.full((10,), 1e6).double(), "small": torch.full((10,), 1e-6).double()}
    off = {**exact, "small": exact["small"] * (1 + 2e-12)}
    verdict = criteria.close(off, exact)
    assert not verdict.passed
    assert verdict.worst == "small"
    assert verdict.share == pytest.approx(2, rel=1e-3)
    assert criteria.close(exact, exact).share == 0


def test_a_band_is_as_wide_as_the_references_own_spread_so_far():
    reference = torch.zeros(4).double() + 1
    perturbed = [reference + torch.tensor([0.0, 0.1, 0.0, 0.2]).double(), reference - 0.01]
    assert criteria.band(reference + torch.tensor([0.0, 0.29, 0.29, 0.5]).double(), reference, perturbed).passed
    late = criteria.band(reference + torch.tensor([0.0, 0.0, 0.31, 0.0]).double(), reference, perturbed)
    assert not late.passed
    assert late.worst == "step 2"
    assert not criteria.band(reference * torch.nan, reference, perturbed).passed


def tiny(dropout):
    params = {n: p.double() for n, p in af.init(af.random.key(3), TINY).items()}
    x, y = images(TINY, 4, torch.float64)
    keeps = inputs.masks(TINY, af.random.key(5) if dropout else None, tuple(x.shape))
    return params, x, y, keeps


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("oracle", [by_numpy, by_jax])
def test_the_oracles_agree_with_autograd_on_every_kind_of_layer(oracle, dropout):
    params, x, y, keeps = tiny(dropout)
    module = references.with_masks(af.interop.to_module(params, TINY).eval(), keeps)
    expected = references.loss_and_gradients(module, x, y)
    arrays = [{n: t.numpy() for n, t in tensors.items()} for tensors in (params, keeps)]
    found = oracle.loss_and_gradients(TINY, arrays[0], x.numpy(), y.numpy(), arrays[1])
    assert criteria.close({n: torch.from_numpy(np.array(v)) for n, v in found.items()}, expected).passed


@pytest.mark.parametrize("arch", problems.ARCHS)
def test_the_modules_written_from_the_papers_have_our_names_shapes_and_values(arch):
    ours = af.arch.get(arch)
    params = af.init(af.random.key(0), ours)
    module = references.module(arch, params, {})
    x, _ = images(ours, 2)
    reference, exact = (
        module(x).detach(),
        references.module(arch, {n: p.double() for n, p in params.items()}, {})(x.double()),
    )
    assert criteria.budget({"y": af.forward(params, x, arch=ours)}, {"y": reference}, {"y": exact.detach()}).passed


def test_masks_given_to_a_module_act_as_the_key_does_in_forward():
    params, x, _, keeps = tiny(dropout=True)
    module = references.with_masks(af.interop.to_module(params, TINY).eval(), keeps)
    ours = af.forward(params, x, arch=TINY, key=af.random.key(5))
    assert criteria.close({"y": ours}, {"y": module(x).detach()}).passed


def test_every_problem_has_a_name_of_its_own_and_flags_are_restored():
    for device in ("cpu", "cuda"):
        names = [problem.name for problem in problems.problems(device)]
        assert len(set(names)) == len(names)
    before = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    with compute.pinned(tf32=False, cudnn=False):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.enabled
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()) == before
    assert torch.backends.cudnn.enabled


def test_on_cuda_float32_rows_keep_cudnn_where_both_sides_give_it_the_same():
    rows = [row for row in problems.problems("cuda") if row.dtype == "float32"]
    kept = [row for row in rows if compute._by_cudnn(row)]
    assert {row.route for row in kept} == {"eager", "compiled", "donated", "fused", "functional_call", "tf32"}
    assert {row.against for row in kept} == {"module"}
    assert {row.route for row in rows} - {row.route for row in kept} == {
        "vmap",
        "layerwise",
        "torch.export",
        "onnxruntime",
    }
    assert all(compute._by_cudnn(row) for row in problems.problems("cuda") if row.dtype != "float32")


def test_the_command_writes_a_report_and_fails_for_a_failure(monkeypatch, capsys, tmp_path):
    run = [sys.executable, "-m", "parity", "--only", "alexnet_cifar float32 8x*module, bitwise", "--out", str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "values in 19 tensors equal" in done.stdout
    written = json.loads((tmp_path / "cpu.json").read_text())
    assert {row["status"] for row in written["rows"]} == {"pass"}
    assert written["summary"] in (tmp_path / "cpu.md").read_text()

    exact = {"a": torch.ones(3).double()}
    budget = criteria.budget({"a": torch.ones(3)}, {"a": torch.ones(3)}, exact)
    band = criteria.band(torch.ones(3), torch.ones(3), [torch.ones(3)])
    chosen = {p.criterion: p for p in problems.problems()}
    rows = [report.Row(chosen["budget"], budget, "", 0.1), report.Row(chosen["band"], band, "", 0.1)]
    report.plot(rows, tmp_path, "cpu")
    assert {path.name for path in tmp_path.glob("*.png")} == {"cpu-errors.png", "cpu-trajectories.png"}

    skipped = report.Row(chosen["band"], None, "jax is not installed", 0.1)
    printed = io.StringIO()
    Console(file=printed, width=80).print(report.table([*rows, skipped]))
    for word in (rows[0].problem.arch, "pass", "skip", rows[0].problem.quantity, "jax is not", "band"):
        assert word in printed.getvalue()

    wrong = Problem("alexnet_cifar", "gradients", "float32", "eager", "module", "bitwise", (2, 32, 32), quick=True)
    monkeypatch.setattr(problems, "problems", lambda device: iter([wrong]))
    (subject,) = [(s, ["grad"]) for s, _ in table.chosen(quick=True) if s.name == "random.bits"]
    monkeypatch.setattr(table, "chosen", lambda pattern, quick: iter([subject] if pattern == "*" else []))
    forward = af.forward
    monkeypatch.setattr(af, "forward", lambda *a, **k: forward(*a, **k) + 1e-3)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "whole")
    monkeypatch.setattr(sys, "argv", ["parity"])
    assert command.main() == 1
    assert f"FAIL  {wrong.name}: " in capsys.readouterr().out
    monkeypatch.setattr(compute, "solve", lambda *_: (_ for _ in ()).throw(ImportError("no", name="jax")))
    assert command.main() == 0
    assert "jax is not installed" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["parity", "--list"])
    assert command.main() == 0
    assert capsys.readouterr().out == f"{wrong.name}\nrandom.bits under grad\n"
    monkeypatch.setattr(sys, "argv", ["parity", "--only", "nothing*"])
    with pytest.raises(SystemExit):
        command.main()
