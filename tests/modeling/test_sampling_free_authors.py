"""What Sampling-Free's authors do otherwise than Detectron2, against plain forms of their rules."""

import math

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from model_kit import build, make_batch, small_cfg, train_step
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from d2ext.export.graphs import graph_of
from d2ext.modeling.assigners.center import CenterAssigner
from d2ext.modeling.last_pixel import RoundedAnchorGenerator, pool_to_last_pixel
from d2ext.modeling.targets import Priors, pack_targets

FCOS = "configs/SamplingFree/fcos_R_50_FPN_1x_authors.yaml"
STRIDES = (8, 16, 32, 64, 128)


def test_proposals_are_the_best_of_the_batch():
    words = ["MODEL.PROPOSAL_GENERATOR.NAME", "ExtRPN", "MODEL.RPN.POST_NMS_PER_BATCH", True]
    rpn = build(small_cfg("configs/Base-RCNN-FPN.yaml", words)).train()
    rpn = rpn.proposal_generator
    sizes = [32, 16, 8, 4, 2]
    anchors = rpn.anchor_generator([torch.zeros(1, 1, s, s) for s in sizes])
    logits = [torch.randn(3, len(a)) + torch.tensor([[3.0], [0.0], [-3.0]]) for a in anchors]
    deltas = [torch.randn(3, len(a), 4) * 0.1 for a in anchors]
    inputs = anchors, logits, deltas, [(128, 128), (120, 100), (90, 128)]
    rpn.post_nms_topk = {True: 10**6, False: 10}
    everything = RPN.predict_proposals(rpn, *inputs)
    rpn.post_nms_topk = {True: 40, False: 10}
    found = rpn.predict_proposals(*inputs)
    scores = torch.cat([p.objectness_logits for p in everything])
    least = scores.sort(descending=True).values[3 * 40 - 1]
    assert sum(map(len, found)) == 3 * 40 and len(found[0]) > 40 > len(found[2])
    for ours, all_of_image in zip(found, everything):
        want = all_of_image[all_of_image.objectness_logits >= least]
        assert torch.equal(ours.proposal_boxes.tensor, want.proposal_boxes.tensor)
    # Detections are made of each image's own.
    assert [len(p) for p in rpn.eval().predict_proposals(*inputs)] == [10, 10, 10]


# Width and height in pixels at the size of the stride, for ratios of 0.5 and 2.
ROUNDED = {
    4: ((6, 3), (3, 6)),
    8: ((11, 6), (6, 12)),
    16: ((23, 12), (11, 22)),
    32: ((45, 22), (23, 46)),
    64: ((91, 46), (45, 90)),
    128: ((181, 90), (91, 182)),
}


@pytest.mark.parametrize("stride", ROUNDED)
def test_rounded_anchors(stride):
    sizes = [8.0 * stride, 8.0 * stride * 2 ** (1 / 3)]
    generator = RoundedAnchorGenerator(
        sizes=[sizes], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[stride], offset=0.5
    )
    (anchors,) = generator([torch.zeros(1, 1, 1, 1)])
    wide, tall = ROUNDED[stride]
    want = [(w * s / stride, h * s / stride) for s in sizes for w, h in (wide, (stride,) * 2, tall)]
    sides = anchors.tensor[:, 2:] - anchors.tensor[:, :2]
    torch.testing.assert_close(sides, torch.tensor(want))
    # In boxes that end with their last pixel the centre is at (stride - 1) / 2.
    assert torch.allclose(anchors.get_centers(), torch.full((6, 2), stride / 2))


def test_pooling_ends_with_the_last_pixel():
    maps = [torch.randn(1, 2, 64 // s, 64 // s) for s in (1, 2)]
    pooler = ROIPooler(3, (1 / 4, 1 / 8), 2, "ROIAlign", canonical_box_size=64, canonical_level=3)
    boxes = torch.tensor([[8.0, 8, 40, 30], [3, 5, 200, 210]])
    pool_to_last_pixel(pooler)
    want = [
        roi_align(maps[i], [b[None] - torch.tensor([0, 0, 1, 1])], 3, scale, 2, aligned=False)
        for i, (b, scale) in enumerate(zip(boxes, (1 / 4, 1 / 8)))
    ]
    torch.testing.assert_close(pooler(maps, [Boxes(boxes)]), torch.cat(want))


def first_fcos_labels(points, strides, boxes, classes, background):
    """The first FCOS' rule, place by place: class and distances, which end with the last pixel."""
    ranges = dict(zip(STRIDES, ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))))
    labels, distances = [], []
    for (x, y), stride in zip(points.tolist(), strides.tolist()):
        best = (1e9, background, [0.0] * 4)
        for (x0, y0, x1, y1), label in zip(boxes.tolist(), classes.tolist()):
            ltrb = [x - x0, y - y0, x1 - 1 - x, y1 - 1 - y]
            low, high = ranges[int(stride)]
            area = (x1 - x0) * (y1 - y0)
            if min(ltrb) > 0 and low <= max(ltrb) <= high and area < best[0]:
                best = (area, label, ltrb)
        labels.append(best[1])
        distances.append(best[2])
    return torch.tensor(labels), torch.tensor(distances)


