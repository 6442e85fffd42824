"""What is compared, as data: a chosen list, not a cross product."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from alexnet_func import history
from alexnet_func.arch import Dropout, get

Dtype = Literal["float64", "float32", "bfloat16"]
Route = Literal[
    "eager",
    "vmap",
    "layerwise",
    "compiled",
    "donated",
    "fused",
    "functional_call",
    "torch.export",
    "onnxruntime",
    "tf32",
]
Quantity = Literal[
    "gradients",
    "logits",
    "per-example gradients",
    "jvp",
    "hvp",
    "dropout masks",
    "random draws",
    "1 step",
    "20 steps",
    "trajectory",
    "sgd steps",
    "adamw steps",
    "maml gradient",
    "by learning rate",
    "by weight decay",
]
Against = Literal["module", "numpy", "jax", "cpu module", "module without cudnn"]
MemoryFormat = Literal["contiguous", "channels_last"]
Criterion = Literal["bitwise", "budget", "close", "band"]


class Problem(NamedTuple):
    """One row: `quantity` of `arch` by `route` in `dtype`, held against `against` by `criterion`.

    "gradients" are logits, loss and its gradients by every parameter and by the input. `shape` is (N, H, W), with few
    images: among many some activation lies so near a kink of ReLU or of pooling that rounding decides the gradient.
    Both sides have the memory format, since that alone doubles a convolution's rounding errors on some CPUs.
    """

    arch: str
    quantity: Quantity
    dtype: Dtype
    route: Route
    against: Against
    criterion: Criterion
    shape: tuple[int, int, int]
    dropout: bool = False
    quick: bool = False
    memory_format: MemoryFormat = "contiguous"

    @property
    def name(self) -> str:
        """One line, unique."""
        n, height, width = self.shape
        marks = (" channels_last" if self.memory_format == "channels_last" else "") + " dropout" * self.dropout
        return (
            f"{self.arch} {self.dtype} {n}x{height}x{width}{marks}: {self.quantity} by {self.route} "
            f"vs {self.against}, {self.criterion}"
        )


ARCHS = ("alexnet", "alexnet_2012", "caffenet", "alexnet_cifar", "alexnet_small")
MUSEUM = tuple(network.name for network in history.NETWORKS)


def _square(arch: str, n: int) -> tuple[int, int, int]:
    side = get(arch).image_size
    return (n, side, side)


def problems(device: str = "cpu") -> Iterator[Problem]:
    """The list for a device, in the order of the report."""
    yield from _eager(device)
    yield from _oracles() if device == "cpu" else _cuda()
    yield from _transforms()
    yield from _routes()
    yield from _museum(device)
    yield from _training(device)
    if device == "cpu":
        yield from _differentiated_training()


def _eager(device: str) -> Iterator[Problem]:
    exact: tuple[Dtype, ...] = ("float32", "float64")
    for dtype in exact:
        for shape in ((1, 224, 224), (2, 224, 224), (8, 224, 224)):
            quick = shape == (2, 224, 224)
            yield Problem("alexnet", "gradients", dtype, "eager", "module", "bitwise", shape, quick=quick)
        for shape in ((2, 63, 63), (2, 300, 260)):
            # Where windows of the adaptive pooling overlap, CUDA adds up their gradients in no fixed order.
            atomic: Criterion = "budget" if dtype == "float32" else "close"
            criterion: Criterion = "bitwise" if device == "cpu" else atomic
            yield Problem("alexnet", "gradients", dtype, "eager", "module", criterion, shape)
        for arch in ("alexnet", "alexnet_cifar"):
            shape = _square(arch, 2)
            yield Problem(arch, "gradients", dtype, "eager", "module", "bitwise", shape, dropout=True, quick=True)
        for arch in ("alexnet_cifar", "alexnet_small"):
            yield Problem(arch, "gradients", dtype, "eager", "module", "bitwise", (8, 32, 32), quick=True)
    for arch in ("alexnet_2012", "caffenet"):
        for dropout in (False, True):
            shape = _square(arch, 2)
            yield Problem(arch, "gradients", "float32", "eager", "module", "budget", shape, dropout, quick=dropout)
    # torch's LRN has no bfloat16 kernel for a CPU.
    for arch in ("alexnet", "alexnet_cifar", "alexnet_small") if device == "cpu" else ARCHS:
        shape = _square(arch, 2)
        yield Problem(arch, "gradients", "bfloat16", "eager", "module", "budget", shape, quick=arch == "alexnet_cifar")


def _oracles() -> Iterator[Problem]:
    for arch in ARCHS:
        drops = any(isinstance(layer, Dropout) for layer in get(arch).classifier)
        for dropout in (False, True) if drops else (False,):
            quick = arch in ("alexnet_cifar", "alexnet_small")
            yield Problem(arch, "gradients", "float64", "eager", "numpy", "close", _square(arch, 2), dropout, quick)
            yield Problem(arch, "gradients", "float64", "eager", "jax", "close", _square(arch, 2), dropout, quick)
        if drops:
            yield Problem(
                arch, "dropout masks", "float32", "eager", "jax", "bitwise", _square(arch, 4), True, quick=True
            )
    yield Problem("alexnet", "random draws", "float32", "eager", "jax", "bitwise", (64, 1, 1), quick=True)


def _cuda() -> Iterator[Problem]:
    for arch in ARCHS:
        shape = _square(arch, 8)
        yield Problem(arch, "gradients", "float64", "eager", "cpu module", "close", shape, dropout=True, quick=True)
        yield Problem(arch, "gradients", "float32", "eager", "cpu module", "budget", shape, dropout=True, quick=True)
        same: Criterion = "budget" if arch in ("alexnet_2012", "caffenet") else "bitwise"  # theirs is another LRN
        yield Problem(arch, "gradients", "float32", "eager", "module without cudnn", same, shape, quick=True)
        yield Problem(arch, "gradients", "float32", "tf32", "module", "budget", shape, quick=True)


def _transforms() -> Iterator[Problem]:
    for arch in ("alexnet", "alexnet_2012", "alexnet_cifar", "alexnet_small"):
        shape, quick = _square(arch, 3), arch in ("alexnet_cifar", "alexnet_small")
        quantities: tuple[Quantity, ...] = ("jvp", "hvp")
        for quantity in quantities:
            yield Problem(arch, quantity, "float32", "eager", "module", "budget", shape, quick=quick)
        routes: tuple[Route, ...] = ("vmap", "layerwise")
        for route in routes:
            yield Problem(arch, "per-example gradients", "float32", route, "module", "budget", shape, quick=quick)
        yield Problem(arch, "gradients", "float32", "vmap", "module", "budget", shape, dropout=True, quick=quick)


def _routes() -> Iterator[Problem]:
    for arch in ARCHS:
        given = (_square(arch, 2), False, arch == "alexnet_cifar")
        yield Problem(arch, "gradients", "float32", "functional_call", "module", "budget", *given)
        yield Problem(arch, "gradients", "float32", "eager", "module", "budget", *given, "channels_last")
        yield Problem(arch, "gradients", "float32", "fused", "module", "budget", *given, "channels_last")
        yield Problem(arch, "logits", "float32", "torch.export", "module", "budget", *given)
        yield Problem(arch, "logits", "float32", "onnxruntime", "module", "budget", *given)
        # The compiler's layout pass chooses channels_last for convolutions.
        yield Problem(arch, "gradients", "float32", "compiled", "module", "budget", *given, "channels_last")
    arch, shape = "alexnet_cifar", _square("alexnet_cifar", 2)
    yield Problem(arch, "gradients", "float32", "compiled", "module", "budget", shape, True, False, "channels_last")
    yield Problem(arch, "gradients", "bfloat16", "compiled", "module", "budget", shape, True, False, "channels_last")
    yield Problem(arch, "gradients", "float64", "compiled", "module", "close", shape, True)
    yield Problem(arch, "logits", "float64", "torch.export", "module", "close", shape)


def _museum(device: str) -> Iterator[Problem]:
    """The networks of 2011 and 2012; two of 32x32 and 24x24 pixels, which have most of their layers, are quick."""
    for arch in MUSEUM:
        shape, quick = _square(arch, 2), arch in ("cuda_convnet_18", "cuda_convnet_11")
        for dropout in (False, True) if arch.startswith(("alexnet", "bvlc")) else (False,):
            yield Problem(arch, "gradients", "float64", "eager", "module", "close", shape, dropout, quick)
            yield Problem(arch, "gradients", "float32", "eager", "module", "budget", shape, dropout, quick)
        yield Problem(arch, "per-example gradients", "float32", "layerwise", "module", "budget", shape, quick=quick)
        if device == "cpu":
            against: tuple[Against, ...] = ("numpy", "jax")
            for oracle in against:
                yield Problem(arch, "gradients", "float64", "eager", oracle, "close", shape, quick=quick)
            yield Problem(arch, "logits", "float32", "torch.export", "module", "budget", shape, quick=quick)
            yield Problem(arch, "logits", "float32", "onnxruntime", "module", "budget", shape, quick=quick)
    for arch in ("alexnet_145", "cuda_convnet_18", "cuda_convnet_11"):
        shape = _square(arch, 2)
        yield Problem(
            arch, "gradients", "float32", "compiled", "module", "budget", shape, memory_format="channels_last"
        )
        yield Problem(arch, "gradients", "float32", "fused", "module", "budget", shape, memory_format="channels_last")


def _training(device: str) -> Iterator[Problem]:
    for arch, n in (("alexnet_cifar", 8), ("alexnet_small", 8), ("alexnet", 2)):
        shape, quick = _square(arch, n), arch != "alexnet"
        if device == "cpu":
            exact: tuple[Dtype, ...] = ("float32", "float64")
            for dtype in exact:
                yield Problem(arch, "20 steps", dtype, "eager", "module", "bitwise", shape, True, quick)
        for route in ("donated", "fused"):
            yield Problem(arch, "1 step", "float32", route, "module", "budget", shape, True, False, "channels_last")
        yield Problem(arch, "trajectory", "float32", "donated", "module", "band", shape, True, False, "channels_last")
    for arch in ("alexnet_2012", "caffenet"):
        yield Problem(arch, "trajectory", "float32", "eager", "module", "band", _square(arch, 2), True)


def _differentiated_training() -> Iterator[Problem]:
    """By optax, of `training.SMALL`: "gradients" of the whole run, not of a step of it."""
    quantities: tuple[Quantity, ...] = (
        *("sgd steps", "adamw steps"),
        *("maml gradient", "by learning rate", "by weight decay"),
    )
    for quantity in quantities:
        yield Problem("small", quantity, "float64", "eager", "jax", "close", (8, 15, 15), dropout=True, quick=True)
