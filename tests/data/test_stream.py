import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from alexnet_func.data import datasets, memory, stream


@pytest.fixture
def files(folder):
    return datasets.load(str(folder)).train


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_holds_what_memory_holds_in_the_order_asked_for(files, workers):
    pixels = memory.decode(files, 8).split.images
    orders = torch.tensor([3, 0, 5, 1, 1, 2, 4]).split(3)
    before = torch.get_rng_state()
    fetched = list(stream.batches(files.paths, orders, side=8, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(fetched) == len(orders)
    for order, batch in zip(orders, fetched, strict=True):
        assert torch.equal(batch.indices, order)
        assert torch.equal(batch.images, pixels[order])
        assert batch.unreadable == []


def test_orders_are_asked_for_as_they_are_needed(files):
    asked = []

    def endless():
        while True:
            asked.append(torch.tensor([0]))
            yield asked[-1]

    fetched = stream.batches(files.paths, endless(), side=8, workers=0)
    for _ in range(3):
        next(fetched)
    assert len(asked) <= 4


def test_an_unreadable_file_is_told_and_the_others_come(files):
    files.paths[4].write_bytes(b"")
    batches = stream.batches(files.paths, [torch.tensor([5, 4, 3]), torch.tensor([4])], side=8, workers=0)
    first, second = batches
    assert first.indices.tolist() == [5, 3]
    assert first.images[:, 1, 0, 0].tolist() == [2, 0]
    assert "b/1.png is not a readable image" in first.unreadable[0]
    assert second.images.shape == (0, 3, 8, 8)


@pytest.mark.errors
def test_a_negative_number_of_workers_is_refused(files):
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        stream.batches(files.paths, [], side=8, workers=-1)


_PROGRAM = """
import sys
from pathlib import Path
import torch
from alexnet_func.data import stream
if __name__ == "__main__":
    paths = [Path(path) for path in sys.argv[1:]]
    orders = [torch.arange(len(paths))] * 6
    print(sum(int(batch.images.long().sum()) for batch in stream.batches(paths, orders, side=256, workers=2)))
"""


def test_a_stream_needs_no_shared_memory(files, tmp_path):
    (tmp_path / "program.py").write_text(_PROGRAM)
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=512k tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*small, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no mount namespace of one's own here")
    command = [*small, sys.executable, str(tmp_path / "program.py"), *map(str, files.paths)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    pixels = memory.decode(files, 256).split.images  # 1.2 MB a batch
    assert (run.stdout, run.stderr) == (f"{6 * int(pixels.long().sum())}\n", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the loader's own, of its killed worker
def test_a_worker_that_is_killed_is_told_wherever_the_main_thread_is(files):
    fetched = stream.batches(files.paths, [torch.tensor([0])] * 20, side=8, workers=1)
    next(fetched)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*is killed by signal"):  # noqa: PT012
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(600):
            time.sleep(0.1)
