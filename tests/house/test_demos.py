"""The notebooks run from top to bottom, and are stored with their outputs.

A notebook runs in a kernel, which is a process of its own. With several threads it would take
minutes next to other tests, so it has one. Notebooks belong to the slower part of the suite, which
``-m "not real"`` leaves out.
"""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DEMOS = sorted((Path(__file__).parents[2] / "demos").glob("*.ipynb"))


@pytest.mark.notebook
@pytest.mark.real  # the slower part
@pytest.mark.filterwarnings(
    "ignore:Proactor event loop:RuntimeWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # kernels inherit it; threads only slow each other
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [out for cell in cells for out in cell.outputs]
    data = [out.data for out in outputs if "data" in out]
    html = [each["text/html"] for each in data if "text/html" in each]
    figures = [each for each in data if "image/png" in each]  # a bare figure, as viz returns it
    assert len(figures) + sum("data:image/png" in page for page in html) >= 3
    assert any("CircuitsVis" in page for page in html)
    assert not any(out.output_type == "error" for out in outputs)
