"""The table of verdicts: a line each while they come, and JSON and Markdown files."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from parity.criteria import Verdict
from parity.problems import Problem


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
        else f"{_processor()}, {torch.get_num_threads()} threads",
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


def write(rows: Sequence[Row], about: Mapping[str, str], folder: Path, device: str) -> None:
    """Writes `folder/<device>.json` and `folder/<device>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        row.problem._asdict()
        | {"name": row.problem.name, "status": row.status, "reason": row.reason, "seconds": round(row.seconds, 1)}
        | ({} if row.verdict is None else _finite(row.verdict._asdict()))
        for row in rows
    ]
    text = json.dumps({"about": dict(about), "summary": summary(rows), "rows": entries}, indent=1)
    (folder / f"{device}.json").write_text(text + "\n")
    (folder / f"{device}.md").write_text(_markdown(rows, about, device))


def _markdown(rows: Sequence[Row], about: Mapping[str, str], device: str) -> str:
    command = "python -m parity" + ("" if device == "cpu" else f" --device {device}")
    lines = [f"# Parity on {device}: {summary(rows)}", "", f"Made by `{command}`.", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [
        *("", "Share: of the error allowed, in the worst tensor; 0 is equal bits, above 1 fails.", ""),
        "| | arch | quantity | dtype | N x H x W | route | against | criterion | share | worst | ulp | 1 - cosine |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        p, v = row.problem, row.verdict
        cells = [
            row.status,
            p.arch,
            p.quantity + (", dropout" if p.dropout else ""),
            p.dtype,
            "x".join(map(str, p.shape)),
        ]
        cells += [p.route, p.against, p.criterion]
        if v is None:
            cells += [row.reason, "", "", ""]
        else:
            cells += [f"{v.share:.2f}", v.worst, f"{v.ulp:.3g}", f"{max(0.0, 1 - v.cosine):.1e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _finite(fields: dict) -> dict:
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
