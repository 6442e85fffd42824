"""What does dropout add to the cold compilation of a training step? Each step is built in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.timing import Row, Timing

_STEP = """
import functools, sys, time
import torch
import alexnet_func as af

arch = af.arch.get(sys.argv[1])
loss = functools.partial(af.loss_fn, arch=arch)
without = lambda params, batch, *, key=None: loss(params, batch)
optimizer = af.optim.sgd(0.01, momentum=0.9, weight_decay=5e-4)
step = af.train.make_step(loss if sys.argv[2] == "with" else without, optimizer)
key = af.random.key(0)
state = af.train.create_state(af.init(key, arch), optimizer, key=key)
batch = torch.rand(8, 3, arch.image_size, arch.image_size), torch.arange(8)
torch.compile(lambda x: x + 1)(torch.ones(3))  # the compiler's own start is not the step's
expected = step(state, batch)[1]["loss"]
started = time.perf_counter()
ours = af.train.compile_step(step)(state, batch)[1]["loss"]
seconds = time.perf_counter() - started
torch.testing.assert_close(ours, expected)
print(seconds)
"""


def run(quick: bool, device: str) -> Iterator[list[Row]]:
    """A table for each network; every compilation is timed once."""
    for arch in ("alexnet_cifar",) if quick else ("alexnet_cifar", "alexnet"):
        seconds = {f"{kind} dropout": _cold(arch, kind) for kind in ("without", "with")}
        once = {name: Timing(value, value, value) for name, value in seconds.items()}
        title = f"cold compilation of a step, {arch}"
        yield [Row(title, name, timed, once["without dropout"]) for name, timed in once.items()]


def _cold(arch: str, kind: str) -> float:
    with tempfile.TemporaryDirectory() as cache:
        return step_seconds(arch, kind, {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache})


def step_seconds(arch: str, kind: str, environment: dict[str, str]) -> float:
    """Of a compiled step's first call in a fresh process, `kind` "with" or "without" dropout."""
    command = [sys.executable, "-c", _STEP, arch, kind]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
