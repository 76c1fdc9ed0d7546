"""Exported two-stage detectors against the detectors themselves."""

import pytest
import torch
from export_kit import unknown_to_tensorrt
from model_kit import build, small_cfg
from torch.nn import ModuleList

from d2ext import export
from d2ext.model_zoo import get_config_file

pytestmark = pytest.mark.export

CONFIGS = {
    "faster": "COCO/faster_rcnn_R_50_FPN_1x",
    "mask": "COCO/mask_rcnn_R_50_FPN_1x",
    "cascade": "COCO/cascade_mask_rcnn_R_50_FPN_1x",
    "sampling-free": "SamplingFree/faster_rcnn_R_50_FPN_1x_authors",
}
SIZES = ((160, 224), (193, 151))


def two_stage(name, *words):
    words = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.01, *words]
    model = build(small_cfg(get_config_file(CONFIGS[name]), words)).eval()
    with torch.no_grad():
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if isinstance(predictors, ModuleList) else [predictors]:
            predictor.cls_score.weight.mul_(1.2)
    return model


@pytest.mark.parametrize(
    "name, suffix, words",
    [
        ("faster", ".onnx", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]),
        ("mask", ".ts", []),
        pytest.param("cascade", ".onnx", [], marks=pytest.mark.slow),
        ("sampling-free", ".onnx", []),
        ("faster", ".onnx", ["MODEL.ROI_BOX_HEAD.CLS_LOSS", "eqlv2", "MODEL.EQLV2.OBJECTNESS",
                             True]),
    ],
)  # fmt: skip
def test_equals_eager(name, suffix, words, tmp_path):
    model = two_stage(name, *words)
    path = tmp_path / f"model{suffix}"
    graph = export.export(model, path)
    assert suffix == ".ts" or not unknown_to_tensorrt(path)
    run, _ = export.load_exported(path)
    for batch in (1, 2):
        found = export.compare(model, graph, run, sizes=SIZES, batch=batch)
        assert found["detections"] > 5
        assert found.acceptable(box=1e-3, score=1e-5), found


def test_masks(tmp_path):
    model = two_stage("mask")
    path = tmp_path / "model.onnx"
    export.export(model, path)
    assert not unknown_to_tensorrt(path)
    item = {"image": torch.rand(3, 160, 192) * 255, "height": 320, "width": 384}
    with torch.no_grad():
        own = model([item])[0]["instances"]
        other = export.ExportedModel(path)([item])[0]["instances"]
    assert len(own) == len(other) > 0
    assert other.pred_masks.shape == (len(own), 320, 384)
    assert (own.pred_masks != other.pred_masks).float().mean() < 1e-4


def test_without_nms_is_refused(tmp_path):
    with pytest.raises(ValueError, match="two-stage detector cannot be exported without NMS"):
        export.export(two_stage("faster"), tmp_path / "model.onnx", with_nms=False)
