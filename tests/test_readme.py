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
    shape, private = capsys.readouterr().out.splitlines()
    assert shape == "torch.Size([4, 10, 512])"
    assert re.fullmatch(r"[89]\d% right, epsilon 3\.26 at delta 1e-4", private)
    assert namespace["sweep"].shape == (2, 4, 1000)
    assert namespace["norms"].shape == namespace["slopes"].shape == (8,)
    assert namespace["metrics"]["losses"].shape == (3,)
    assert namespace["logits"].shape == (8, 10)
    assert namespace["kernel"].shape == (2, 2, 10, 10)


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text()
    named = set(re.findall(r"`?make (\w+)", README.read_text()))
    assert {"train", "test", "help"} <= named
    assert all(f"\n{target}:" in makefile for target in named)
