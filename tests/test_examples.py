"""The notebook runs from top to bottom as it stands, and what it promises comes true."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

import bnn_ext
from bnn_ext import data

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def shown(cell) -> str:
    """What a cell has printed, and the text of its value."""
    return "".join(
        output.text if output.output_type == "stream" else output.data["text/plain"]
        for output in cell.outputs
    )


def test_quickstart(tmp_path, monkeypatch):
    # Settings, kernels and histories of whoever runs the tests have no part in it.
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "work"
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()  # raises a cell's error

    cells = {cell.id: cell for cell in notebook.cells}
    for name in ("equal", "loaded"):
        assert cells[name].source == "torch.equal(fast(test_images), model(test_images))"
        assert shown(cells[name]) == "True"
    assert "verified: all 3,600 outputs are equal, bit for bit" in shown(cells["convert"])
    for name in ("data", "flips", "histogram", "kernels"):
        assert any("image/png" in output.get("data", {}) for output in cells[name].outputs), name
    assert re.search(r"test accuracy +([\d.]+%) +\1\n", shown(cells["comparison"]))
    assert shown(cells["comparison"]).count("times faster") == 2

    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.keys() == {"digits.bnn", "digits.pt"}
    assert 16 * files["digits.bnn"] < files["digits.pt"]  # 32 times for weights, not for the rest
    images, labels = data.digits().test[:]
    predictions = bnn_ext.load(folder / "digits.bnn")(images).argmax(1)
    assert (predictions == labels).double().mean() > 0.95  # of other seeds 98% or 99%


def test_quickstart_is_stored_without_outputs():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.id
