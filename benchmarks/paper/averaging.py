"""Table 2: what averaging the predictions of five networks gains over one, trained as one ensemble."""

from pathlib import Path

import torch
from torch import Tensor

from alexnet_func import ensemble, model, optim, train
from alexnet_func.app import recipes
from alexnet_func.app.optimizers import optimizer as optimizer_of
from alexnet_func.data import augment
from alexnet_func.history import CUDA_CONVNET_26
from benchmarks.paper import members, statistics

MEMBERS = 5


def run(
    images: members.Images, test: members.Images, runs: Path, epochs: int, precision: train.Precision = "float32"
) -> str:
    """Markdown: the errors of the members, of their average, and the paper's of five networks."""
    recipe = recipes.choose("cifar10", "cuda_convnet_26", epochs=epochs)
    per_epoch = -(-len(images.labels) // members.BATCH)
    network = CUDA_CONVNET_26.replace(num_classes=int(images.labels.max()) + 1)

    optimizer = optimizer_of(recipe, network, per_epoch)

    def scaled(rate: Tensor) -> optim.Optimizer:
        del rate  # all members have the recipe's
        return optimizer

    plan = members.Plan(network, tuple(range(MEMBERS)), (recipe.lr,) * MEMBERS, scaled, precision)
    path = runs / f"averaging-{epochs}-{precision}.safetensors"
    params, _ = members.trained(plan, images, epochs, path, lambda rows: False)
    alone, together = errors(network, params, images, test)
    paper = "18.2 % and 16.4 % (top-5, ImageNet)"
    rows = ["| networks | test error, 95 % interval | paper |", "|---|---:|---:|"]
    rows.append(f"| one, the mean of {MEMBERS} | {statistics.told(alone)} | {paper} |")
    rows.append(f"| {MEMBERS}, their predictions averaged | {together:.2f} % | lower by 1.8 points |")
    return "\n".join(rows)


def errors(
    network: model.Arch, params: model.Params, images: members.Images, test: members.Images
) -> tuple[list[float], float]:
    """Test errors in per cent of the members, and of their averaged predictions."""
    wrong, wrong_together = torch.zeros(MEMBERS, device=test.labels.device), 0
    with torch.no_grad():
        for pixels, labels in zip(test.pixels.split(500), test.labels.split(500), strict=True):
            x = images.moments.normalized(augment.to_float(pixels))
            wrong += (ensemble.forward(params, x, arch=network).argmax(-1) != labels).sum(1)
            wrong_together += int((ensemble.average(params, x, arch=network).argmax(-1) != labels).sum())
    count = len(test.labels)
    return [100 * float(w) / count for w in wrong], 100 * wrong_together / count
