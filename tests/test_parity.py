import subprocess
import sys

import pytest
import torch

from parity import criteria, problems


def test_bitwise_finds_one_changed_bit():
    reference = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    assert criteria.bitwise({n: t.clone() for n, t in reference.items()}, reference).passed
    off = {n: t.clone() for n, t in reference.items()}
    off["b"][2] = torch.nextafter(off["b"][2], torch.tensor(10.0))
    verdict = criteria.bitwise(off, reference)
    assert not verdict.passed
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


def test_the_sign_of_zero_counts():
    assert not criteria.bitwise({"a": torch.tensor([-0.0])}, {"a": torch.tensor([0.0])}).passed


def test_nan_equals_nothing():
    nan = {"a": torch.tensor([torch.nan])}
    assert not criteria.bitwise(nan, nan).passed


def test_the_command_runs_lists_and_reports_a_failure(monkeypatch, capsys):
    from parity import __main__ as command

    run = [sys.executable, "-m", "parity", "--only", "*float32 8x3x224*"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "1 passed, 0 failed" in done.stdout
    assert "values in 18 tensors equal" in done.stdout

    def wrong():
        yield problems.Problem("wrong", lambda: ({"a": torch.zeros(2)}, {"a": torch.ones(2)}))

    monkeypatch.setattr(problems, "problems", wrong)
    monkeypatch.setattr(sys, "argv", ["parity"])
    assert command.main() == 1
    assert "FAIL  wrong" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["parity", "--list"])
    assert command.main() == 0
    assert capsys.readouterr().out == "wrong\n"
    monkeypatch.setattr(sys, "argv", ["parity", "--only", "nothing*"])
    with pytest.raises(SystemExit):
        command.main()
