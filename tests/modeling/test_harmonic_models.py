"""The harmonic coupling in detectors: each place, beside other methods, and off."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from model_kit import WIDE, build, make_batch, small_cfg, train_step

RETINANET = "configs/COCO/retinanet_R_50_FPN_1x.yaml"
FASTER = "configs/COCO/faster_rcnn_R_50_FPN_1x.yaml"
ON = ["MODEL.HARMONIC.ENABLED", True]
NO_PART = ["MODEL.HARMONIC.COUPLE", False, "MODEL.HARMONIC.ALPHA_HIOU", 0.0,
           "MODEL.HARMONIC.TC.WEIGHT", 0.0]  # fmt: skip
NO_PLACE = ["MODEL.HARMONIC.ON_DENSE", False, "MODEL.HARMONIC.ON_ROI", False]


@pytest.mark.parametrize("path", [RETINANET, FASTER])
@pytest.mark.parametrize("off", [NO_PART, NO_PLACE])
def test_off_is_identical(path, off):
    results = []
    for overrides in ((), [*ON, *off]):
        results.append(train_step(build(small_cfg(path, overrides)), make_batch(size=64)))
    (losses, grads), (other_losses, other_grads) = results
    assert list(losses) == list(other_losses)
    assert all(torch.equal(losses[k], other_losses[k]) for k in losses)
    assert all(torch.equal(grads[k], other_grads[k]) for k in grads)


@pytest.mark.parametrize(
    "path, overrides, names",
    [
        (RETINANET, [], ["loss_cls", "loss_box_reg", "loss_tc"]),
        ("configs/COCO/fcos_R_50_FPN_1x.yaml", ["MODEL.HARMONIC.ALPHA_HIOU", 0.0],
         ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", "loss_fcos_tc"]),
        ("configs/COCO/atss_R_50_FPN_1x.yaml", ["MODEL.DENSE.BOX_LOSS", "harmonic_iou"],
         ["loss_cls", "loss_box_reg", "loss_quality", "loss_tc"]),
        (FASTER, ["MODEL.HARMONIC.ON_RPN", True],
         ["loss_rpn_cls", "loss_rpn_loc", "loss_rpn_tc", "loss_cls", "loss_box_reg", "loss_tc"]),
        (FASTER, ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True,
                  "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True,
                  "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 4],
         ["loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_tc"]),
    ],
    ids=["retinanet", "fcos", "atss", "rpn", "federated"],
)  # fmt: skip
def test_models_train(path, overrides, names, monkeypatch):
    if "MODEL.ROI_BOX_HEAD.USE_FED_LOSS" in overrides:
        frequencies = torch.tensor([1.0, 5.0, 20.0, 3.0, 4.0, 9.0])
        monkeypatch.setattr(
            "detectron2.modeling.roi_heads.fast_rcnn.get_fed_loss_cls_weights",
            lambda **kwargs: frequencies,
        )
    num_classes = 6
    # Without a margin, since an untrained dense head has hardly a score or an overlap to differ.
    overrides = [*ON, "MODEL.HARMONIC.TC.MARGIN", 0.0, *overrides]
    cfg = small_cfg(path, overrides, num_classes=num_classes)
    losses, grads = train_step(build(cfg), make_batch((3, 0), size=64, num_classes=num_classes))
    assert sorted(losses) == sorted(names)
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_the_weight_of_the_rpn_holds_for_all_its_losses():
    words = [*ON, "MODEL.HARMONIC.ON_RPN", True, "MODEL.HARMONIC.TC.MARGIN", 0.0]
    full, half = (
        train_step(build(small_cfg(FASTER, [*words, "MODEL.RPN.LOSS_WEIGHT", w])), make_batch())[0]
        for w in (1.0, 0.5)
    )
    for name, value in full.items():
        torch.testing.assert_close(half[name], value * (0.5 if "rpn" in name else 1.0))


@pytest.mark.parametrize("cls_loss", ["bce", "efl"])
def test_with_sampling_free(cls_loss):
    """The guide scales the class loss that the coupling has added to; the third loss stays."""
    overrides = ["MODEL.DENSE.CLS_LOSS", cls_loss, *ON]
    guided = ["MODEL.SAMPLING_FREE.ENABLED", True, "MODEL.SAMPLING_FREE.PRIOR", 0.01,
              "MODEL.SAMPLING_FREE.REG_NORM", "native"]  # fmt: skip
    models = [build(small_cfg(RETINANET, [*overrides, *more])) for more in ([], guided)]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    (plain, _), (scaled, grads) = (train_step(model, make_batch()) for model in models)
    assert scaled["loss_box_reg"] == plain["loss_box_reg"]
    assert scaled["loss_tc"] == plain["loss_tc"]
    torch.testing.assert_close(scaled["loss_cls"], plain["loss_box_reg"])
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_each_cascade_stage_is_coupled_by_itself():
    # Wide, or the last stage has no positive sample.
    words = [*ON, *WIDE, "MODEL.MASK_ON", False]
    cfg = small_cfg("configs/COCO/cascade_mask_rcnn_R_50_FPN_1x.yaml", words)
    model = build(cfg)
    criteria = [p.criterion for p in model.roi_heads.box_predictor]
    assert len({id(c.coupling) for c in criteria}) == 3
    for criterion in criteria:
        criterion.log_period = 1
    model.train()
    with EventStorage() as storage:
        losses = model(make_batch(size=64))
    assert {f"loss_tc_stage{k}" for k in range(3)} <= set(losses)
    logged = {k for k in storage.histories() if "harmonic" in k}
    assert {f"stage{k}/harmonic/roi/beta_r" for k in range(3)} <= logged


def test_state_dict_and_inference_are_untouched():
    plain, coupled = build(small_cfg(RETINANET)), build(small_cfg(RETINANET, ON))
    assert list(plain.state_dict()) == list(coupled.state_dict())
    batch = make_batch(size=64)
    with torch.no_grad():
        a, b = plain.eval()(batch), coupled.eval()(batch)
    for x, y in zip(a, b):
        assert torch.equal(x["instances"].pred_boxes.tensor, y["instances"].pred_boxes.tensor)
