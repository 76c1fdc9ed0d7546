"""The table of detectors and export formats."""

import pytest
import torch

pytestmark = pytest.mark.export


@pytest.mark.slow
def test_a_cell_of_the_table():
    import export_table

    build = export_table.detectors()["ExtRetinaNet"]
    asked = export_table.remembering(build())
    images = []
    asked.model.register_forward_hook(lambda module, given, output: images.append(given[0]))
    sizes = export_table.sizes_of(2)
    for format in ("onnx", "torchscript"):
        found = export_table.check(asked, format, sizes, [1, 2])
        assert found["box"] <= 1e-3 and found["score"] <= 1e-5 and found["missing"] == 0
    assert found["detections"] > 100
    assert len(images) == 4  # two sizes, two images, once for both formats
    assert {tuple(i[0]["image"].shape[-2:]) for i in images} == set(sizes)
    assert not torch.equal(images[0][0]["image"], images[1][0]["image"])
