"""Two-stage models with our heads go through Detectron2's own exporter."""

import pytest
import torch
from model_kit import build, make_batch, small_cfg
from torch.nn import ModuleList

from d2ext.export import trace_two_stage
from d2ext.model_zoo import get_config_file

pytestmark = pytest.mark.export


@pytest.mark.parametrize(
    "name",
    [
        "COCO/faster_rcnn_R_50_FPN_1x",
        pytest.param("COCO/cascade_mask_rcnn_R_50_FPN_1x", marks=pytest.mark.slow),
        "SamplingFree/faster_rcnn_R_50_FPN_1x",
    ],
)
def test_torchscript_equals_eager(name, tmp_path):
    model = build(small_cfg(get_config_file(name), ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.01]))
    with torch.no_grad():
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if isinstance(predictors, ModuleList) else [predictors]:
            predictor.cls_score.weight.mul_(20)
    images = [item["image"].float() for item in make_batch((1, 1), size=128)]
    path = tmp_path / "model.ts"
    _, schema = trace_two_stage(model, path, images[0])
    traced = torch.jit.load(path)
    for image in images:  # of two sizes
        with torch.no_grad():
            found = schema(traced(image))[0]["instances"]
            expected = model.inference([{"image": image}], do_postprocess=False)[0]
        assert len(expected) > 0
        assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3)
        assert torch.allclose(found.scores, expected.scores, atol=1e-5)
