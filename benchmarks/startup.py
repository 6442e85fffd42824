"""How long until something happens? Imports, the command line's help, a compiled step's first call, cold and cached."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.compilation import step_seconds
from benchmarks.timing import Row, Timing


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """Each measured in a fresh process."""
    repeats = 1 if quick else 9
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import torch, alexnet_func": [sys.executable, "-c", "import torch, alexnet_func"],
        "alexnet --help": [sys.executable, "-m", "alexnet_func", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    timed = {name: Timing(statistics.median(s[1:]), min(s[1:]), max(s[1:])) for name, s in seconds.items()}
    yield [Row("starting", name, t, timed["import torch"]) for name, t in timed.items()]

    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        first = {which: step_seconds("alexnet_cifar", "with", environment) for which in ("cold", "cached")}
    once = {which: Timing(value, value, value) for which, value in first.items()}
    title = "first call of a compiled step, alexnet_cifar"
    yield [Row(title, which, t, once["cold"]) for which, t in once.items()]
