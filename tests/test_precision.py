import pytest
import torch

from alexnet_func import precision


def strings():
    cudnn = torch.backends.cudnn
    return [op.fp32_precision for op in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)]


@pytest.mark.parametrize("allowed", [True, False])
def test_flags_are_set_inside_and_restored_after_an_error(allowed):
    before = strings(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    def fail_inside():
        with precision.tf32(allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert (strings(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


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
