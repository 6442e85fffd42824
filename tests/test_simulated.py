"""What a GPU is asked for and gives, on a simulated one: see `tests/simulated`."""

import pytest

from tests.simulated import device

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(device.missing() is not None, reason=device.missing() or ""),
]
PYTEST = ["-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--show-capture=no"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return device.build(tmp_path_factory.mktemp("device"))


def passed(result, least):
    counts = dict(word.split()[::-1] for word in result.stdout.splitlines()[-1].split(" in ")[0].split(", "))
    assert result.returncode == 0, result.stdout[-8000:]
    assert int(counts["passed"]) >= least
    assert "skipped" not in counts


def test_no_public_function_waits_for_the_device_or_launches_more_than_it_needs(built):
    passed(device.run([*PYTEST, "tests/simulated/counted.py"], built, **ONE_THREAD), 30)
    # A resumed run ends with the same bytes where sums have a fixed order: without atomic additions.
    written = [path.read_text() for path in (built / "inductor").rglob("*.py")]
    assert any("tl.store(" in text for text in written)
    assert not any("tl.atomic" in text for text in written)


@pytest.mark.slow
@pytest.mark.parametrize(
    "files", [["tests/test_train.py"], ["tests/test_model.py", "tests/test_random.py", "tests/test_per_sample.py"]]
)
def test_the_tests_that_need_a_gpu_pass(built, files):
    plugin = ["-p", "tests.simulated.computing", "-m", "gpu and not slow", "-W", "ignore:overflow:RuntimeWarning"]
    passed(device.run([*PYTEST, *plugin, *files], built, computing=True, **ONE_THREAD), 5)
