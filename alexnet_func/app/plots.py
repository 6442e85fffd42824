"""Pictures of a run: training curves, first-layer kernels, confusion matrix."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from alexnet_func.app.labels import LITERAL, label

mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def curves(metrics: Path, out: Path) -> None:
    """Loss and test accuracy by epoch, from the rows of a run's metrics.jsonl."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [row["train_loss"] for row in rows], label="training steps", color="tab:gray")
    loss.plot(epochs, [row["test_loss"] for row in rows], label="test", color="tab:blue")
    loss.set(xlabel="epoch", ylabel="cross-entropy (nats)", ylim=(0, None))
    loss.legend()
    accuracy.plot(epochs, [100 * row["test_accuracy"] for row in rows], color="tab:blue")
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(None, 100))
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(out, dpi=120)


def filters(weight: Tensor, out: Path) -> None:
    """The kernels [O, 3, k, k] of the first layer as colours, each on its own scale: the paper's figure 3."""
    kernels = weight.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    low, high = kernels.min((1, 2, 3), keepdims=True), kernels.max((1, 2, 3), keepdims=True)
    kernels = (kernels - low) / np.maximum(high - low, 1e-12)
    columns = 16
    rows = -(-len(kernels) // columns)
    side = kernels.shape[1] + 1
    sheet = np.ones((rows * side + 1, columns * side + 1, 3))
    for i, kernel in enumerate(kernels):
        top, left = i // columns * side + 1, i % columns * side + 1
        sheet[top : top + side - 1, left : left + side - 1] = kernel
    figure = Figure(figsize=(8, 8 * sheet.shape[0] / sheet.shape[1] + 0.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(f"the {len(kernels)} kernels of the first layer, {weight.shape[2]}x{weight.shape[3]} pixels each")
    axes.axis("off")
    figure.savefig(out, dpi=120)


def confusion(matrix: Tensor, classes: Sequence[str], out: Path) -> None:
    """Counts [K, K] by true (rows) and predicted class (columns), coloured by their share of the true class."""
    counts = matrix.cpu().numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = len(classes) <= 20
    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted class", ylabel="true class")
    if named:
        names = [label(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", **LITERAL)
        axes.set_yticks(range(len(names)), names, **LITERAL)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    j, i, count, ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black", size=8
                )
    figure.colorbar(image, label="share of the true class (%)")
    figure.savefig(out, dpi=120)


def explanation(rows: Sequence[Any], pixels: Callable[[Sequence[Any]], Tensor], out: Path, shown: int) -> None:
    """Of each `explanation.Explained` a row: the image, and so many training images for and against its prediction."""
    figure = Figure(figsize=(1.3 * (2 * shown + 1), 1.7 * len(rows) + 0.4), layout="constrained")
    cells = figure.subplots(len(rows), 2 * shown + 1, squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for line, row in zip(cells, rows, strict=True):
        line[0].imshow(row.pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        line[0].set_title(f"seen as\n{label(row.predicted, 18)}", fontsize=7, **LITERAL)
        for first, pulled in ((1, row.pro[:shown]), (shown + 1, row.contra[:shown])):
            for axes, image, pull in zip(line[first:], pixels(pulled), pulled, strict=False):
                axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
                way = f"for: {pull.alike:+.3f}" if first == 1 else f"against: {pull.influence:+.2g}"
                axes.set_title(f"{label(pull.label, 16)}\n{way}", fontsize=7, **LITERAL)
    figure.savefig(out, dpi=120)


def inspection(
    images: Tensor,
    captions: Sequence[tuple[str, str, float]],
    norms: Tensor,
    shares: Mapping[str, float],
    out: Path,
) -> None:
    """Images [n, 3, H, W] of 0..255, with class, prediction and norm of each; all `norms` [N]; each layer's share."""
    columns = 8
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(11, 1.75 * rows + 3), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.75 * rows, 3))
    above, below = halves
    above.suptitle("training images with the largest gradient norms: label, prediction, norm")
    cells = above.subplots(rows, columns, squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for axes, image, (true, guess, norm) in zip(cells.flat, images, captions, strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(f"{label(true, 18)}, seen as\n{label(guess, 18)}, {norm:.3g}", fontsize=7, **LITERAL)
    distribution, layers = below.subplots(1, 2)
    visible = norms[(norms > 0) & norms.isfinite()].log10().numpy()
    distribution.hist(visible, bins=60, color="tab:blue")
    distribution.set(xlabel="log10 of the gradient norm", ylabel=f"images, of {len(norms):,}")
    if len(visible):
        distribution.set(yscale="log")
    names = list(shares)
    layers.barh(names[::-1], [100 * shares[name] for name in names[::-1]], color="tab:gray")
    layers.set(xlabel="mean share of the squared norm (%)")
    figure.savefig(out, dpi=120)
