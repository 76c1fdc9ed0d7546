"""Exported dense detectors against the detectors themselves, on images of several sizes."""

import copy
import json

import numpy as np
import pytest
import torch
from export_kit import DENSE, spread_detector

from d2ext import export
from d2ext.cli import main
from d2ext.export.check import match
from d2ext.export.detector import _round_down
from d2ext.modeling.meta_arch import ExtFCOS
from d2ext.modeling.meta_arch.dense import best_of_level

pytestmark = pytest.mark.export

# A map of one cell has group norms over two numbers, in which rounding decides; so above 128.
SIZES = ((160, 224), (193, 151), (135, 258))


@pytest.fixture(scope="module", params=sorted(DENSE))
def detector(request):
    return spread_detector(request.param)


@pytest.mark.parametrize("with_nms", [True, False], ids=["nms", "raw"])
@pytest.mark.parametrize("suffix", [".onnx", ".ts"])
def test_equals_eager_at_every_size(detector, tmp_path, suffix, with_nms):
    path = tmp_path / f"detector{suffix}"
    write = export.export_onnx if suffix == ".onnx" else export.export_torchscript
    write(detector, path, with_nms=with_nms)
    run = export.load_exported(path)
    found = export.compare(detector, run, with_nms=with_nms, sizes=SIZES)
    assert found["detections"] > 30
    badly = isinstance(detector, ExtFCOS) and not with_nms
    score = score_limit(detector, SIZES) if badly else 1e-5
    assert found.acceptable(box=1e-3, score=score), found


def score_limit(detector, sizes):
    """1e-5, or twice what PyTorch's float32 is itself away from its float64.

    With these random weights a few of FCOS' unselected scores are badly conditioned, and each
    runtime adds up its sums in another order.
    """
    single = export.InferenceDetector(detector, with_nms=False)
    double = export.InferenceDetector(copy.deepcopy(detector).double(), with_nms=False)
    generator = torch.Generator().manual_seed(0)
    own = 0.0
    for size in sizes:
        image = torch.rand(3, *size, generator=generator) * 255
        with torch.no_grad():
            error = (single(image)[1].double() - double(image.double())[1]).abs().max()
        own = max(own, float(error))
    assert own < 1e-3
    return max(1e-5, 2 * own)


@pytest.mark.slow
def test_torch_export_of_one_size(detector, tmp_path):
    path = tmp_path / "detector.pt2"
    export.export_program(detector, path, size=(160, 192))
    run = export.load_exported(path)
    found = export.compare(detector, run, with_nms=False, sizes=[(160, 192)])
    score = score_limit(detector, [(160, 192)]) if isinstance(detector, ExtFCOS) else 1e-5
    assert found.acceptable(box=1e-3, score=score), found
    assert found["detections"] > 100


def test_one_threshold_a_class_comes_before_the_best_are_taken():
    detector = export.InferenceDetector(spread_detector("ExtRetinaNet"))
    scores = torch.rand(40, detector.num_classes)
    boxes, detector.topk = torch.rand(40, 4), 15
    detector.threshold = torch.linspace(0.99, 0.1, detector.num_classes)
    prior, label, best = best_of_level(scores, detector.threshold, detector.topk)
    assert (scores > scores[prior, label].min()).sum() > 15  # others would have been in the way
    for found, wanted in zip(detector._best(boxes, scores), (boxes[prior], best, label)):
        assert torch.equal(found, wanted)


def test_nothing_is_found(tmp_path):
    detector = spread_detector("DualWeightingFCOS")
    detector.test_score_thresh = 0.999
    path = tmp_path / "detector.onnx"
    export.export_onnx(detector, path)
    boxes, scores, classes = export.load_exported(path)(torch.zeros(3, 160, 160))
    assert boxes.shape == (0, 4) and scores.shape == (0,) and classes.shape == (0,)


def test_no_training_state_inside():
    """No loss, assigner, running statistic or threshold of training is part of the export."""
    words = ["MODEL.DENSE.CLS_LOSS", "efl"]
    detector = spread_detector("ExtRetinaNet", words)
    state = set(export.InferenceDetector(detector).state_dict())
    assert any("pos_grad" in key for key in detector.state_dict())
    assert not any("criterion" in key or "normalizer" in key for key in state)
    own = {"pixel_mean", "pixel_std", "threshold"}
    assert state - own <= set(detector.state_dict())


def test_threshold_a_class():
    detector = spread_detector("ExtFCOS")
    detector.score_thresholds = lambda fixed: torch.tensor([0.05, 0.9, 0.05])
    module = export.InferenceDetector(detector)
    with torch.no_grad():
        image = torch.rand(3, 160, 160, generator=torch.Generator().manual_seed(0)) * 255
        found = match(
            [x.numpy() for x in _tensors(detector([{"image": image}])[0]["instances"])],
            [x.numpy() for x in module(image)],
        )
    assert found["missing"] == 0 and found["detections"] > 0, found


def _tensors(found):
    return found.pred_boxes.tensor, found.scores, found.pred_classes


def test_threshold_of_nms_is_not_rounded_up():
    assert float(np.float32(0.6)) > 0.6 and _round_down(0.6) <= 0.6
    assert _round_down(0.5) == 0.5


def test_comparison_notices_differences():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 9, 9]], np.float32)
    scores, classes = np.array([0.9, 0.5], np.float32), np.array([1, 0])
    same = match((boxes, scores, classes), (boxes[::-1], scores[::-1], classes[::-1]))
    assert same == {"box": 0.0, "score": 0.0, "missing": 0.0, "detections": 2.0}
    assert match((boxes, scores, classes), (boxes + 1, scores, classes))["box"] == 1.0
    assert match((boxes, scores, classes), (boxes, scores, 1 - classes))["missing"] == 2
    assert match((boxes, scores, classes), (boxes[:1], scores[:1], classes[:1]))["missing"] > 0


def test_two_stage_models_are_refused():
    with pytest.raises(TypeError, match="TracingAdapter"):
        export.InferenceDetector(torch.nn.Linear(1, 1))


def test_command_exports_and_checks(tmp_path, capsys):
    output = tmp_path / "fcos.onnx"
    words = ["export", "--config-file", "Demo/fcos_shapes", "--output", str(output)]
    assert main(words) == 0
    assert "compared with PyTorch on 4 image sizes" in capsys.readouterr().out
    about = json.loads((tmp_path / "fcos.onnx.json").read_text())
    assert about["channel_order"] == "BGR" and len(about["class_names"]) == 20
    assert main([*words, "--format", "program"]) == 1
    assert "add --no-nms" in capsys.readouterr().err


@pytest.mark.parametrize("network", ["tf_efficientnet_lite0", "convnext_atto"])
def test_networks_of_timm_export(network, tmp_path):
    words = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]
    detector = spread_detector("ExtRetinaNet", [*words, "MODEL.TIMM.NAME", network])
    path = tmp_path / "detector.onnx"
    export.export_onnx(detector, path)
    found = export.compare(detector, export.load_exported(path), sizes=SIZES)
    assert found["detections"] > 30
    assert found.acceptable(box=1e-3, score=1e-5), found
