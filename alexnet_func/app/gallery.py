"""Figures of images for a notebook: pictures with captions, their likeliest classes, their nearest neighbours."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from alexnet_func.app.labels import LITERAL, label

_INCHES = 1.1  # a picture's side
_LONGEST = 24  # characters of a caption's line


def pictures(images: UInt8[Tensor, "n 3 h w"], captions: Sequence[str], *, columns: int = 8, title: str = "") -> Figure:
    """Every image with its caption, row by row. Raises ValueError unless there is a caption an image."""
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images need as many captions, got {len(captions)}")
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(_INCHES * columns, (_INCHES + 0.3) * rows + 0.3), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False)
    for axes in cells.flat:
        axes.axis("off")
    for axes, image, caption in zip(cells.flat, images, captions, strict=False):
        _show(axes, image)
        axes.set_title(_lines(caption, _LONGEST), fontsize=8, **LITERAL)
    figure.suptitle(_lines(title, _LONGEST * columns), fontsize=11, **LITERAL)
    return figure


def predictions(
    images: UInt8[Tensor, "n 3 h w"],
    labels: Int64[Tensor, "n"],
    logits: Float[Tensor, "n classes"],
    classes: Sequence[str],
    *,
    columns: int = 4,
) -> Figure:
    """Each image with its label and the probabilities of the five likeliest classes, the right one in red:
    Krizhevsky et al. 2012, figure 4, left.
    """
    best = logits.softmax(-1).topk(min(5, logits.shape[-1]))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.9 * rows), layout="constrained")
    cells = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=(1.4, 1) * rows)
    for axes in cells.flat:
        axes.axis("off")
    for i, y in enumerate(labels.tolist()):
        row, column = divmod(i, columns)
        above, below = cells[2 * row, column], cells[2 * row + 1, column]
        _show(above, images[i])
        above.set_title(label(classes[y]), fontsize=9, **LITERAL)
        guesses = best.indices[i].tolist()
        colors = ["tab:red" if guess == y else "tab:blue" for guess in guesses]
        below.barh(range(len(guesses)), best.values[i].tolist(), color=colors, alpha=0.5)
        for place, guess in enumerate(guesses):
            below.text(0.01, place, label(classes[guess]), va="center", fontsize=8, **LITERAL)
        below.set_xlim(0, 1)
        below.invert_yaxis()
    return figure


def neighbours(
    queries: UInt8[Tensor, "q 3 h w"], among: UInt8[Tensor, "n 3 h w"], nearest: Int64[Tensor, "q k"]
) -> Figure:
    """A row for each query: itself, and the images it is nearest to: Krizhevsky et al. 2012, figure 4, right."""
    rows, columns = len(queries), nearest.shape[1] + 1
    figure = Figure(figsize=(_INCHES * columns, _INCHES * rows + 0.3), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False)
    for i, row in enumerate(cells):
        for axes, image in zip(row, torch.cat([queries[i : i + 1], among[nearest[i]]]), strict=True):
            _show(axes, image)
            axes.axis("off")
    cells[0, 0].set_title("test image", fontsize=9)
    cells[0, 1].set_title("nearest in training", fontsize=9, loc="left")
    return figure


def _lines(text: str, longest: int) -> str:
    """A caption may have lines; in each of them names are literal."""
    return "\n".join(label(line, longest) for line in text.split("\n"))


def _show(axes: Any, image: UInt8[Tensor, "3 h w"]) -> None:
    axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
