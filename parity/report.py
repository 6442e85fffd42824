"""The table of verdicts: a line each while they come, and JSON and Markdown files."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from parity.compositions import table as compositions
from parity.criteria import Verdict
from parity.problems import Problem

if TYPE_CHECKING:
    from rich.console import RenderableType


HEADINGS = (
    *("", "arch", "quantity", "dtype", "N x H x W", "route", "against", "criterion"),
    *("share", "worst", "ulp", "1 - cosine"),
)
LEGEND = "Share: of the error allowed, in the worst tensor; 0 is equal bits, above 1 fails."


class Row(NamedTuple):
    """A problem, its verdict or, where it could not run, the reason, and the seconds it took."""

    problem: Problem
    verdict: Verdict | None
    reason: str
    seconds: float

    @property
    def status(self) -> str:
        """One word."""
        return "skip" if self.verdict is None else "pass" if self.verdict.passed else "FAIL"


def header(device: str) -> dict[str, str]:
    """What the numbers depend on."""
    packages = ("torch", "torchvision", "numpy", "jax", "onnxruntime")
    return {
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{processor()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "flags": "TF32 off unless named, deterministic, full-precision accumulation, cuDNN benchmark off",
    }


def line(row: Row) -> str:
    """One row for a terminal."""
    detail = row.reason if row.verdict is None else row.verdict.detail
    return f"{row.status}  {row.problem.name}: {detail}  ({row.seconds:.1f} s)"


def summary(rows: Sequence[Row]) -> str:
    """How many passed, failed and were skipped."""
    counts = {status: sum(row.status == status for row in rows) for status in ("pass", "FAIL", "skip")}
    return f"{counts['pass']} passed, {counts['FAIL']} failed, {counts['skip']} skipped"


def write(
    rows: Sequence[Row], cells: Sequence[compositions.Cell], about: Mapping[str, str], folder: Path, device: str
) -> None:
    """Writes `folder/<device>.json` and `folder/<device>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        row.problem._asdict()
        | {"name": row.problem.name, "status": row.status, "reason": row.reason, "seconds": round(row.seconds, 1)}
        | ({} if row.verdict is None else _finite(row.verdict))
        for row in rows
    ]
    found = {"compositions": [c._asdict() | {"seconds": round(c.seconds, 1)} for c in cells]} if cells else {}
    text = json.dumps({"about": dict(about), "summary": summary(rows), "rows": entries, **found}, indent=1)
    (folder / f"{device}.json").write_text(text + "\n")
    (folder / f"{device}.md").write_text(_markdown(rows, cells, about, device))


def plot(rows: Sequence[Row], folder: Path, device: str) -> None:
    """Draws `folder/<device>-errors.png`, error by depth, and `<device>-trajectories.png`, losses within their band."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for criterion, name in (("budget", "errors"), ("band", "trajectories")):
        drawn = [row for row in rows if row.problem.criterion == criterion and row.verdict and row.verdict.curves]
        if not drawn:
            continue
        columns = min(3, len(drawn))
        lines = -(-len(drawn) // columns)
        figure = Figure(figsize=(5 * columns, 3 * lines), layout="constrained")
        for axes, row in zip(figure.subplots(lines, columns, squeeze=False).flat, drawn, strict=False):
            assert row.verdict is not None
            curves = dict(row.verdict.curves)
            axes.set_title(row.problem.name.replace(": ", ":\n"), fontsize=6)
            if criterion == "band":
                axes.fill_between(range(len(curves["low"])), curves.pop("low"), curves.pop("high"), alpha=0.3)
                axes.set(xlabel="step", ylabel="loss (nats)")
            else:
                axes.set(xlabel="tensor, from logits to input", ylabel="error / value", yscale="log")
            for label, values in curves.items():
                shown = values if criterion == "band" else [max(value, 1e-20) for value in values]  # log of 0
                axes.plot(shown, ".-", label=label, markersize=4, linewidth=1)
            axes.legend(fontsize=6)
        figure.savefig(folder / f"{device}-{name}.png", dpi=100)


def table(rows: Sequence[Row]) -> "RenderableType":
    """All rows for a terminal, by arch; narrow enough for 80 columns."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "quantity", "dtype", "N x H x W", "route / against", "share", "worst"):
        width = 13 if heading == "quantity" else None  # of the longest arch, which stands there too
        made.add_column(heading, justify="right" if heading == "share" else "left", overflow="fold", min_width=width)
    colours = {"pass": "green", "FAIL": "bold red", "skip": "yellow"}
    for arch in dict.fromkeys(row.problem.arch for row in rows):
        made.add_row("", Text(arch, "bold"))
        for row in rows:
            if row.problem.arch == arch:
                _, quantity, dtype, shape, route, against, criterion, share, worst, *_ = _cells(row)
                share = f"{share} {criterion}" if row.verdict else share
                made.add_row(
                    Text(row.status, colours[row.status]), quantity, dtype, shape, f"{route} / {against}", share, worst
                )
    return made


def _cells(row: Row) -> list[str]:
    """What stands in a row after its status."""
    p, v = row.problem, row.verdict
    marks = [
        mark for mark, used in (("dropout", p.dropout), (p.memory_format, p.memory_format != "contiguous")) if used
    ]
    shape = "x".join(map(str, p.shape))
    cells = [p.arch, ", ".join([p.quantity, *marks]), p.dtype, shape, p.route, p.against, p.criterion]
    if v is None:
        return [*cells, row.reason, "", "", ""]
    return [*cells, f"{v.share:.2g}", v.worst, f"{v.ulp:.3g}", f"{max(0.0, 1 - v.cosine):.1e}"]


def _markdown(rows: Sequence[Row], cells: Sequence[compositions.Cell], about: Mapping[str, str], device: str) -> str:
    lines = [f"# Parity on {device}: {summary(rows)}", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [
        *("", LEGEND, ""),
        "| " + " | ".join(HEADINGS) + " |",
        "|---" * len(HEADINGS) + "|",
        *("| " + " | ".join([row.status, *_cells(row)]) + " |" for row in rows),
        *(["", *compositions.markdown(cells)] if cells else []),
    ]
    return "\n".join(lines) + "\n"


def _finite(verdict: Verdict) -> dict[str, object]:
    """For JSON, which has no infinity; curves are for plots."""
    fields = verdict._asdict().items()
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields if k != "curves"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def processor() -> str:
    """The name of the processor, or of its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
