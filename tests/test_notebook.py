"""The notebook runs from top to bottom, here on digits for two epochs, ten steps of an ensemble, two at 224x224 and
gradient norms of 250 images.
"""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NotebookClient = pytest.importorskip("nbclient").NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "AlexNet.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def texts(cell):
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def test_its_sections_are_in_order_and_its_outputs_are_whole(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    sections = ["Introduction", "Installation", "Dataset", "Usage", "Training", "Evaluation", "Results", "References"]
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == sections
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not any(output.output_type == "error" for cell in codes for output in cell.outputs)
    assert "datasets.load" in codes[2].source
    stored = "".join(texts(cell) for cell in codes)
    assert "\x1b" not in stored
    told = [tuple(map(int, pair)) for pair in re.findall(r"^epoch +(\d+)/(\d+)", stored, flags=re.MULTILINE)]
    assert [epoch for epoch, _ in told] == list(range(1, told[0][1] + 1))


# jupyter_client's and its dependencies' own
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.compiled  # not because it compiles, but for the pass without runtime type checking
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += '\nDATA, EPOCHS, STEPS_AT_224 = "digits", 2, 2'
    members = next(cell for cell in notebook.cells if "40 * 32" in cell.source)
    members.source = members.source.replace("40 * 32", "10 * 32")
    searched = next(cell for cell in notebook.cells if "[:2000]" in cell.source)
    searched.source = searched.source.replace("[:2000]", "[:250]")
    root = NOTEBOOK.parent
    setup = nbformat.v4.new_code_cell(
        f"import os, sys; sys.path.insert(0, {str(root)!r}); os.environ['PYTHONPATH'] = {str(root)!r}"
    )
    notebook.cells.insert(0, setup)
    NotebookClient(notebook, timeout=170, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(texts(cell) for cell in notebook.cells)
    top1 = float(re.search(r"top-1 ([\d.]+)%", printed)[1])
    assert top1 > 50
    assert "0 failed" in printed
    assert (tmp_path / "runs" / "notebook" / "curves.png").is_file()
