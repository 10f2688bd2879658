"""Runs the notebooks and stores them with what they show, and nothing of the machine that they ran on.

python notebooks/store.py [NAME ...]    # forec, your_own_data, add_a_method, use_a_model; all of them by default
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).parent
COLOURS = 256  # of a stored picture: a notebook is to be read in a browser, and kept in a repository


def run(file: Path) -> nbformat.NotebookNode:
    """The notebook after a run from top to bottom, in a folder of its own."""
    notebook = nbformat.read(file, as_version=4)
    os.environ["PYTHONPATH"] = str(FOLDER.parent.resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder  # where a notebook puts its runs
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()
    return notebook


def shown(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without progress and log lines, times, and the kernel's version; its pictures in few colours."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
                output.data.pop("image/jpeg", None)  # the same picture once more
    return notebook


def smaller(picture: str) -> str:
    """A base64 PNG with a palette."""
    stored = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(stored, "PNG", optimize=True)
    return base64.b64encode(stored.getvalue()).decode()


if __name__ == "__main__":
    for file in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(shown(run(file)), file)
        print(f"{file.name}: {file.stat().st_size // 1024} KiB")
