"""`python docs/rooms.py`: draws the rooms of `alexnet_func` from their imports into docs/pictures/rooms.svg."""

import ast
from pathlib import Path

PICTURE = Path(__file__).parent / "pictures" / "rooms.svg"
_PACKAGE = Path(__file__).parent.parent / "alexnet_func"
_WIDTH, _HEIGHT, _ACROSS, _UP = 108, 26, 118, 64

Edge = tuple[str, str]  # who imports, and what


def edges() -> set[Edge]:
    """Which room imports which: modules, and the packages `app`, `data` and `optim` as one room each."""
    found = set()
    for path in sorted(_PACKAGE.rglob("*.py")):
        room = path.relative_to(_PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "alexnet_func":
                inner = (node.module or "").split(".")[1:2]
                found |= {(room, other) for other in inner or [alias.name for alias in node.names]}
    return {(a, b) for a, b in found if a != b and not a.startswith("__")}


def levels(arrows: set[Edge]) -> dict[str, int]:
    """The height of each room: one above the highest that it imports. Raises ValueError for a circle."""
    below: dict[str, set[str]] = {}
    for a, b in arrows:
        below.setdefault(a, set()).add(b)
        below.setdefault(b, set())
    height: dict[str, int] = {}
    while len(height) < len(below):
        ready = [room for room in below if room not in height and below[room] <= height.keys()]
        if not ready:
            raise ValueError(f"imports run in a circle among {sorted(below.keys() - height.keys())}")
        height |= {room: max([height[other] + 1 for other in below[room]], default=0) for room in ready}
    return height


def without_implied(arrows: set[Edge]) -> set[Edge]:
    """The arrows that no path of others replaces."""
    below: dict[str, set[str]] = {}
    for a, b in arrows:
        below.setdefault(a, set()).add(b)

    def reached(room: str) -> set[str]:
        direct = below.get(room, set())
        return direct | {far for near in direct for far in reached(near)}

    return {(a, b) for a, b in arrows if not any(b in reached(other) for other in below[a] if other != b)}


def drawn(arrows: set[Edge]) -> str:
    """The picture, in SVG: a row of rooms a level."""
    height = levels(arrows)
    rows = [sorted(room for room in height if height[room] == level) for level in range(max(height.values()) + 1)]
    width = _ACROSS * max(map(len, rows)) + 20
    top = _UP * len(rows)
    place = {}
    for level, row in enumerate(rows):
        start = (width - _ACROSS * len(row)) / 2
        place |= {room: (start + _ACROSS * (i + 0.5), top - _UP * (level + 0.5)) for i, room in enumerate(row)}
    lines = [_line(place[a], place[b]) for a, b in sorted(without_implied(arrows))]
    boxes = [_box(room, *place[room]) for room in sorted(place)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join([head, *lines, *boxes, "</svg>", ""])


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    y1, y2 = y1 + _HEIGHT / 2, y2 - _HEIGHT / 2
    bend = (y1 + y2) / 2
    path = f"M {x1:g} {y1:g} C {x1:g} {bend:g}, {x2:g} {bend:g}, {x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="#8a8f98" stroke-width="1"/>'


def _box(room: str, x: float, y: float) -> str:
    box = f'x="{x - _WIDTH / 2:g}" y="{y - _HEIGHT / 2:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"'
    colours = 'fill="#eef2f8" stroke="#4a5a75"'
    return f'<rect {box} {colours}/><text x="{x:g}" y="{y + 5:g}" text-anchor="middle" fill="#1c2533">{room}</text>'


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(edges()))
    print(PICTURE)
