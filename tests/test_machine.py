"""Memory and processors as control groups and affinity leave them, on trees that the tests lay out."""

import os

import pytest

from alexnet_func import machine

GIB = 2**30
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def tree(tmp_path, own, files):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "cgroup", tmp_path / "own"


V2 = "0::/job/step\n"
V1 = "9:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/other\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, MACHINE),
        (V2, {"memory.max": "max\n", "job/memory.max": f"{GIB}\n", "job/step/memory.max": "max\n"}, GIB),
        (V2, {"job/memory.max": f"{2 * GIB}\n", "job/step/memory.max": f"{GIB}\n"}, GIB),
        ("0::/\n", {"memory.max": f"{GIB}\n"}, GIB),  # as a container sees itself
        (V2, {"job/memory.max": f"{2**60}\n"}, MACHINE),
        (V1, {"memory/job/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (V1, {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, MACHINE),
        (V1, {"memory/other/memory.limit_in_bytes": "1000\n"}, MACHINE),
        (V1, {"memory/job/memory.limit_in_bytes": "no number\n"}, MACHINE),
        ("", {}, MACHINE),
    ],
)
def test_memory_is_the_least_that_a_group_above_allows(tmp_path, own, files, expected):
    assert machine.memory(*tree(tmp_path, own, files)) == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, 64),
        (V2, {"job/cpu.max": "250000 100000\n", "job/step/cpu.max": "max 100000\n"}, 2),
        (V2, {"job/step/cpu.max": "50000 100000\n"}, 1),
        (V1, {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 3),
        (V1, {"cpu/other/cpu.cfs_quota_us": "100000\n", "cpu/other/cpu.cfs_period_us": "100000\n"}, 64),
        (V1, {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 64),
        (V2, {"job/cpu.max": "0 0\n"}, 64),
    ],
)
def test_processors_are_those_of_the_affinity_within_the_quota(tmp_path, monkeypatch, own, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.processors(*tree(tmp_path, own, files)) == expected


def test_an_affinity_of_one_processor_is_one_processor(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert machine.processors() == 1
    assert machine.memory() <= MACHINE
