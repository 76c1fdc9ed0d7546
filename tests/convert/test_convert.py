"""Checkpoints of synthetic models: what the authors' modules compute, with weights we convert.

The vectors hold weights and outputs of the authors' own classes (United-Perception, Sampling-Free's
maskrcnn-benchmark, mmdetection 2.3) on one image.
"""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from golden_kit import golden

from d2ext import get_cfg
from d2ext.convert import SOURCES, ConvertError, convert_checkpoint
from d2ext.convert.maskrcnn_benchmark import by_scale_and_ratio

NARROW = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.WIDTH_PER_GROUP", 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
    "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 32,
]  # fmt: skip
MMDET = ["MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"]
CASES = {
    "united_perception_efl_r50": (
        "efl",
        "configs/EqualizedFocalLoss/improved_baseline_R_50_FPN_24e_efl.yaml",
        ["MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.FPN.OUT_CHANNELS", 64],
    ),
    "mb_retinanet_r50": (
        "sampling-free",
        "configs/SamplingFree/retinanet_R_50_FPN_1x_authors.yaml",
        [],
    ),
    "mb_mask_r50": (
        "maskrcnn-benchmark",
        "configs/SamplingFree/mask_rcnn_R_50_FPN_1x_authors.yaml",
        [],
    ),
    "mmdet_retinanet_r50": (
        "mmdet",
        "configs/COCO/retinanet_R_50_FPN_1x.yaml",
        [*MMDET, "MODEL.BACKBONE.NAME", "build_mmdet_retinanet_resnet_fpn_backbone"],
    ),
    "mmdet_eqlv2_mask_r50": (
        "eqlv2",
        "configs/COCO/mask_rcnn_R_50_FPN_1x.yaml",
        [*MMDET, "MODEL.ROI_BOX_HEAD.CLS_LOSS", "eqlv2", "MODEL.EQLV2.OBJECTNESS", True],
    ),
}


class Case:
    """A converted model and what its authors' modules computed."""

    def __init__(self, name):
        self.source, path, words = CASES[name]
        self.arrays = golden("checkpoints", name)
        self.cfg = get_cfg()
        self.cfg.merge_from_file(path)
        self.cfg.merge_from_list([*NARROW, *words])
        for node in ("RETINANET", "ATSS", "ROI_HEADS"):
            self.cfg.MODEL[node].NUM_CLASSES = int(self.arrays["num_classes"])
        self.state = {
            key[len("ckpt/") :]: torch.from_numpy(self.arrays[key]).float()
            for key in self.arrays
            if key.startswith("ckpt/")
        }
        # The epsilon that their normalisation lacks moves the maps by some 5e-5.
        self.tolerance = 1e-5 if name.startswith("mb") else 1e-4

    def model(self):
        converted, self.report = convert_checkpoint(self.state, self.source, self.cfg)
        model = build_model(self.cfg).eval()
        left = model.load_state_dict(converted, strict=False)
        kept = [name for name in self.report.kept if not name.endswith("num_batches_tracked")]
        assert not left.unexpected_keys and sorted(left.missing_keys) == sorted(kept)
        return model

    def image(self):
        image = torch.from_numpy(self.arrays["image_rgb_uint8"]).permute(2, 0, 1).float()
        if "pixel_mean_bgr" in self.arrays:
            mean = torch.from_numpy(self.arrays["pixel_mean_bgr"]).float()
            return (image.flip(0) - mean.view(3, 1, 1))[None]
        mean, std = (
            torch.tensor(self.cfg.MODEL[f"PIXEL_{x}"]).view(3, 1, 1) for x in ("MEAN", "STD")
        )
        if std.min() == 1:  # the config's own are Caffe's
            mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
            std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
        return ((image - mean) / std)[None]

    def check(self, actual, key, change=None):
        expected = torch.from_numpy(self.arrays[key]).double()
        expected = expected if change is None else change(expected)
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error <= self.tolerance, (key, float(error))


