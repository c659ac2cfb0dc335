"""The notebooks run from top to bottom, and are stored with their outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DEMOS = sorted((Path(__file__).parents[2] / "demos").glob("*.ipynb"))


@pytest.mark.filterwarnings(
    "ignore:Proactor event loop:RuntimeWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [out.data for cell in cells for out in cell.outputs if "data" in out]
    html = [data["text/html"] for data in shown if "text/html" in data]
    figures = [data for data in shown if "image/png" in data]  # a bare figure, as viz gives it
    assert len(figures) + sum("data:image/png" in page for page in html) >= 3
    assert any("CircuitsVis" in page for page in html)
    assert not any(out.output_type == "error" for cell in cells for out in cell.outputs)
