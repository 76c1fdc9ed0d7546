"""The fragments of adaptive loss weights add up to what their names say, on any detector."""

from itertools import product

import pytest

from d2ext import model_zoo
from d2ext.engine.hooks import build_loss_weights

DETECTORS = (
    "COCO/faster_rcnn_R_50_FPN_1x", "COCO/mask_rcnn_R_50_FPN_1x", "COCO/retinanet_R_50_FPN_1x",
    "VOC/faster_rcnn_R_50_FPN", "VOC/retinanet_R_50_FPN",
)  # fmt: skip
BOX_LOSSES = {"SmoothL1": ("smooth_l1", 1.0), "CIoU": ("ciou", None), "L1": ("smooth_l1", 0)}
RULES = ("1", "2", "recommended")


def test_the_fragments_are_complete():
    found = {n for n in model_zoo.list_fragments() if n.startswith("ALWA/")}
    names = [f"Base-ALWA-{rule}" for rule in RULES] + [f"Base-{loss}" for loss in BOX_LOSSES]
    names += ["Base-authors", "Base-authors-VOC"]
    assert found == {f"ALWA/{name}.yaml" for name in names}


@pytest.mark.parametrize("name", model_zoo.list_configs("ALWA/*_authors.yaml"))
def test_the_authors_weigh_the_rpn_or_the_dense_head_of_each_rank(name):
    cfg = model_zoo.get_config(name)
    assert build_loss_weights(cfg).sync is False and cfg.SOLVER.ALWA.GROUPS == ["auto"]
    assert cfg.MODEL.RPN.SMOOTH_L1_BETA == 0 and cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE == "smooth_l1"
    assert cfg.MODEL.RESNETS.NORM == "EvalBN" and cfg.SOLVER.IMS_PER_BATCH == 8


@pytest.mark.parametrize(("detector", "loss", "rule"), list(product(DETECTORS, BOX_LOSSES, RULES)))
def test_a_combination_does_what_its_names_say(detector, loss, rule):
    cfg = model_zoo.get_config(detector, f"ALWA/Base-{loss}", f"ALWA/Base-ALWA-{rule}")
    machine = build_loss_weights(cfg).make_weighting()
    recommended = rule == "recommended"
    assert machine.variant == (1 if rule == "1" else 2) and machine.interval == 100
    assert machine.stats_on == ("raw" if recommended else "weighted")
    assert machine.min_weight == (0.1 if recommended else 0.0)
    assert machine.start_iter == (1000 if recommended else 0)
    kind, beta = BOX_LOSSES[loss]
    if "retinanet" in detector:
        heads = [(cfg.MODEL.RETINANET, "SMOOTH_L1_LOSS_BETA")]
        assert cfg.MODEL.META_ARCHITECTURE == "ExtRetinaNet"
    else:
        heads = [(cfg.MODEL.RPN, "SMOOTH_L1_BETA"), (cfg.MODEL.ROI_BOX_HEAD, "SMOOTH_L1_BETA")]
        assert ("mask" in detector) == cfg.MODEL.MASK_ON
    for node, key in heads:
        assert kind == node.BBOX_REG_LOSS_TYPE and (beta is None or node[key] == beta)
    assert cfg.DATASETS.TRAIN[0].startswith(detector.split("/")[0].lower())


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_demo(detector):
    cfg = model_zoo.get_config(f"Demo/{detector}_alwa_shapes")
    machine = build_loss_weights(cfg).make_weighting()
    assert (machine.interval, machine.start_iter, machine.stats_on) == (50, 150, "raw")
    assert cfg.DATASETS.TRAIN == ("d2ext_shapes_train",)