def make_points(size):
    levels = []
    for stride in STRIDES:
        y, x = torch.meshgrid(*[torch.arange(math.ceil(size / stride))] * 2, indexing="ij")
        corner = torch.stack([x, y], dim=-1).flatten(0, 1) * float(stride)
        levels.append(Boxes(torch.cat([corner, corner + stride], dim=1)))
    return levels


def test_the_first_fcos_assignment():
    levels = make_points(512)
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(30, 2, generator=generator) * 400
    boxes = torch.cat([low, low + 4 + torch.rand(30, 2, generator=generator) * 300], dim=1)
    # A side of just 64 pixels is learnt on two levels, and x2 is not in its object.
    boxes = torch.cat([boxes, torch.tensor([[100.0, 100, 205, 205], [4, 4, 13, 13]])])
    instances = Instances((512, 512), gt_boxes=Boxes(boxes), gt_classes=torch.arange(32) % 5)
    priors = Priors.from_boxes(levels, STRIDES)
    assign = CenterAssigner(center_sampling_radius=0.0, last_pixel=True)
    found = assign(priors, pack_targets([instances]), 5)
    want, _ = first_fcos_labels(priors.centers, priors.strides, boxes, instances.gt_classes, 5)
    assert torch.equal(found.labels[0], want) and (want < 5).sum() > 300
    other = CenterAssigner(center_sampling_radius=0.0)(priors, pack_targets([instances]), 5)
    assert (other.labels[0] != want).any()


def test_losses_of_the_authors_fcos():
    model = build(small_cfg(FCOS)).train()
    with torch.no_grad():
        for scale, value in zip(model.head.scales, (0.9, 1.1, 1.2, 0.8, 1.0)):
            scale.fill_(value)
        model.head.bbox_pred.bias.fill_(2.0)
        model.criterion.guide.sigma.copy_(torch.tensor([1.2, 0.9, 1.1]))
    batch = make_batch((3, 2), size=128)
    losses, _ = train_step(model, batch)
    images = model.preprocess_image(batch)
    features = [model.backbone(images.tensor)[n] for n in model.head_in_features]
    head = model.head
    cls, box, ctr, targets, labels = [], [], [], [], []
    anchors = Boxes.cat(model.anchor_generator(features))
    strides = anchors.tensor[:, 2] - anchors.tensor[:, 0]
    for level, feature in enumerate(features):
        tower = head.cls_subnet(feature)
        raw = head.bbox_pred(head.bbox_subnet(feature)) * head.scales[level]
        for rows, maps in (
            (cls, head.cls_score(tower)),
            (box, raw.exp()),
            (ctr, head.ctrness(tower)),
        ):
            rows.append(maps.flatten(2).transpose(1, 2))
    cls, box, ctr = (torch.cat(rows, dim=1) for rows in (cls, box, ctr))
    for x in batch:
        found = first_fcos_labels(
            anchors.get_centers(), strides, x["instances"].gt_boxes.tensor,
            x["instances"].gt_classes, 3,
        )  # fmt: skip
        labels.append(found[0])
        targets.append(found[1])
    labels, targets = torch.stack(labels), torch.stack(targets)
    fg = labels < 3
    count = fg.sum()
    one_hot = F.one_hot(labels, 4)[..., :3].float()
    loss_cls = F.binary_cross_entropy_with_logits(cls, one_hot, reduction="sum") / count
    p, t = box[fg], targets[fg]
    low = torch.minimum(p, t)
    common = (low[:, 0] + low[:, 2]) * (low[:, 1] + low[:, 3])
    areas = [(b[:, 0] + b[:, 2]) * (b[:, 1] + b[:, 3]) for b in (p, t)]
    iou_loss = -((common + 1) / (sum(areas) - common + 1)).log()
    x, y = t[:, [0, 2]], t[:, [1, 3]]
    centre = (x.amin(1) / x.amax(1) * y.amin(1) / y.amax(1)).sqrt()
    loss_box = (iou_loss * centre).sum() / centre.sum()
    loss_ctr = F.binary_cross_entropy_with_logits(ctr[fg][:, 0], centre)
    guided = (loss_box + loss_ctr) / 2  # the class loss takes the size of the others' mean
    want = {
        "loss_fcos_cls": guided / (2 * 1.2**2),
        "loss_fcos_loc": loss_box / (2 * 0.9**2),
        "loss_fcos_ctr": loss_ctr / (2 * 1.1**2),
        "loss_fcos_sigma": torch.tensor([1.2, 0.9, 1.1]).log().sum(),
    }
    assert count > 10 and loss_cls > 0 and losses.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(losses[name], value.detach(), rtol=2e-5, atol=1e-6)


