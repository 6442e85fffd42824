"""Networks of 2011 to 2014 as modules, written by hand from their layer files, about one line a layer.

They share no code with the library that is held against them: towers are computed one after the other, sums over
neighbours are sums of shifted copies, and positions with weights of their own are visited in a loop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import relu

Filters = tuple[Tensor, Tensor]
Shapes = Mapping[int, Sequence[int]]


def overhung(x: Tensor, window: int, stride: int, border: float) -> Tensor:
    """Square maps with as much border on the right and at the bottom as it takes until windows cover every pixel."""
    size = x.shape[-1]
    steps = -((window - size) // stride)
    excess = steps * stride + window - size
    return F.pad(x, (0, excess, 0, excess), value=border)


def conv(x: Tensor, filters: Filters, padding: int = 0, stride: int = 1) -> Tensor:
    """Convolution whose output size is rounded up, with zeros beyond the border."""
    weight, bias = filters
    padded = overhung(F.pad(x, [padding] * 4), weight.shape[-1], stride, border=0.0)
    return F.conv2d(padded, weight, bias, stride)


def local(x: Tensor, filters: Filters, padding: int) -> Tensor:
    """Locally connected layer: for each position its own weights [R, C, out, in, K, K] and biases [out, R, C]."""
    weight, bias = filters
    rows, columns, _, _, size, _ = weight.shape
    padded = F.pad(x, [padding] * 4)
    outputs = []
    for position, kernels in enumerate(weight.flatten(3).flatten(0, 1).unbind()):
        i, j = divmod(position, columns)
        outputs.append(padded[:, :, i : i + size, j : j + size].flatten(1) @ kernels.T)
    return torch.stack(outputs, dim=-1).unflatten(-1, (rows, columns)) + bias


def max_pool(x: Tensor, window: int = 3) -> Tensor:
    """Largest value of each window, two pixels apart, of which the last may overhang."""
    return F.max_pool2d(overhung(x, window, 2, border=-torch.inf), window, 2)


def avg_pool(x: Tensor) -> Tensor:
    """Mean of the pixels that exist in each 3x3 window, two pixels apart, of which the last may overhang."""
    sums, counts = (
        F.avg_pool2d(overhung(a, 3, 2, border=0.0), 3, 2, divisor_override=1) for a in (x, torch.ones_like(x))
    )
    return sums / counts


def cross_map_norm(x: Tensor, size: int, scale: float, min_div: float) -> Tensor:
    """Divides by (min_div + scale * mean square over the `size` channels around each)^0.75; missing ones count as 0."""
    squares = F.pad(x * x, (0, 0, 0, 0, size // 2, size // 2))
    total = sum((squares[:, c : c + x.shape[1]] for c in range(size)), torch.zeros_like(x))
    return x / (min_div + scale / size * total) ** 0.75


def same_map_norm(x: Tensor, size: int, scale: float) -> Tensor:
    """Divides by (1 + scale * mean square over the window around each pixel)^0.75; missing ones count as 0."""
    height, width = x.shape[2:]
    squares = F.pad(x * x, [size // 2] * 4)
    shifted = (squares[:, :, i : i + height, j : j + width] for i in range(size) for j in range(size))
    return x / (1 + scale / size**2 * sum(shifted, torch.zeros_like(x))) ** 0.75


class HalvingDropout(nn.Module):
    """The dropout of 2012: zeroes in training without scaling what is kept, and scales everything in evaluation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Keeps or zeroes each value in training, multiplies it by the probability of being kept in evaluation."""
        keep = 1 - self.rate
        return x * torch.bernoulli(torch.full_like(x, keep)) if self.training else x * keep


def dense(dropout: Callable[[float], nn.Module]) -> nn.Sequential:
    """The three fully connected layers of an AlexNet, with dropout of that kind on the first two."""
    return nn.Sequential(
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(),
        dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        dropout(0.5),
        nn.Linear(4096, 1000),
    )


class LayerFile(nn.Module):
    """Holds filters, by layer, of weights of those shapes: out first, or for local layers rows and columns first."""

    def __init__(self, shapes: Shapes, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        for layer, shape in shapes.items():
            bias = (shape[0],) if len(shape) == 4 else (shape[2], shape[0], shape[1])
            filters = (("weight", torch.zeros(*shape)), ("bias", torch.zeros(bias)))
            self.features[str(layer)] = nn.ParameterDict(filters)
        self.classifier = classifier

    def filters(self, layer: int) -> Filters:
        """Weights and biases of a layer."""
        return self.get_parameter(f"features.{layer}.weight"), self.get_parameter(f"features.{layer}.bias")

    def towers(self, layer: int, count: int) -> list[Filters]:
        """Each tower's share of a layer's weights and biases, by output channels."""
        weight, bias = self.filters(layer)
        return list(zip(weight.chunk(count), bias.chunk(count), strict=True))


class AlexNet145(LayerFile):
    """`layers-145.cfg`: two towers a and b, which meet before conv3 and before the fully connected layers."""

    shapes: ClassVar[Shapes] = {
        1: (96, 3, 11, 11),
        5: (256, 48, 5, 5),
        10: (384, 256, 3, 3),
        12: (384, 192, 3, 3),
        14: (256, 192, 3, 3),
    }
    count, window, padding2, padding5 = 2, 3, 2, 1

    def __init__(self) -> None:
        super().__init__(self.shapes, dense(HalvingDropout))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 1000] of images [N, 3, 224, 224]."""
        conv1, conv2, conv3, conv4, conv5 = (self.towers(layer, self.count) for layer in self.shapes)
        pool2, pool3 = [], []
        for tower in range(self.count):
            x = conv(images, conv1[tower], stride=4)
            x = cross_map_norm(x, size=5, scale=1e-4, min_div=2)
            x = relu(max_pool(x, self.window))
            x = relu(conv(x, conv2[tower], padding=self.padding2))
            x = cross_map_norm(x, size=5, scale=1e-4, min_div=2)
            x = same_map_norm(x, size=5, scale=1e-3)
            pool2.append(max_pool(x, self.window))
        for tower in range(self.count):
            x = relu(conv(torch.cat(pool2, dim=1), conv3[tower], padding=1))
            x = relu(conv(x, conv4[tower], padding=1))
            x = conv(x, conv5[tower], padding=self.padding5)
            pool3.append(relu(max_pool(x, self.window)))
        return self.classifier(torch.cat(pool3, dim=1).flatten(1))


