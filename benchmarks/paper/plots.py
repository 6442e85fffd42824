"""The curves of figure 1 with their bands."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.paper.figure1 import ERROR, Curve


def curves(found: Mapping[str, Curve], path: Path) -> None:
    """Training errors by epoch: the mean over seeds, and a band from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, curve in found.items():
        epochs = [epoch + 0.5 for epoch in range(len(curve.errors))]
        axes.plot(epochs, [sum(row) / len(row) for row in curve.errors], label=f"{name}, rate {curve.rate:g}")
        axes.fill_between(epochs, [min(row) for row in curve.errors], [max(row) for row in curve.errors], alpha=0.25)
    axes.axhline(ERROR, color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel="epochs", ylabel="training error", ylim=(0, 0.8), title="ReLU and tanh, after the paper's figure 1")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