@pytest.mark.parametrize(
    "name", ["united_perception_efl_r50", "mb_retinanet_r50", "mmdet_retinanet_r50"]
)
@torch.no_grad()
def test_dense_detectors(name):
    case = Case(name)
    model = case.model()
    maps = model.backbone(case.image())
    names = model.head_in_features
    predictions = model.head([maps[n] for n in names])
    reorder, checked = None, []
    if "retinanet" in name:
        change = by_scale_and_ratio(case.cfg)
        reorder = lambda x: change(x[0])[None]  # noqa: E731
    for i, level in enumerate(names):
        if level not in case.arrays:
            continue
        case.check(maps[level], level)
        checked.append(level)
        for kind, maps_of_kind in zip(("cls", "box", "iou"), predictions):
            case.check(maps_of_kind[i], f"{kind}_{level}", reorder)
    assert checked[-4:] == ["p4", "p5", "p6", "p7"]


@pytest.mark.parametrize("name", ["mb_mask_r50", "mmdet_eqlv2_mask_r50"])
@torch.no_grad()
def test_region_detectors(name):
    case = Case(name)
    legacy = name.startswith("mb")
    model = case.model()
    maps = model.backbone(case.image())
    rpn, heads = model.proposal_generator, model.roi_heads
    objectness, deltas = rpn.rpn_head([maps[n] for n in rpn.in_features])
    names = list(enumerate(rpn.in_features))[2:]
    for i, level in names:
        case.check(objectness[i], f"objectness_{level}")
        case.check(deltas[i], f"rpn_box_{level}")
    boxes = torch.from_numpy(case.arrays["rois_legacy" if legacy else "rois"]).float()
    if legacy:  # theirs end with their last pixel
        boxes = boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])
    pooled = heads.box_pooler([maps[n] for n in heads.box_in_features], [Boxes(boxes)])
    case.check(pooled, "box_pooled")
    scores, box = heads.box_predictor(heads.box_head(pooled))
    case.check(
        scores, "roi_cls", (lambda x: torch.cat((x[:, 1:], x[:, :1]), 1)) if legacy else None
    )
    case.check(box, "roi_box", (lambda x: x[:, 4:]) if legacy else None)
    features = [maps[n] for n in heads.mask_in_features]
    pooled = heads.mask_pooler(features, [Boxes(boxes[:6])])
    case.check(
        heads.mask_head.layers(pooled), "mask_logits", (lambda x: x[:, 1:]) if legacy else None
    )


def test_statistics_of_efl_are_taken_over():
    case = Case("united_perception_efl_r50")
    model = case.model()
    loss = model.criterion.cls_loss
    for name in ("pos_grad", "neg_grad", "pos_neg"):
        assert torch.equal(getattr(loss, name), case.state[f"post_process.cls_loss.{name}"])
    case.cfg.MODEL.DENSE.CLS_LOSS = "focal"
    assert any("pos_neg" in n for n in (case.model(), case.report.dropped)[1])


def test_what_surrounds_a_model_in_a_file():
    case = Case("mb_retinanet_r50")
    plain, _ = convert_checkpoint(case.state, case.source, case.cfg)
    parallel = {f"module.{k}": v for k, v in case.state.items()}
    for checkpoint in (
        {"model": parallel, "optimizer": {"state": {}}, "iteration": 3},
        {"state_dict": case.state, "meta": {"epoch": 1}},
        {"model": {"x": torch.zeros(1)}, "ema": {"ema_state_dict": parallel}},
    ):
        again, _ = convert_checkpoint(checkpoint, case.source, case.cfg)
        assert again.keys() == plain.keys()
        assert all(torch.equal(again[k], plain[k]) for k in plain)


@pytest.mark.parametrize(
    "change, words, message",
    [
        ({}, ["MODEL.RETINANET.NUM_CLASSES", 7], "another shape .*same number of classes"),
        ({}, ["MODEL.RESNETS.DEPTH", 101], "is not in the checkpoint .*depth and width"),
        ({"rpn.head.extra.weight": torch.zeros(1)}, [], "not a parameter of maskrcnn-benchmark"),
        ({"backbone.body.layer4.9.conv1.weight": torch.zeros(1)}, [], "has no place in the model"),
    ],
)
def test_refusals(change, words, message):
    case = Case("mb_retinanet_r50")
    case.cfg.merge_from_list(words)
    with pytest.raises(ConvertError, match=message):
        convert_checkpoint({**case.state, **change}, case.source, case.cfg)


