"""The table of detectors and export formats."""

import json
import sys

import pytest
import torch

pytestmark = pytest.mark.export


@pytest.mark.slow
def test_a_cell_of_the_table():
    import export_table

    from d2ext.export import ExactDetector

    model = export_table.detectors()["ExtRetinaNet"]()
    asked, exact = map(export_table.remembering, (model, ExactDetector(model)))
    images = []
    model.register_forward_hook(lambda module, given, output: images.append(given[0]))
    shapes = export_table.shapes_of(2, [1, 2])
    for format in ("onnx", "torchscript"):
        found = export_table.check(asked, exact, format, shapes)
        assert found["box"] <= 1e-3 and found["score"] <= 1e-5 and found["missing"] == 0
        assert found["acceptable"]
        # A detector in float32 is never exact; neither side is off by more than the rounding.
        for side in ("pytorch", "file"):
            assert 0 < found[f"{side}_box"] < 1e-3 and 0 < found[f"{side}_score"] < 1e-5
    assert found["detections"] > 100
    assert len(images) == 4  # two sizes, two images, once for both formats
    assert {tuple(i[0]["image"].shape[-2:]) for i in images} == {size for size, _ in shapes}
    assert not torch.equal(images[0][0]["image"], images[1][0]["image"])


def test_finished_cells_are_kept(tmp_path, monkeypatch, capsys):
    """A second run measures only what is missing, and writes the same tables into the page."""
    import export_table

    asked = []
    row = {"box": 2e-3, "score": 3e-6, "missing": 0, "detections": 9, "acceptable": True}
    far = {f"{side}_{key}": row[key] for side in ("pytorch", "file") for key in ("box", "score")}

    def check(model, exact, format, shapes):
        asked.append(format)
        return {"sentence": "No."} if format == "program" else {**row, **far}

    monkeypatch.setattr(export_table, "check", check)
    monkeypatch.setattr(export_table, "detectors", lambda: {"small": lambda: torch.nn.Identity()})
    monkeypatch.setattr("d2ext.export.ExactDetector", torch.nn.Sequential)
    page, cells = tmp_path / "page.md", tmp_path / "output" / "cells.json"
    marks = [f"<!-- {what} {name} -->" for name in ("export", "exact") for what in ("begin", "end")]
    page.write_text("\n".join(marks))
    words = ["export_table.py", "--page", str(page), "--cells", str(cells)]
    for formats in (["onnx"], ["onnx", "program"]):
        monkeypatch.setattr(sys, "argv", [*words, "--formats", *formats])
        export_table.main()
    assert asked == ["onnx", "program"] and len(json.loads(cells.read_text())) == 2
    assert "| small | **2.0e-03 px**, 3.0e-06; 0 of 9 differ | No. |" in page.read_text()
    assert "| small | 2.0e-03 px, 3.0e-06 | 2.0e-03 px, 3.0e-06 |" in page.read_text()


def test_sizes_and_batches():
    import export_table

    shapes = export_table.shapes_of(20, [1, 2, 3, 4])
    assert len(shapes) == len(set(shapes)) == 80 and len({size for size, _ in shapes}) == 20
    assert all(129 <= side < 260 for size, _ in shapes for side in size)
    thin = export_table.shapes_of(20, [1, 2, 3, 4], in_turn=True)
    assert set(thin) < set(shapes) and [batch for _, batch in thin] == [1, 2, 3, 4] * 5
