"""Keys that the region-based heads add to Detectron2's own."""

from .keys import Key, Section
from .rules import number, registered

__all__ = ["SECTIONS"]

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
    ),
]  # fmt: skip