@torch.no_grad()
def detections(model, image):
    """One image's detections by the authors' steps, level by level."""
    model.eval()
    images = model.preprocess_image([{"image": image}])
    features = [model.backbone(images.tensor)[n] for n in model.head_in_features]
    found = []
    for prior, *maps in zip(model.anchor_generator(features), *model.head(features)):
        cls, deltas, ctr = (m[0].flatten(1).t() for m in maps)
        cls, ctr = cls.sigmoid(), ctr.sigmoid()
        enough = cls > 0.001
        score = (cls * ctr).sqrt().masked_fill(~enough, -1)
        best = score.flatten().topk(min(1000, int(enough.sum()))).indices
        place, label = best // cls.shape[1], best % cls.shape[1]
        boxes = Boxes(model.box2box_transform.apply_deltas(deltas[place], prior.tensor[place]))
        boxes.clip(images.image_sizes[0])
        found.append((boxes.tensor, score[place, label], label))
    boxes, scores, labels = (torch.cat(x) for x in zip(*found))
    keep = batched_nms(boxes, scores, labels, model.test_nms_thresh)
    # Detectron2 leaves out, at last, what has nothing in the image.
    keep = keep[Boxes(boxes[keep]).nonempty()]
    return boxes[keep], scores[keep], labels[keep]


@pytest.mark.parametrize("path", [FCOS, FCOS.replace("fcos", "atss")])
def test_detections_of_the_authors_dense_detectors(path):
    # More channels than groups: the group norm of a 1x1 map of one channel a group is undefined.
    words = ["MODEL.SAMPLING_FREE.PRIOR", 0.0009, "MODEL.FPN.OUT_CHANNELS", 64,
             "TEST.DETECTIONS_PER_IMAGE", 2000]  # fmt: skip
    model = build(small_cfg(path, words))
    with torch.no_grad():
        model.head.cls_score.weight.mul_(10)
        model.head.bbox_pred.bias.fill_(2.5)
    image = make_batch((1,), size=160)[0]["image"]
    boxes, scores, labels = detections(model, image)
    result = model([{"image": image}])[0]["instances"]
    assert len(scores) > 5
    torch.testing.assert_close(result.scores, scores)
    assert torch.equal(result.pred_classes, labels)
    torch.testing.assert_close(result.pred_boxes.tensor, boxes)
    # A threshold of the whole score leaves out what the class alone keeps.
    model.threshold_on_class = False
    assert len(model([{"image": image}])[0]["instances"]) != len(scores)
    model.threshold_on_class = True
    box, score, label, count = graph_of(model, sizes=image.shape[1:])(image[None].float())[:4]
    assert int(count) == len(scores)
    torch.testing.assert_close(score[0, : int(count)], scores, rtol=1e-4, atol=1e-6)


def test_retinanet_clips_before_nms():
    """Two boxes that differ beyond the border only are one inside."""
    path = "configs/SamplingFree/retinanet_R_50_FPN_1x_authors.yaml"
    model = build(small_cfg(path)).eval()
    anchors = [Boxes(torch.tensor([[40.0, 10, 60, 30], [40, 10, 200, 30]]))]
    deltas, scores = [torch.zeros(2, 4)], [torch.tensor([[0.9, 0, 0], [0.8, 0, 0]])]
    assert len(model.inference_single_image(anchors, scores, deltas, (64, 60))) == 1
    model.clip_before_nms = False
    assert len(model.inference_single_image(anchors, scores, deltas, (64, 60))) == 2


@pytest.mark.parametrize(
    "path, key, value",
    [
        (FCOS, "MODEL.FCOS.DISTANCE", "exp"),
        (FCOS, "MODEL.FCOS.BOX_WEIGHT", "iou"),
        (FCOS, "MODEL.FCOS.SCORE_THRESH_ON", "box"),
        ("configs/Base-RetinaNet.yaml", "MODEL.RETINANET.TOPK_PER_LEVEL_CAP", "places"),
    ],
)
def test_wrong_words_are_refused_by_their_keys(path, key, value):
    with pytest.raises(ValueError, match=key):
        build(small_cfg(path, [key, value]))
