"""OpenVINO files of fewer bits: which operators are rounded, and what AP is told."""

import json

import numpy as np
import openvino
import pytest
import torch
from export_kit import spread_detector

from d2ext import export
from d2ext.cli import main
from d2ext.data import tiny_dataset
from d2ext.export.check import noise_image
from d2ext.export.quantize import quantize, untouched

pytestmark = pytest.mark.export


def images(count, size=(160, 224)):
    generator = torch.Generator().manual_seed(0)
    return [noise_image(size, generator)[None].numpy() for _ in range(count)]


@pytest.mark.slow
def test_fewer_bits_move_boxes_little(tmp_path):
    detector = spread_detector("ExtFCOS", ["MODEL.FCOS.IN_FEATURES", ["p3", "p4"]])
    found = {}
    for precision in export.PRECISIONS:
        path = tmp_path / f"{precision}.xml"
        options = {"precision": precision, "calibration": images(2)}
        export.export(detector, path, with_nms=False, **options)
        run, about = export.load_exported(path)
        found[precision] = run(images(1)[0])
        assert about["precision"] == precision
    for precision, pixels, score in (("fp16", 0.01, 1e-3), ("int8", 1.0, 0.05)):
        # Means: random weights have a few scores that turn with the last digit.
        boxes, scores = (np.abs(a - b).mean() for a, b in zip(found[precision], found["fp32"]))
        assert 0 < boxes < pixels and 0 < scores < score, (precision, boxes, scores)
    sizes = {p: (tmp_path / f"{p}.bin").stat().st_size for p in found}
    assert sizes["fp16"] < 0.6 * sizes["fp32"] and sizes["int8"] < 0.4 * sizes["fp32"]


def test_boxes_and_scores_are_left_alone(tmp_path):
    path = tmp_path / "detector.xml"
    export.export(spread_detector("ExtRetinaNet"), path)
    model = openvino.Core().read_model(path)
    kinds = {op.get_friendly_name(): op.get_type_name() for op in model.get_ops()}
    names = set(untouched(model))
    left = {kinds[name] for name in names}
    assert {"NonMaxSuppression", "TopK", "Exp", "Divide", "Pad"} <= left
    assert not {"Convolution", "MVN"} & left
    layers = list(kinds.values()).count("Convolution")
    assert layers > 20 and "Exp" not in [k for n, k in kinds.items() if n not in names]


def test_int8_needs_images_and_openvino(tmp_path):
    with pytest.raises(ValueError, match="int8 needs images to measure activations on"):
        quantize(None, [])
    with pytest.raises(ValueError, match="all but fp32 need the format openvino"):
        export.export(spread_detector("ExtRetinaNet"), tmp_path / "d.onnx", precision="int8")


@pytest.mark.slow
def test_the_command_tells_ap_before_and_after(tmp_path, capsys):
    # Data drawn here: the built-in set has 2500 images.
    with tiny_dataset("coco", num_images=4, num_classes=20) as name:
        own = tmp_path / "own.yaml"
        own.write_text(f"DATASETS: {{TRAIN: ['{name}']}}\nINPUT: {{MIN_SIZE_TEST: 96}}\n")
        words = ["export", "--config-file", "Demo/fcos_shapes", "--config-file", str(own)]
        words += ["--dataset", name, "--precision", "int8", "--images", "2", "--json"]
        assert main([*words, "--output", str(tmp_path / "fcos.xml")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["AP"]) == {"before", "after"} and found["dataset"] == name
