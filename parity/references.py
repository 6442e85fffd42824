"""What the library is held against: ordinary modules trained the ordinary way, sharing no code with it."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn

from parity import museum


class AlexNet2012(nn.Module):
    """Krizhevsky, Sutskever, Hinton 2012; torch divides LRN's alpha by the window, the paper does not: 5 x 1e-4."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=11, stride=4, padding=2),
            nn.ReLU(),
            nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
            nn.ReLU(),
            nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 1000),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 1000] of images [N, 3, 224, 224]."""
        return self.classifier(torch.flatten(self.features(x), 1))


class CaffeNet(nn.Module):
    """Caffe's bvlc_reference_caffenet: pooling, with windows that may overhang, comes before LRN."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=11, stride=4),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(4096, 1000),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 1000] of images [N, 3, 227, 227]."""
        return self.classifier(torch.flatten(self.features(x), 1))


class AlexNetCifar(nn.Module):
    """torchvision's widths with 3x3 kernels for images of 32x32."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            nn.Conv2d(64, 192, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(256 * 4 * 4, 1024),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Linear(1024, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 3, 32, 32]."""
        return self.classifier(torch.flatten(self.features(x), 1))


class AlexNetSmall(nn.Module):
    """The network for 32x32 images that learns soonest."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Conv2d(64, 128, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Conv2d(128, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(256 * 3 * 3, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 3, 32, 32]."""
        return self.classifier(torch.flatten(self.features(x), 1))


MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "alexnet": torchvision.models.alexnet,
    "alexnet_2012": AlexNet2012,
    "caffenet": CaffeNet,
    "alexnet_cifar": AlexNetCifar,
    "alexnet_small": AlexNetSmall,
    **museum.MODULES,
}


class GivenDropout(nn.Module):
    """Dropout in training with a mask [N, ...] that is given instead of drawn: kept values are divided by `kept`."""

    def __init__(self, kept: float, keep: Tensor) -> None:
        super().__init__()
        self.kept, self.keep = kept, keep

    def forward(self, x: Tensor) -> Tensor:
        """Keeps and scales, or zeroes."""
        return torch.where(self.keep, x / self.kept, 0.0)


def module(arch: str, params: Mapping[str, Tensor], keeps: Mapping[str, Tensor]) -> nn.Module:
    """The named module with copies of those parameters, in evaluation mode but for the dropout layers in `keeps`."""
    dtype = next(iter(params.values())).dtype
    made = MODULES[arch]().to(dtype)
    made.load_state_dict(params)
    return with_masks(made.eval(), keeps)


def with_masks(made: nn.Module, keeps: Mapping[str, Tensor]) -> nn.Module:
    """The module with its dropout layers of those names replaced, or the masks of those replaced before changed."""
    for name, keep in keeps.items():
        section, position = name.split(".")
        layers = made.get_submodule(section)
        before = layers[int(position)]  # type: ignore[index]
        layers[int(position)] = GivenDropout(_kept_share(before), keep)  # type: ignore[operator]
    return made


def _kept_share(dropout: nn.Module) -> float:
    """What values that are kept are divided by: 1 in the classic convention."""
    match dropout:
        case GivenDropout(kept=kept):
            return kept
        case nn.Dropout(p=rate):
            return 1 - rate
        case _:
            return 1.0


def loss_and_gradients(made: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Logits, mean cross-entropy, and by `loss.backward()` its gradients by parameter and, as "input", by x."""
    made.zero_grad()
    x = x.clone().requires_grad_()
    logits = made(x)
    loss = nn.functional.cross_entropy(logits, y)
    loss.backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"logits": logits.detach(), "loss": loss.detach(), **gradients, "input": x.grad}


def example_gradients(made: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Every example's own gradient [N, ...], one backward pass each."""
    each = [loss_and_gradients(made, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    names = [name for name in each[0] if name not in ("logits", "loss", "input")]
    return {name: torch.stack([gradients[name] for gradients in each]) for name in names}


def hessian_product(made: nn.Module, x: Tensor, y: Tensor, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Hessian of the loss times `direction`, by differentiating the gradient once more."""
    named = dict(made.named_parameters())
    loss = nn.functional.cross_entropy(made(x), y)
    gradients = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    slope = sum((g * direction[name]).sum() for name, g in zip(named, gradients, strict=True))
    products = torch.autograd.grad(slope, list(named.values()))  # type: ignore[arg-type]
    return dict(zip(named, products, strict=True))


def directional_derivative(made: nn.Module, x: Tensor, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How the logits change along `direction` in the parameters: two backward passes, the second of the first."""
    named = dict(made.named_parameters())
    logits = made(x)
    weights = torch.zeros_like(logits, requires_grad=True)
    gradients = torch.autograd.grad(logits, list(named.values()), weights, create_graph=True)
    slope = sum((g * direction[name]).sum() for name, g in zip(named, gradients, strict=True))
    return {"jvp": torch.autograd.grad(slope, weights)[0]}  # type: ignore[arg-type]


def training(
    made: nn.Module, batches: Sequence[tuple[Tensor, Tensor, Mapping[str, Tensor]]], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """The losses [steps], and the parameters and momenta, after a step on each batch of (x, y, masks)."""
    losses = []
    for x, y, keeps in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(with_masks(made, keeps)(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    found = {"losses": torch.stack(losses)}
    for name, p in made.named_parameters():
        found |= {name: p.detach(), f"momentum of {name}": optimizer.state[p]["momentum_buffer"]}
    return found
