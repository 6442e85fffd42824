"""Tables that commands write as CSV files. Names are UTF-8, and where a file's name is not, its own bytes.

Read with newline="", encoding="utf-8" and errors="surrogateescape" they are what they were.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def check_ours(path: Path, columns: Sequence[str]) -> None:
    """Raises ValueError where another file than such a table would be overwritten."""
    heading = ",".join(columns).encode()
    if not path.exists():
        return
    with open(path, "rb") as file:
        found = file.read(len(heading))
    if found != heading:
        raise ValueError(f"{path} is not of alexnet inspect: choose another --out")


def write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes the columns' names and the rows."""
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
