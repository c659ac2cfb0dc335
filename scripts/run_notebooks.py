"""Run every notebook in demos/ and store its outputs in place: python scripts/run_notebooks.py"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DEMOS = Path(__file__).parent.parent / "demos"


def main() -> None:
    """Execute the notebooks in the order of their names. A cell that fails stops everything."""
    os.environ.update(TQDM_DISABLE="1", PYTHONWARNINGS="ignore:IProgress not found")
    for path in sorted(DEMOS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(DEMOS)}}
        ).execute()
        for cell in notebook.cells:
            cell.metadata = {}  # it holds times, which differ in every run
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
