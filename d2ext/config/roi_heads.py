"""Keys that the region-based heads add to Detectron2's own."""

from .keys import Key, Section
from .rules import BOOLEAN, number, registered

__all__ = ["SECTIONS"]

# maskrcnn-benchmark's, whose POOLER_TYPE is ROIAlign with POOLER_SAMPLING_RATIO 2.
_LEGACY_ROIS = Key(
    "LEGACY_ROIS", False, BOOLEAN, "pool boxes as if they ended one pixel before x2 and y2"
)

SECTIONS = [
    # MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE gains iou, harmonic_iou and the box losses of
    # docs/rivals.md.
    Section(
        "MODEL.ROI_BOX_HEAD",
        # The classes are independent in all but softmax and seesaw; Detectron2's USE_SIGMOID_CE
        # with softmax here means bce. seesaw, efl, eqlv2 and ghmc have sections of their own.
        Key("CLS_LOSS", "softmax", registered("d2ext.modeling.losses.registry:CLS_LOSS_REGISTRY"),
            "softmax, seesaw, bce, focal, efl, eqlv2, ghmc, ecm, or a name you registered"),
        Key("FOCAL_LOSS_ALPHA", 0.25, number(high=1), "weight of positives; below 0: none"),
        Key("FOCAL_LOSS_GAMMA", 2.0, number(0), "focusing exponent"),
        # 0 leaves the bias at 0 (a score of 0.5), as Detectron2 does.
        Key("PRIOR_PROB", 0.0, number(0, below=1),
            "score of every class at the start, for independent classes; 0: bias 0"),
        _LEGACY_ROIS,
    ),
    Section("MODEL.ROI_MASK_HEAD", _LEGACY_ROIS),
    Section(
        "MODEL.RPN",
        # As maskrcnn-benchmark does; what an image gives then depends on the others.
        Key("POST_NMS_PER_BATCH", False, BOOLEAN,
            "POST_NMS_TOPK_TRAIN is a mean: the best of the rank's whole batch are kept"),
    ),
]  # fmt: skip
