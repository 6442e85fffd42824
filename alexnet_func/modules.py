"""An `Arch` as an ordinary `nn.Module`: torch's own layers, and modules for the historical ones that torch lacks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_func.arch import (
    LRN,
    AdaptiveAvgPool,
    Arch,
    AvgPool,
    Conv,
    Dropout,
    Flatten,
    Linear,
    LocallyConnected,
    MaxPool,
    Placed,
    ReLU,
    Tanh,
    WithinChannelLRN,
    ZeroPad,
    place,
)


class AlexNet(nn.Module):
    """An `Arch` as an ordinary module in torchvision's layout: `features`, `avgpool`, `classifier`."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        layers = place(arch, (arch.in_channels, arch.image_size, arch.image_size))
        self.features = nn.Sequential(*(_module_of(at) for at in layers if at.name.startswith("features.")))
        self.avgpool = nn.Sequential(*(_module_of(at) for at in layers if at.name == "avgpool"))
        self.classifier = nn.Sequential(*(_module_of(at) for at in layers if at.name.startswith("classifier.")))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class GroupedLRN(nn.LocalResponseNorm):
    """`nn.LocalResponseNorm` within each of so many groups of channels."""

    def __init__(self, groups: int, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__(size, alpha, beta, k)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] of the same."""
        by_group = x.unflatten(1, (self.groups, -1)).transpose(0, 1)
        return torch.cat([super(GroupedLRN, self).forward(group) for group in by_group], 1)


class WithinChannelNorm(nn.Module):
    """`x / (k + alpha * mean of x^2 over the size x size pixels around)^beta`, zeros beyond the border."""

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] of the same."""
        margins = (self.size // 2, (self.size - 1) // 2) * 2
        return x / (self.k + self.alpha * F.avg_pool2d(F.pad(x.square(), margins), self.size, 1)) ** self.beta


class LocallyConnected2d(nn.Module):
    """A convolution with weights [Ho, Wo, O, C, k, k] and biases [O, Ho, Wo] of each position's own."""

    def __init__(self, at: Placed) -> None:
        super().__init__()
        layer: LocallyConnected = at.layer  # type: ignore[assignment]
        kernel, (channels, *_), (out_channels, *sides) = layer.kernel_size, at.in_shape, at.out_shape
        self.kernel_size, self.stride, self.padding = kernel, layer.stride, layer.padding
        self.weight = nn.Parameter(torch.empty(*sides, out_channels, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_channels, *sides))

    def forward(self, x: Tensor) -> Tensor:
        """[N, O, Ho, Wo] of [N, C, H, W]."""
        rows, columns = self.weight.shape[:2]
        patches = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        weight = self.weight.flatten(3)
        return torch.einsum("rcoi,nirc->norc", weight, patches.unflatten(2, (rows, columns))) + self.bias


class ClassicDropout(nn.modules.dropout._DropoutNd):
    """Zeros with probability p in training; in evaluation all values times 1 - p."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        return x.where(torch.rand_like(x) < 1 - self.p, 0) if self.training else x * (1 - self.p)


def _module_of(at: Placed) -> nn.Module:
    match at.layer:
        case Conv(out_channels, kernel, stride, padding, groups):
            return nn.Conv2d(at.in_shape[0], out_channels, kernel, stride, padding, groups=groups)
        case LocallyConnected():
            return LocallyConnected2d(at)
        case Linear():
            return nn.Linear(at.in_shape[0], at.out_shape[0])
        case ReLU():
            return nn.ReLU(inplace=True)
        case Tanh():
            return nn.Tanh()
        case LRN(size, alpha, beta, k, convention, groups):
            mean_alpha = alpha * size if convention == "sum" else alpha
            norm = nn.LocalResponseNorm(size, mean_alpha, beta, k)
            return norm if groups == 1 else GroupedLRN(groups, size, mean_alpha, beta, k)
        case WithinChannelLRN(size, alpha, beta, k, convention):
            return WithinChannelNorm(size, alpha * size**2 if convention == "sum" else alpha, beta, k)
        case MaxPool(kernel, stride, ceil_mode):
            return nn.MaxPool2d(kernel, stride, ceil_mode=ceil_mode)
        case AvgPool(kernel, stride, ceil_mode):
            return nn.AvgPool2d(kernel, stride, ceil_mode=ceil_mode, count_include_pad=False)
        case ZeroPad(before, after):
            return nn.ZeroPad2d((before, after, before, after))
        case AdaptiveAvgPool(size):
            return nn.AdaptiveAvgPool2d(size)
        case Dropout(rate, convention):
            return ClassicDropout(rate) if convention == "classic" else nn.Dropout(rate)
        case Flatten():
            return nn.Flatten()
