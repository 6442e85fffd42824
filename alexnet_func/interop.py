"""nn.Module to pure function and back, torchvision's weights, and export."""

import copy
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from alexnet_func.arch import ALEXNET, Arch, param_shapes
from alexnet_func.checks import check_named_tensors, shapes_of
from alexnet_func.model import Params
from alexnet_func.modules import AlexNet
from alexnet_func.weights import read

__all__ = [
    "export",
    "from_module",
    "load_torchvision",
    "to_module",
]

PureForward = Callable[..., Any]


def from_module(module: nn.Module) -> tuple[PureForward, Params, Params]:
    """Turns any module into `(forward, params, buffers)`, with `forward(params, buffers, *args, **kwargs)` pure.

    The dicts hold copies: training the module afterwards changes neither them nor `forward`. Inputs and outputs are
    those of the module's own forward; with `torch.func.functional_call` underneath, every transform applies. Tensors
    that the module makes of its parameters while it runs, as weight and spectral norm and pruning do, follow the
    parameters given.

    Raises TypeError for what is no module; ValueError, naming the submodules, for a module in training mode that has
    dropout, batch norm or other buffers, since it would draw hidden randomness or change them, for lazy parameters and
    for `torch.jit`; and from `forward` for missing, unknown or misshapen tensors, and where it uses a tensor that was
    made of parameters before. A module that draws by itself, as `F.dropout` in its forward does, cannot be seen: call
    `eval()` first.

    Examples:
        >>> forward, params, buffers = af.interop.from_module(torch.nn.Linear(3, 2))
        >>> torch.func.grad(lambda p: forward(p, buffers, torch.ones(3)).sum())(params)["bias"]
        tensor([1., 1.])
    """
    _check_liftable(module)
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
    shapes = shapes_of(params | buffers)
    kind = type(module).__name__  # without keeping the module, and its weights, in memory
    skeleton = _hollow(module)
    derived = [
        (part, name, value)
        for part in skeleton.modules()
        for name, value in vars(part).items()
        if name == "_flat_weights" or isinstance(value, Tensor)
    ]

    def forward(params: Params, buffers: Params, *args: Any, **kwargs: Any) -> Any:
        tensors = {**params, **buffers}
        check_named_tensors(shapes, tensors, f"tensors of {kind}")
        try:
            return functional_call(skeleton, tensors, args, kwargs)
        except (RuntimeError, NotImplementedError) as error:
            hollow = [(part, name) for part, name, value in derived if isinstance(value, Tensor) and value.is_meta]
            names = ", ".join(f"{name} of {type(part).__name__}" for part, name in hollow)
            if names and "meta" in str(error):
                raise ValueError(f"made of parameters before forward, which uses it: {names}; make it there") from error
            raise
        finally:
            for part, name, value in derived:
                setattr(part, name, value)

    return forward, params, buffers


def _check_liftable(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    if scripted := [
        name or "itself" for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)
    ]:
        raise ValueError(f"made by torch.jit, which hides its forward: {', '.join(scripted)}; lift the original module")
    if lazy := [name for name, p in module.named_parameters() if nn.parameter.is_lazy(p)]:
        raise ValueError(f"not initialised: {', '.join(lazy)}; call the module on an example first")
    impure = [f"{name or type(part).__name__} ({type(part).__name__})" for name, part in _impure_parts(module)]
    if impure:
        raise ValueError(f"not pure in training mode: {', '.join(impure)}; call module.eval() first")


class _Hollowing(TorchFunctionMode):
    """Within it copies of tensors made of others, by autograd or by sharing their memory, have no values."""

    def __init__(self, others: Iterable[Tensor]) -> None:
        super().__init__()
        self.memory = {_memory_of(t) for t in others} - {None}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Copies such a tensor, and leaves everything else as it is."""
        if func is Tensor.__deepcopy__:
            tensor = args[0]
            if tensor.grad_fn is not None or _memory_of(tensor) in self.memory:
                return tensor.detach().to("meta")
        return func(*args, **(kwargs or {}))


def _memory_of(tensor: Tensor) -> int | None:
    """Where the tensor's values lie, if it has one such place, as sparse tensors have not."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else None


def _hollow(module: nn.Module) -> nn.Module:
    """A copy of `module` whose parameters and buffers have no values, tied where the module's are."""
    # deepcopy takes what the memo holds for a copy: no weight is duplicated, and tied weights stay tied.
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()
    }
    memo |= {id(b): b.detach().to("meta") for b in module.buffers()}
    try:
        with _Hollowing([*module.parameters(), *module.buffers()]):
            skeleton = copy.deepcopy(module, memo)
    except TypeError as error:
        raise ValueError(f"{type(module).__name__} cannot be copied: {error}") from error
    for part in skeleton.modules():
        if isinstance(part, nn.RNNBase):  # which runs on a list of its own of the parameters it was built with
            part.register_forward_pre_hook(_flatten_again)
    return skeleton


