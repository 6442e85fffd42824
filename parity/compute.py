"""Both sides of a problem, and the verdict."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import alexnet_func as af
from parity import criteria, ours, theirs, training
from parity.criteria import Verdict
from parity.draws import both_draws
from parity.inputs import Inputs, Tensors, inputs, to_cpu
from parity.problems import Problem

# Of the reference, for the band: many, since the step at which rounding first decides which side of a kink an
# activation lies on is chance, and from there on the runs part; fewer where one takes ten seconds.
RUNS = {"alexnet": 4, "alexnet_2012": 4, "caffenet": 4, "alexnet_cifar": 32, "alexnet_small": 32}


# Routes whose convolutions have other shapes than the module's, or are computed on a CPU.
_ELSEWHERE = ("vmap", "layerwise", "torch.export", "onnxruntime")


def solve(problem: Problem, device: str) -> Verdict:
    """Computes both sides under `pinned` flags and judges them."""
    if problem.quantity == "random draws":
        return criteria.bitwise(*both_draws())
    if problem.quantity in training.BOTH:
        return criteria.close(*training.BOTH[problem.quantity](), tolerance=1e-10)
    with pinned(tf32=False):
        given = inputs(problem, device)
        if problem.quantity == "dropout masks":
            return criteria.bitwise(ours.masks_of_forward(given), theirs.jax_masks(given))
        if problem.criterion == "band":
            return criteria.band(*_bands(problem, given))
        tf32, cudnn = problem.route == "tf32", _by_cudnn(problem)
        with pinned(tf32=tf32, cudnn=cudnn):
            found = ours.ROUTES[problem.quantity](problem, given)
        with pinned(tf32=tf32, cudnn=cudnn):
            reference = theirs.reference(problem, given)
        if problem.criterion == "bitwise":
            return criteria.bitwise(found, reference)
        found = to_cpu(found)
        if problem.criterion == "close":
            return criteria.close(found, to_cpu(reference))
        exact = theirs.MODULE[problem.quantity](problem, given.as_(torch.float64, "cpu"))
        return criteria.budget(found, to_cpu(reference), exact)


def _by_cudnn(problem: Problem) -> bool:
    """Whether both sides convolve by cuDNN, where they are on CUDA.

    In float32 it takes Winograd's transforms for the gradients of some weights, for some shapes and not for others,
    with a relative error of up to 1e-3 (results/cuda_convolutions.md). So neither side does where they differ in
    device, or in the shapes of their convolutions.
    """
    apart = problem.against in ("cpu module", "module without cudnn") or problem.route in _ELSEWHERE
    return not (problem.dtype == "float32" and apart)


@contextmanager
def pinned(*, tf32: bool, cudnn: bool = True) -> Iterator[None]:
    """Deterministic algorithms, no reduced-precision accumulation, no search for algorithms; restored on leaving."""
    matmul = torch.backends.cuda.matmul
    before = (
        torch.are_deterministic_algorithms_enabled(),
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        matmul.allow_bf16_reduced_precision_reduction = False
        matmul.allow_fp16_reduced_precision_reduction = False
        with (
            af.precision.tf32(tf32),
            torch.backends.cudnn.flags(enabled=cudnn, benchmark=False, deterministic=True, allow_tf32=tf32),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = before[1:]


def _bands(problem: Problem, given: Inputs) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses by step: ours, the reference's, and the reference's from parameters moved by one ulp at random."""

    def moved(run: int) -> Tensors:
        signs = af.random.split(af.random.key(run), len(given.params)).to(given.x.device)
        return {
            name: torch.nextafter(p, torch.where(af.random.bernoulli(k, shape=tuple(p.shape)), torch.inf, -torch.inf))
            for k, (name, p) in zip(signs, given.params.items(), strict=True)
        }

    runs = [
        theirs.module_steps(problem, given._replace(params=moved(run)))["losses"]
        for run in range(RUNS[given.arch.name])
    ]
    found, reference = ours.steps(problem, given)["losses"], theirs.module_steps(problem, given)["losses"]
    return found.cpu(), reference.cpu(), [run.cpu() for run in runs]
