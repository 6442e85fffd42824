"""How long until something happens? Imports, the command line's help, a compiled step's first call, cold and cached."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.compilation import step_seconds
from benchmarks.timing import Row, of

# Within one process, as the import of torch varies by more than this takes.
_AFTER_TORCH = """
import time, torch
started = time.perf_counter()
import alexnet_func
print(time.perf_counter() - started)
"""


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """Each measured in a fresh process."""
    repeats = 1 if quick else 9
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "alexnet --help": [sys.executable, "-m", "alexnet_func", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    after = "import alexnet_func, after that"
    seconds[after] = []
    for _ in range(repeats + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
        printed = subprocess.run([sys.executable, "-c", _AFTER_TORCH], check=True, capture_output=True, text=True)
        seconds[after].append(float(printed.stdout))
    timed = {name: of(taken[1:]) for name, taken in seconds.items()}
    yield [Row("starting", name, t, timed["import torch"]) for name, t in timed.items()]

    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        first = {which: step_seconds("alexnet_cifar", "with", environment) for which in ("cold", "cached")}
    once = {which: of([value]) for which, value in first.items()}
    title = "first call of a compiled step, alexnet_cifar"
    yield [Row(title, which, t, once["cold"]) for which, t in once.items()]