def test_a_word_for_every_source():
    case = Case("mb_retinanet_r50")
    with pytest.raises(ConvertError, match="choose one of dw, efl, eqlv2"):
        convert_checkpoint(case.state, "keras", case.cfg)
    with pytest.raises(ConvertError, match="holds no tensors"):
        convert_checkpoint({"epoch": 3}, "mmdet", case.cfg)
    assert set(SOURCES) == {
        "dw", "efl", "eqlv2", "maskrcnn-benchmark", "mmdet", "sampling-free", "yolox",
    }  # fmt: skip


def test_learned_scales_and_names_of_mmdetection_1():
    """LWS' factors go into the weights; backgrounds of the first version come first."""
    case = Case("mmdet_eqlv2_mask_r50")
    plain, _ = convert_checkpoint(case.state, "mmdet", case.cfg)
    name = "roi_head.bbox_head.fc_cls.weight"
    factor = torch.rand(len(case.state[name]), 1) + 0.5
    scaled = {**case.state, name.replace("weight", "weight_scaler"): factor}
    again, _ = convert_checkpoint(scaled, "mmdet", case.cfg)
    ours = "roi_heads.box_predictor.cls_score.weight"
    assert torch.allclose(again[ours], plain[ours] * factor)
    old = {k.replace("roi_head.", ""): v for k, v in case.state.items()}
    for k in ("bbox_head.fc_cls.weight", "bbox_head.fc_cls.bias"):
        old[k] = torch.cat((old[k][-1:], old[k][:-1]))
    for k in ("bbox_head.fc_reg.weight", "bbox_head.fc_reg.bias"):
        old[k] = torch.cat((torch.rand_like(old[k][:4]), old[k]))
    again, _ = convert_checkpoint(old, "mmdet", case.cfg)
    assert all(torch.equal(again[k], plain[k]) for k in plain)


def test_maps_with_the_class_first():
    case = Case("united_perception_efl_r50")
    plain, _ = convert_checkpoint(case.state, "efl", case.cfg)
    other = dict(case.state)
    for name, rows in case.state.items():
        if name.startswith(("roi_head.cls_subnet_pred", "roi_head.box_subnet_pred")):
            # Row j * 2 + a of theirs is what we have as a * k + j.
            k = len(rows) // 2
            other[name] = torch.stack([rows[a * k + j] for j in range(k) for a in range(2)])
    again, _ = convert_checkpoint(other, "efl", case.cfg, class_first=True)
    assert all(torch.equal(again[k], plain[k]) for k in plain)
    case = Case("mb_retinanet_r50")
    with pytest.raises(ConvertError, match="class_first is for EFL's improved baseline"):
        convert_checkpoint(case.state, case.source, case.cfg, class_first=True)


def test_an_rpn_with_a_softmax():
    case = Case("mmdet_eqlv2_mask_r50")
    plain, _ = convert_checkpoint(case.state, "mmdet", case.cfg)
    background = torch.Generator().manual_seed(0)
    both = {"first": dict(case.state), "last": dict(case.state)}
    for leaf in ("weight", "bias"):
        name = f"rpn_head.rpn_cls.{leaf}"
        rows = case.state[name]
        other = torch.rand(rows.shape, generator=background)
        for order, state in both.items():
            pair = (other, rows + other) if order == "first" else (rows + other, other)
            state[name] = torch.stack(pair, dim=1).flatten(0, 1)
    for order, state in both.items():
        again, _ = convert_checkpoint(state, "mmdet", case.cfg, rpn_background=order)
        for name in plain:
            torch.testing.assert_close(again[name], plain[name], rtol=0, atol=1e-6)
    with pytest.raises(ConvertError, match=r"two channels .*--rpn-background.* before 2\.5"):
        convert_checkpoint(both["last"], "mmdet", case.cfg)
    with pytest.raises(ConvertError, match="must be first or last"):
        convert_checkpoint(case.state, "mmdet", case.cfg, rpn_background="second")


@pytest.mark.parametrize(
    "name, words",
    [
        ("mb_retinanet_r50", ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0, 3.0]]]),
        ("mb_mask_r50", ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [384]]]),
    ],
)
def test_other_anchors_are_refused(name, words):
    case = Case(name)
    convert_checkpoint(case.state, case.source, case.cfg)
    case.cfg.merge_from_list(words)
    with pytest.raises(ConvertError, match=r"cell_anchors\.\d are .* x .*ANCHOR_GENERATOR.SIZES"):
        convert_checkpoint(case.state, case.source, case.cfg)