class AlexNet145Half(AlexNet145):
    """`layers-145-half.cfg`: one tower of net 145, with conv5 as wide as both towers' together."""

    shapes: ClassVar[Shapes] = {
        1: (48, 3, 11, 11),
        5: (128, 48, 5, 5),
        10: (192, 128, 3, 3),
        12: (192, 192, 3, 3),
        14: (256, 192, 3, 3),
    }
    count = 1


class AlexNet147(AlexNet145):
    """`layers-147.cfg`: net 145 with pooling windows that do not overlap, and less padding so that sizes agree."""

    window, padding2, padding5 = 2, 1, 0


class AlexNet148(LayerFile):
    """`layers-148.cfg`: net 145 without its normalisation layers."""

    def __init__(self) -> None:
        shapes = dict(zip((1, 4, 7, 9, 11), AlexNet145.shapes.values(), strict=True))
        super().__init__(shapes, dense(HalvingDropout))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 1000] of images [N, 3, 224, 224]."""
        conv1, conv2, conv3, conv4, conv5 = (self.towers(layer, 2) for layer in (1, 4, 7, 9, 11))
        pool2, pool3 = [], []
        for tower in range(2):
            x = relu(max_pool(conv(images, conv1[tower], stride=4)))
            x = relu(conv(x, conv2[tower], padding=2))
            pool2.append(max_pool(x))
        for tower in range(2):
            x = relu(conv(torch.cat(pool2, dim=1), conv3[tower], padding=1))
            x = relu(conv(x, conv4[tower], padding=1))
            pool3.append(relu(max_pool(conv(x, conv5[tower], padding=1))))
        return self.classifier(torch.cat(pool3, dim=1).flatten(1))


class BvlcAlexNet(nn.Module):
    """Caffe's `bvlc_alexnet`: normalisation, in which k is 1, comes before pooling, and conv1 has no border."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, kernel_size=11, stride=4),
            nn.ReLU(),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2),
            nn.ReLU(),
            nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            nn.Conv2d(256, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        )
        self.classifier = dense(nn.Dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, 1000] of images [N, 3, 227, 227]."""
        return self.classifier(self.features(x).flatten(1))


class CudaConvnet19(LayerFile):
    """`layers-19pct.cfg`, from whose convolutions only the fully connected layers of `layers-80sec.cfg` differ."""

    def __init__(self, classifier: nn.Sequential | None = None) -> None:
        shapes = {0: (32, 3, 5, 5), 3: (32, 32, 5, 5), 6: (64, 32, 5, 5)}
        super().__init__(shapes, classifier or nn.Sequential(nn.Linear(64 * 4 * 4, 10)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 3, 32, 32]."""
        x = relu(max_pool(conv(images, self.filters(0), padding=2)))
        x = avg_pool(relu(conv(x, self.filters(3), padding=2)))
        x = avg_pool(relu(conv(x, self.filters(6), padding=2)))
        return self.classifier(x.flatten(1))


