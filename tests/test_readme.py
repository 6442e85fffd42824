"""The README's Python blocks run as written, in one namespace; its commands are those of the Makefile and the CLI."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.compiled
def test_python_blocks_run_as_written(capsys):
    namespace = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), namespace)
    assert capsys.readouterr().out == "torch.Size([4, 10, 512])\n"
    assert namespace["sweep"].shape == (2, 4, 1000)
    assert namespace["state"].step.item() == 2


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text()
    named = set(re.findall(r"`?make (\w+)", README.read_text()))
    assert {"train", "test", "help"} <= named
    assert all(f"\n{target}:" in makefile for target in named)
