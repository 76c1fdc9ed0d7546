"""The notebook of docs/examples runs from its first cell to its last on a few images and steps."""

from pathlib import Path

import jupytext
import nbclient
import own_data_kit as kit
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "examples" / "notebook" / "own_data.py"


def printed(cell):
    return "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream")


def pictures(cell):
    return sum("image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {})
               for o in cell.outputs)  # fmt: skip


@pytest.mark.slow
@pytest.mark.export
def test_from_images_to_report_and_onnx(tmp_path, monkeypatch):
    kit.write_flat_voc(tmp_path / "photos")
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    notebook = jupytext.read(NOTEBOOK)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = (
        'PHOTOS, MINUTES, OPTIONS = "photos", 0.2, ["--fast-dev-run", "MODEL.DEVICE", "cpu"]'
    )
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    cells = [c for c in notebook.cells if c.cell_type == "code" and c is not parameters]
    _, _, _, train, batch, val, predict, export, onnx = cells
    assert "7 train, 3 val images; 3 classes: bird, cat, dog" in printed(train)
    assert "AP by class: bird" in printed(val)
    assert pictures(batch) == 1 and pictures(predict) == 3
    out = tmp_path / "output" / "notebook"
    assert (out / "report" / "report.html").exists() and (out / "detector.onnx").exists()
    assert printed(onnx).splitlines()[0].split()[0] in kit.CLASSES
