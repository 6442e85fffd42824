"""What was measured as a table, as files, as bars, and beside what was measured before."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.timing import Row, Timing

mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})


def table(rows: Sequence[Row]) -> str:
    """Markdown, a part for each title, of the columns that some row of it has; ratios are of medians."""
    lines: list[str] = []
    for title in dict.fromkeys(row.title for row in rows):
        part = [row for row in rows if row.title == title]
        cells = [[row.name, *_cells(row)] for row in part]
        shown = [i for i in range(len(_COLUMNS)) if i == 0 or any(line[i] for line in cells)]
        rule = ["---", *["---:"] * (len(shown) - 1)]
        grid = [[_COLUMNS[i] for i in shown], *[[line[i] for i in shown] for line in cells]]
        head, *body = [f"| {' | '.join(line)} |" for line in grid]
        lines += [f"### {title}", "", head, f"|{'|'.join(rule)}|", *body, ""]
    return "\n".join(lines)


_COLUMNS = ("", "median ms", "best", "worst", "ratio", "of ceiling", "peak MiB")


def _cells(row: Row) -> list[str]:
    times = ["", "", "", ""]
    if row.seconds is not None and row.base is not None:
        digits = 1 if row.seconds.median >= 0.01 else 2  # a step on a GPU takes few milliseconds
        times = [f"{second * 1e3:,.{digits}f}" for second in row.seconds]
        times.append(f"{row.seconds.median / row.base.median:.2f}")
    share = f"{row.ceiling / row.seconds.median:.2f}" if row.seconds and row.ceiling else ""
    return [*times, share, "" if row.mebibytes is None else f"{row.mebibytes:,.0f}"]


def write(folder: Path, name: str, header: str, command: str, rows: Sequence[Row]) -> None:
    """`name`.md, .json, and .png where times were measured."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(f"# {name}\n\nMade by `{command}`.\n\n{header}\n\n{table(rows)}")
    entries = {"about": header, "rows": [row._asdict() for row in rows]}
    (folder / f"{name}.json").write_text(json.dumps(entries, indent=1) + "\n")
    if any(row.seconds for row in rows):
        bars(rows).savefig(folder / f"{name}.png", dpi=150)


def bars(rows: Sequence[Row]) -> Figure:
    """Medians relative to what each row is compared with, a panel for each title; the thin line spans best to worst."""
    timed = [(row, row.seconds, row.base) for row in rows if row.seconds and row.base]
    titles = list(dict.fromkeys(row.title for row, *_ in timed))
    parts = [[entry for entry in timed if entry[0].title == title] for title in titles]
    heights = [len(part) + 1.2 for part in parts]
    figure = Figure(figsize=(8, 0.32 * sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, title, part in zip(panels, titles, parts, strict=True):
        for place, (_, taken, base) in enumerate(part):
            median, best, worst = (seconds / base.median for seconds in taken)
            color = "tab:gray" if taken == base else "tab:blue"
            axes.barh(place, median, color=color, xerr=[[median - best], [worst - median]], error_kw={"lw": 1})
            axes.text(0, place, f" {median:.2f}", va="center", color="white", fontsize=9)
        axes.set_yticks(range(len(part)), [row.name for row, *_ in part])
        axes.invert_yaxis()
        axes.axvline(1, color="black", lw=0.8, ls=":")
        axes.set_title(title, loc="left", fontsize=11)
    panels[-1].set_xlabel("time relative to the grey bar's median (lower is faster)")
    return figure


def compared(rows: Sequence[Row], old: Path) -> str:
    """A line for each row that `old`, a JSON file written before, has too: the ratio then and now."""
    before = {(row["title"], row["name"]): row for row in json.loads(old.read_text())["rows"]}
    lines = [f"against {old}: ratio then -> now, and time now relative to then"]
    for row in rows:
        then = before.get((row.title, row.name))
        if then and then["seconds"] and row.seconds and row.base:
            seconds, base = Timing(*then["seconds"]), Timing(*then["base"])
            ratios = seconds.median / base.median, row.seconds.median / row.base.median
            share = row.seconds.median / seconds.median
            lines.append(f"{ratios[0]:.2f} -> {ratios[1]:.2f}  {share:5.2f}  {row.title}: {row.name}")
    return "\n".join(lines)
