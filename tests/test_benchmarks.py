import json
import subprocess
import sys

from benchmarks.timing import Row, Timing, interleaved, table


def test_rivals_take_turns_after_their_warmups():
    calls = []
    timed = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmups=2)
    assert "".join(calls) == "ab" * 5
    assert all(t.best <= t.median <= t.worst for t in timed.values())


def test_a_table_relates_medians():
    base = Timing(0.010, 0.009, 0.012)
    rows = [Row("t", "plain", base, base, 100.0), Row("t", "ours", Timing(0.015, 0.01, 0.02), base, None)]
    assert "| plain | 10.0 | 9.0 | 12.0 | 1.00 | 100 |" in table(rows)
    assert "| ours | 15.0 | 10.0 | 20.0 | 1.50 |  |" in table(rows)


def test_the_command_writes_what_it_prints(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "random", "--quick", "--out", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "af.random.uniform, eager" in printed
    assert printed.splitlines()[-2] in (tmp_path / "random-cpu.md").read_text()
    assert [row["name"] for row in json.loads((tmp_path / "random-cpu.json").read_text())["rows"]] == [
        "torch.rand",
        "af.random.uniform, eager",
    ]
