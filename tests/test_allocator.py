import platform
import subprocess
import sys

import pytest
import torch

# In processes of their own: the setting is the process's.
SCRIPT = """
import resource, torch
import alexnet_func as af
from alexnet_func import allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(40_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(40_000_000)
without, took_effect = faults(), KEEP
for _ in range(20):  # until the heap has grown past what the C library's small caches pin
    torch.ones(40_000_000)
print(took_effect, without, faults())
"""


KEEP = "allocator.keep_freed_memory()"
MADE = "bool(af.train.make_step(print, af.optim.sgd(1.0)))"
COMPILED = "bool(af.train.compile_step(print))"


def run(keep=KEEP, **environment):
    command = [sys.executable, "-c", SCRIPT.replace("KEEP", keep)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    took_effect, without, kept = done.stdout.split()
    return took_effect == "True", int(without), int(kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_not_mapped_again():
    took_effect, without, kept = run()
    assert took_effect
    assert kept < without / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("step", [MADE, COMPILED])
def test_whoever_makes_a_step_keeps_freed_memory(step):
    if torch.cuda.is_available():
        pytest.skip("on a machine with CUDA steps leave the CPU's memory alone")
    _, without, kept = run(step)
    assert kept < without / 20


@pytest.mark.parametrize("keep", [KEEP, MADE])
def test_the_users_own_settings_stay(keep):
    took_effect, without, kept = run(keep, MALLOC_ARENA_MAX="2")
    assert took_effect == (keep == MADE)  # a step was made
    assert kept > without / 2


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")])
def test_huge_pages_are_asked_for_unless_the_user_said_otherwise(given, expected):
    code = """
from unittest import mock
from alexnet_func.app import cli
with mock.patch.object(cli, "main", lambda: 0), mock.patch.object(cli.allocator, "keep_freed_memory") as kept:
    cli.script()
kept.assert_called_once_with()
import os; print(os.environ["THP_MEM_ALLOC_ENABLE"])
"""
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
