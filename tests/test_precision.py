import pytest
import torch

from alexnet_func import precision


def strings():
    cudnn = torch.backends.cudnn
    return [op.fp32_precision for op in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)]


def readings():
    return strings(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[None, "highest", "high", "medium"])
def starting_point(request):
    """As torch starts, and after each call of the global setter."""
    before = strings()
    if request.param is not None:
        torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision("highest")
    operators = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    for operator, string in zip(operators, before, strict=True):
        operator.fp32_precision = string
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("starting_point")
@pytest.mark.parametrize("allowed", [True, False])
def test_flags_are_set_inside_and_restored_after_an_error(allowed):
    before = readings()

    def fail_inside():
        with precision.tf32(allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
            assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
            assert precision.rounds_products(torch.device("cuda")) is allowed
            assert not precision.rounds_products(torch.device("cpu"))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert readings() == before


@pytest.mark.parametrize("allowed", [True, False])
def test_flags_that_mix_torchs_two_interfaces_are_restored_too(allowed):
    matmul = torch.backends.cuda.matmul
    start = strings()
    matmul.fp32_precision = "ieee" if allowed else "tf32"
    before = strings()
    try:
        with precision.tf32(allowed):
            assert strings() == ["tf32" if allowed else "ieee"] * 3
        assert strings() == before
    finally:
        matmul.fp32_precision = start[0]


def test_none_leaves_everything():
    before = strings()
    with precision.tf32(None):
        assert strings() == before
