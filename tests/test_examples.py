"""The examples run, and the notebook is the script."""

import runpy
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_script_runs(capsys):
    runpy.run_path(str(EXAMPLES / "python_api.py"))
    losses = [float(line.split(": ")[1]) for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(losses) == 10
    assert losses[-1] < losses[0]


def test_the_notebook_is_the_script_and_runs(tmp_path):
    """`make notebook` after a change of the script."""
    notebook = nbformat.read(EXAMPLES / "python_api.ipynb", as_version=4)
    script = jupytext.read(EXAMPLES / "python_api.py")
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in script.cells]
    kept = [output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output]
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert any("model.onnx" in text for text in kept)
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "error"
    ]