def _flatten_again(part: nn.RNNBase, args: Any) -> None:
    part._flat_weights = [getattr(part, name) for name in part._flat_weights_names]


def to_module(params: Params, arch: Arch = ALEXNET) -> nn.Module:
    """Makes a module in evaluation mode whose `state_dict()` is a copy of `params`, on their device and in their dtype.

    Raises ValueError that lists every missing, unknown or misshapen parameter.

    Examples:
        >>> module = af.interop.to_module(params, arch)
        >>> torch.allclose(module(batch[0]), af.forward(params, batch[0], arch=arch), atol=1e-4)
        True
    """
    check_named_tensors(param_shapes(arch), params, f"params of {arch.name}")
    with torch.device("meta"):
        module = AlexNet(arch)
    module.load_state_dict({name: p.detach().clone() for name, p in params.items()}, assign=True)
    return module.requires_grad_().eval()


def load_torchvision(weights: Any) -> Params:
    """Loads the parameters of a torchvision AlexNet, published or from a file.

    `weights` is a `torchvision.models.AlexNet_Weights`, the name of one such as "IMAGENET1K_V1" or "DEFAULT"
    (downloaded on first use by torchvision, its hash checked), or the path of a file, which `weights.read` reads
    without running any pickled code. The last layer may have any number of classes.

    Raises FileNotFoundError for a path that is not there, ValueError for a file that holds something else, OSError
    where the download fails.

    Examples:
        >>> shapes = af.arch.param_shapes(af.arch.ALEXNET.replace(num_classes=7))
        >>> torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, "finetuned.pth")
        >>> af.interop.load_torchvision("finetuned.pth")["classifier.6.weight"].shape
        torch.Size([7, 4096])
    """
    if not isinstance(weights, str | os.PathLike) or _is_weights_name(weights):
        return _download(weights)
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights} is neither a file nor the name of torchvision's AlexNet weights")
    return read(weights).params


def export(params: Params, path: str | os.PathLike[str], arch: Arch = ALEXNET) -> None:
    """Writes the evaluation forward to `path`, for any batch size, as `torch.export` (*.pt2) or ONNX (*.onnx).

    The suffix decides. ONNX needs the packages onnx and onnxscript. The input is named "x" [N, C, H, W] at the arch's
    image size, the output "logits" [N, classes]. Raises ValueError for another suffix.

    Examples:
        >>> small = arch.replace(features=arch.features[:3], classifier=arch.classifier[-1:])
        >>> af.interop.export(af.init(key, small), "small.pt2", small)
        >>> torch.export.load("small.pt2").module()(batch[0]).shape
        torch.Size([4, 10])
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"path must end in .pt2 or .onnx, got {path}")
    module = to_module(params, arch)
    first = next(iter(params.values()))
    example = torch.zeros(2, arch.in_channels, arch.image_size, arch.image_size, dtype=first.dtype, device=first.device)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (example,), dynamic_shapes={"x": {0: batch}})
    if path.suffix == ".pt2":
        torch.export.save(program, path)
    else:
        torch.onnx.export(
            program, f=path, input_names=["x"], output_names=["logits"], external_data=False, verbose=False
        )


_RANDOM_PARTS = (nn.modules.dropout._DropoutNd, nn.RReLU)
_RANDOM_NAMES = ("StochasticDepth", "DropBlock2d", "DropBlock3d", "DropPath")


def _impure_parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    def impure(part: nn.Module) -> bool:
        if any(True for _ in part.buffers(recurse=False)):
            return True
        if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
            return part.dropout > 0
        return isinstance(part, _RANDOM_PARTS) or type(part).__name__ in _RANDOM_NAMES

    return [(name, part) for name, part in module.named_modules() if part.training and impure(part)]


def _is_weights_name(weights: str | os.PathLike[str]) -> bool:
    from torchvision.models import AlexNet_Weights

    return isinstance(weights, str) and weights in (*AlexNet_Weights.__members__, "DEFAULT")


def _download(weights: Any) -> Params:
    from torchvision.models import AlexNet_Weights

    published = AlexNet_Weights[weights] if isinstance(weights, str) else AlexNet_Weights.verify(weights)
    try:
        return dict(published.get_state_dict(progress=True, check_hash=True))
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise OSError(f"no weights from {published.url} ({error}): put the file into {folder} and try again") from error
