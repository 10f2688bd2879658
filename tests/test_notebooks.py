"""The notebooks run from top to bottom on a few steps, as a reader would run them."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(file):
    return nbformat.read(file, as_version=4)


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stored_with_what_it_shows_and_nothing_of_a_machine(file):
    """After a change: `python notebooks/store.py`."""
    notebook = read(file)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = outputs_of(notebook)
    assert any("image/png" in output.get("data", ()) for output in shown)
    assert any(output.output_type == "stream" for output in shown)
    assert file.stat().st_size < 300_000
    words = "".join(str(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in shown)
    assert not re.search(r"(?<![\w.])(/\w+){2}|[A-Z]:\\|\w+@\w+|://", words)  # paths, users and hosts
    assert not [output for output in shown if output.get("name") == "stderr" or output.output_type == "error"]
    assert all(not cell.metadata for cell in notebook.cells)  # nor when it ran


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
@pytest.mark.parametrize(("beside", "said"), [("clone", ""), ("wheel", ""), ("nothing", "a folder"), ("nothing", "")])
def test_a_notebook_installs_the_library_from_what_is_there(file, beside, said, tmp_path, monkeypatch):
    """The cell runs as in a fresh kernel: nothing is installed, and `%pip` notes what it is given."""
    source = next(cell.source for cell in read(file).cells if cell.cell_type == "code")
    source = source.replace('%pip install --quiet "{source}" matplotlib', "given.append(source)")
    source = source.replace('LIBRARY = ""', f'LIBRARY = "{said}"')
    assert "OWNER" not in source
    assert "given.append" in source
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = said
    if beside == "clone":
        (tmp_path / "forec_jax").mkdir()
        (tmp_path / "forec_jax" / "__init__.py").touch()
        wanted = str(tmp_path)
    if beside == "wheel":
        wheel = tmp_path / "notebooks" / "forec_jax-0.1.0-py3-none-any.whl"
        wheel.touch()
        wanted = str(wheel)
    given = []
    if not wanted:
        with pytest.raises(RuntimeError, match="set LIBRARY above"):
            exec(source, {"given": given})
        return
    exec(source, {"given": given})
    assert given == [wanted]


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREC_STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where they put their runs
    notebook = read(file)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    assert any("image/png" in output.get("data", ()) for output in outputs_of(notebook))
