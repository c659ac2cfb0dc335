"""The notebooks run from top to bottom, and are stored with their outputs.

Notebooks run in a kernel, which is a process of its own. With several threads they would take
minutes next to other tests, so it has one. They share it, because importing torch anew takes longer
than some of them, and they share the toy's key statistics. Each starts without the variables of the
one before. Notebooks belong to the slower part of the suite, which ``-m "not real"`` leaves out.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

LARGEST = 500_000
DEMOS = sorted((Path(__file__).parents[2] / "demos").glob("*.ipynb"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # threads only slow each other
        patch.setenv("ROME_LENS_DEMO_MODEL", "toy")  # the real model's takes minutes
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(tmp_path_factory.mktemp("notebooks")))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.notebook
@pytest.mark.real  # the slower part
@pytest.mark.filterwarnings(
    "ignore:Proactor event loop:RuntimeWarning", "ignore::DeprecationWarning"
)
@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, kernel: KernelManager) -> None:
    notebook = nbformat.read(path, as_version=4)
    before = "%reset -f\n__import__('statistics_for_tests').share()"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    client = NotebookClient(notebook, km=kernel, timeout=300, interrupt_on_timeout=True)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()


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
    assert not any(out.output_type == "error" for out in outputs)
    assert path.stat().st_size < LARGEST
    assert not any("<script" in page for page in html)
    warned = [out.text for out in outputs if out.output_type == "stream" and out.name == "stderr"]
    assert warned == []


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: path.stem)
def test_a_notebook_begins_with_a_cell_that_installs_the_package_where_it_is_missing(
    path: Path,
) -> None:
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "%pip install" in first.source
    assert 'find_spec("rome_lens") is None' in first.source
    assert not any("%matplotlib" in cell.source for cell in notebook.cells)


def test_the_notebooks_together_show_every_kind_of_analysis() -> None:
    source = "".join(
        cell.source for path in DEMOS for cell in nbformat.read(path, as_version=4).cells
    )
    names = "run_with_cache logit_lens direct_logit_attribution patching. compare_attention hook_z "
    names += "generate( TransformerBridge from_chat read_records layer_sweep widget_page"
    assert [name for name in names.split() if name not in source] == []
