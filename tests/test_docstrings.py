"""What `help()` says of each public name: a sentence, and in the rooms that users call an example that runs."""

import doctest
import inspect
import re
from pathlib import Path

import pytest
import torch

import alexnet_func as af

# What every example starts from, as the page of all functions says.
HOOKS = Path(__file__).parent.parent / "docs" / "hooks.py"
(PRELUDE,) = re.findall(r"```python\n(.*?)```", HOOKS.read_text(), flags=re.DOTALL)
WITH_EXAMPLES = (
    *("model", "train", "optim", "random", "per_sample", "privacy"),
    *("ensemble", "curvature", "influence", "interop", "checkpoint"),
)


def functions(room):
    """The public functions of a room, its own and those it takes from others."""
    module = getattr(af, room)
    names = module.__all__
    return {f"{room}.{name}": getattr(module, name) for name in names if inspect.isfunction(getattr(module, name))}


EVERY = {name: function for room in WITH_EXAMPLES for name, function in functions(room).items()}


@pytest.fixture(scope="module")
def prelude():
    names = {}
    torch.manual_seed(0)
    exec(PRELUDE, names)
    return names


@pytest.mark.parametrize("name", EVERY)
def test_the_example_of_each_function_runs(name, prelude, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestParser().get_doctest(EVERY[name].__doc__, dict(prelude), name, None, 0)
    assert 1 <= len(found.examples) <= 4, "an example of one to four lines"
    torch.manual_seed(0)
    told = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(found, out=told.append)
    assert not told, "".join(told)


def rooms():
    return [room for room in af.__all__ if inspect.ismodule(getattr(af, room))]


@pytest.mark.parametrize("room", rooms())
def test_each_room_says_what_it_holds(room):
    module = getattr(af, room)
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        text = inspect.getdoc(value)
        assert text, f"{room}.{name} has no docstring"
        first = text.split("\n\n")[0].strip()
        assert first[0].isupper() or first[0] in '`"', f"{room}.{name}: {first}"
        assert first.rstrip().endswith((".", ":", "`")), f"{room}.{name}: {first}"
