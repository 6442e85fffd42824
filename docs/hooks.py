"""What `mkdocs build` asks of us: pages of the API, and of what pages link to outside `docs/`."""

import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(_ROOT))

import alexnet_func as af  # noqa: E402

_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
_PNG = "data:image/png;base64,"
_RESULTS = ("benchmarks/results", "parity/results")
_LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml"}

PRELUDE = """Examples start from

```python
import torch

import alexnet_func as af

arch = af.arch.ALEXNET_CIFAR
key = af.random.key(0)
params = af.init(key, arch)
batch = (torch.rand(4, 3, 32, 32), torch.arange(4))
```
"""


def rooms() -> dict[str, ModuleType]:
    """The public rooms, in the order of the alphabet, with those that lie in a room such as `data.augment`."""
    found = {}
    for name in af.__all__:
        if isinstance(room := getattr(af, name), ModuleType):
            inner = {f"{name}.{each}": getattr(room, each) for each in room.__all__}
            nested = {path: module for path, module in inner.items() if isinstance(module, ModuleType)}
            found |= nested or {name: room}
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts a page a room at the end of the navigation."""
    pages = [{room: f"api/{room}.md"} for room in rooms()]
    config.nav.append({"API": ["api/index.md", *pages]})  # type: ignore[union-attr]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the API, the results, and whatever else pages link to."""
    for name, text in _api().items():
        files.append(File.generated(config, f"api/{name}.md", content=text))
    wanted = {path for folder in _RESULTS for path in (_ROOT / folder).rglob("*") if path.suffix in (".md", ".png")}
    for page in list(files.documentation_pages()):
        if page.abs_src_path is not None:
            wanted |= _outside(Path(page.abs_src_path))
    for path in sorted(wanted):
        files.append(_file(path, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of `docs/` lead to the pages that were added for them."""
    if page.file.abs_src_path is None:
        return markdown
    here = Path(page.file.abs_src_path).parent

    def inside(match: re.Match) -> str:
        target = (here / match[1]).resolve()
        if match[1].startswith("http") or not target.is_file() or target.is_relative_to(_ROOT / "docs"):
            return match[0]
        away = os.path.relpath(_place(target), Path(page.file.src_uri).parent)
        return f"]({away}{match[2] or ''})"

    return _LINK.sub(inside, markdown)


def _outside(page: Path) -> set[Path]:
    found = {(page.parent / link).resolve() for link, _ in _LINK.findall(page.read_text()) if "://" not in link}
    return {path for path in found if path.is_file() and not path.is_relative_to(_ROOT / "docs")}


def _place(path: Path) -> str:
    """Where a file of the repository stands on the site: code and notebooks as pages that show them."""
    inner, shown = path.relative_to(_ROOT).as_posix(), (*_LANGUAGES, ".ipynb", "")
    return f"repository/{inner}.md" if path.suffix in shown else f"repository/{inner}"


def _file(path: Path, config: MkDocsConfig) -> File:
    place = _place(path)
    if path.suffix == ".ipynb":
        return File.generated(config, place, content=_notebook(json.loads(path.read_text())))
    if place.endswith(".md") and path.suffix != ".md":
        language = _LANGUAGES.get(path.suffix, "text")
        text = f"# {path.relative_to(_ROOT)}\n\n````{language}\n{path.read_text()}````\n"
        return File.generated(config, place, content=text)
    return File.generated(config, place, abs_src_path=str(path))


def _notebook(notebook: dict[str, Any]) -> str:
    """A notebook's cells as Markdown, with what they printed and their pictures."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", ())))
            picture = f"![]({_PNG}{''.join(data['image/png']).strip()})" if "image/png" in data else ""
            parts.append(picture or f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _api() -> dict[str, str]:
    """Markdown by name of page."""
    lines = ["# API", "", "Every public name, by room.", "", PRELUDE, "| room | |", "|---|---|"]
    pages: dict[str, Any] = {}
    for room, module in rooms().items():
        names = ", ".join(f"[`{name}`]({room}.md#alexnet_func.{room}.{name})" for name in _documented(module))
        lines.append(f"| [`{room}`]({room}.md) | {names or _summary(module)} |")
        pages[room] = _page(room, module)
    return {"index": "\n".join(lines) + "\n", **pages}


def _documented(module: ModuleType) -> list[str]:
    """Functions and records: named values, such as networks, are told in their room's text."""
    names = getattr(module, "__all__", ())
    return [name for name in names if callable(getattr(module, name)) and getattr(module, name).__doc__]


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _page(room: str, module: ModuleType) -> str:
    members = "".join(f"\n        - {name}" for name in getattr(module, "__all__", ()))
    listed = f"\n      members:{members}" if members else ""
    return f"# {room}\n\n::: alexnet_func.{room}\n    options:{listed}\n      show_root_heading: false\n"