class CudaConvnet26(CudaConvnet19):
    """`layers-80sec.cfg`."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10)))


class CudaConvnet18(LayerFile):
    """`layers-18pct.cfg`."""

    def __init__(self) -> None:
        shapes = {0: (32, 3, 5, 5), 4: (32, 32, 5, 5), 8: (64, 32, 5, 5)}
        super().__init__(shapes, nn.Sequential(nn.Linear(64 * 4 * 4, 10)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 3, 32, 32]."""
        x = relu(max_pool(conv(images, self.filters(0), padding=2)))
        x = same_map_norm(x, size=3, scale=5e-5)
        x = avg_pool(relu(conv(x, self.filters(4), padding=2)))
        x = same_map_norm(x, size=3, scale=5e-5)
        x = avg_pool(relu(conv(x, self.filters(8), padding=2)))
        return self.classifier(x.flatten(1))


class CudaConvnet13(LayerFile):
    """`layers-conv-local-13pct.cfg`."""

    def __init__(self) -> None:
        shapes = {0: (64, 3, 5, 5), 3: (64, 64, 5, 5), 6: (6, 6, 32, 64, 3, 3), 8: (6, 6, 32, 32, 3, 3)}
        super().__init__(shapes, nn.Sequential(nn.Linear(32 * 6 * 6, 10)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 3, 24, 24]."""
        x = max_pool(relu(conv(images, self.filters(0), padding=2)))
        x = max_pool(relu(conv(x, self.filters(3), padding=2)))
        x = relu(local(x, self.filters(6), padding=1))
        x = relu(local(x, self.filters(8), padding=1))
        return self.classifier(x.flatten(1))


class CudaConvnet11(LayerFile):
    """`layers-conv-local-11pct.cfg`."""

    def __init__(self) -> None:
        shapes = {0: (64, 3, 5, 5), 4: (64, 64, 5, 5), 8: (6, 6, 64, 64, 3, 3), 10: (6, 6, 32, 64, 3, 3)}
        super().__init__(shapes, nn.Sequential(nn.Linear(32 * 6 * 6, 10)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 10] of images [N, 3, 24, 24]."""
        x = max_pool(relu(conv(images, self.filters(0), padding=2)))
        x = cross_map_norm(x, size=9, scale=1e-3, min_div=1)
        x = relu(conv(x, self.filters(4), padding=2))
        x = max_pool(cross_map_norm(x, size=9, scale=1e-3, min_div=1))
        x = relu(local(x, self.filters(8), padding=1))
        x = relu(local(x, self.filters(10), padding=1))
        return self.classifier(x.flatten(1))


MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "alexnet_145": AlexNet145,
    "alexnet_145_half": AlexNet145Half,
    "alexnet_147": AlexNet147,
    "alexnet_148": AlexNet148,
    "bvlc_alexnet": BvlcAlexNet,
    "cuda_convnet_26": CudaConvnet26,
    "cuda_convnet_19": CudaConvnet19,
    "cuda_convnet_18": CudaConvnet18,
    "cuda_convnet_13": CudaConvnet13,
    "cuda_convnet_11": CudaConvnet11,
}
