import platform
import subprocess
import sys

import pytest

# In processes of their own: the setting is the process's.
SCRIPT = """
import resource, torch
from alexnet_func import allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(40_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(40_000_000)
without, took_effect = faults(), allocator.keep_freed_memory()
torch.ones(40_000_000)
print(took_effect, without, faults())
"""


def run(**environment):
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    took_effect, without, kept = done.stdout.split()
    return took_effect == "True", int(without), int(kept)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_not_mapped_again():
    took_effect, without, kept = run()
    assert took_effect
    assert kept < without / 20


def test_the_users_own_settings_stay():
    took_effect, without, kept = run(MALLOC_ARENA_MAX="2")
    assert not took_effect
    assert kept > without / 2
