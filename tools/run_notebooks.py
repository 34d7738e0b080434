"""Run notebooks, each in an empty folder, and keep what they print.

python tools/run_notebooks.py examples/*.ipynb
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

SECONDS = 600


def executed(path: Path, folder: Path) -> Any:
    """The notebook with the outputs of a run in `folder`, by this Python; the home folder is
    neither read nor written."""
    notebook = nbformat.read(path, as_version=4)
    own = {"IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "data"}
    folders = {name: str(folder / ".jupyter" / place) for name, place in own.items()}
    for made in folders.values():
        Path(made).mkdir(parents=True)
    before = dict(os.environ)
    os.environ.update(folders)
    try:
        specs = KernelSpecManager(kernel_dirs=[], data_dir=folders["JUPYTER_DATA_DIR"])
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, km=manager, resources=resources, timeout=SECONDS).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
        if "outputs" in cell:  # without progress and warnings
            cell.outputs = [o for o in cell.outputs if o.get("name") == "stdout" or "data" in o]
            cell.outputs = [o for o in cell.outputs if o.output_type != "display_data"]
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            notebook = executed(Path(name), Path(scratch))
        nbformat.write(notebook, name)


if __name__ == "__main__":
    main()