def their_modules(mb, kind):
    """Our modules of a dense detector with one anchor a location, and what they are called.

    Args:
        mb: by maskrcnn-benchmark; otherwise by mmdetection.
        kind: what mmdetection's names of the last layers begin with.
    """
    body, head = ("backbone.body", "rpn.head") if mb else ("backbone", "bbox_head")
    stem = f"{body}.stem" if mb else body
    found = {
        "backbone.bottom_up.stem.conv1": f"{stem}.conv1",
        "backbone.bottom_up.stem.conv1.norm": f"{stem}.bn1",
        "head.cls_score": f"{head}.cls_logits" if mb else f"{head}.{kind}_cls",
        "head.bbox_pred": f"{head}.bbox_pred" if mb else f"{head}.{kind}_reg",
        "head.ctrness": f"{head}.centerness" if mb else f"{head}.{kind}_centerness",
    }
    found["head.quality"] = found["head.ctrness"]
    for stage, block in ((stage, block) for stage in range(2, 6) for block in range(6)):
        ours, theirs = f"backbone.bottom_up.res{stage}.{block}", f"{body}.layer{stage - 1}.{block}"
        found[f"{ours}.shortcut"] = f"{theirs}.downsample.0"
        found[f"{ours}.shortcut.norm"] = f"{theirs}.downsample.1"
        for k in (1, 2, 3):
            found[f"{ours}.conv{k}"] = f"{theirs}.conv{k}"
            found[f"{ours}.conv{k}.norm"] = f"{theirs}.bn{k}"
    for level in range(3, 8):
        pair = ("fpn_inner", "fpn_layer") if mb else ("lateral_convs.", "fpn_convs.")
        for ours, theirs in zip(("lateral", "output"), pair):
            number = f"{level - 1}" if mb else f"{level - 3}.conv"
            where = "backbone.fpn" if mb else "neck"
            found[f"backbone.fpn_{ours}{level}"] = f"{where}.{theirs}{number}"
        top = f"backbone.fpn.top_blocks.p{level}" if mb else f"neck.fpn_convs.{level - 3}.conv"
        found[f"backbone.top_block.p{level}"] = top
    for i in range(4):
        for ours, theirs in (("cls", "cls"), ("bbox", "bbox" if mb else "reg")):
            for k, leaf in enumerate(("conv", "gn")):
                layer = f"{theirs}_tower.{3 * i + k}" if mb else f"{theirs}_convs.{i}.{leaf}"
                found[f"head.{ours}_subnet.{3 * i + k}"] = f"{head}.{layer}"
    return found, head


@pytest.mark.parametrize("meta, prefix", [("fcos", "conv"), ("atss", "atss")])
@pytest.mark.parametrize("source", ["sampling-free", "mmdet"])
def test_dense_detectors_of_one_anchor(source, meta, prefix):
    """Every tensor finds its place; the guide of Sampling-Free's last code comes with it."""
    cfg = get_cfg()
    cfg.merge_from_file(f"configs/SamplingFree/{meta}_R_50_FPN_1x_authors.yaml")
    cfg.merge_from_list(NARROW)
    cfg.MODEL.FCOS.NUM_CLASSES = cfg.MODEL.ATSS.NUM_CLASSES = 5
    state = build_model(cfg).state_dict()
    modules, head = their_modules(source == "sampling-free", prefix)
    theirs = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if module == "head.scales":
            theirs[f"{head}.scales.{leaf}.scale"] = value.reshape(1)
        elif module in modules and leaf != "num_batches_tracked":
            theirs[f"{modules[module]}.{leaf}"] = value
    guide = {}
    if source == "sampling-free":
        guide = {"sigmas": torch.rand(3), "ratio": torch.tensor([0.5]), "iters": torch.ones(1)}
    given = {f"rpn.loss_evaluator.guided_loss.{k}": v for k, v in guide.items()}
    found, _ = convert_checkpoint({**theirs, **given}, source, cfg)
    for name, value in state.items():
        if name.startswith(("head.", "backbone.fpn", "backbone.top")):
            assert torch.equal(found[name], value), name
    if guide:
        assert torch.equal(found["criterion.guide.sigma"], guide["sigmas"])
        assert found["criterion.guide.iters"] == 1 and found["criterion.guide.ratio"] == 0.5
