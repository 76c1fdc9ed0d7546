"""Keys that the region-based heads add to Detectron2's own."""

from detectron2.config import CfgNode as CN

from .rules import number, registered

__all__ = ["add_roi_heads_config"]


def add_roi_heads_config(cfg: CN) -> None:
    """Add the keys of the region-based heads to ``cfg``, in place."""
    # One of softmax, seesaw, bce, focal, efl, eqlv2, ghmc, or a name you registered. The classes
    # are independent in all but softmax and seesaw; Detectron2's USE_SIGMOID_CE with softmax here
    # means bce. seesaw, efl, eqlv2 and ghmc have sections of their own (MODEL.SEESAW, MODEL.EFL,
    # MODEL.EQLV2, MODEL.GHM).
    # MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE gains iou and harmonic_iou.
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS = "softmax"
    cfg.MODEL.ROI_BOX_HEAD.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.ROI_BOX_HEAD.FOCAL_LOSS_GAMMA = 2.0
    # Score of every class at the start of training, for the losses with independent classes;
    # 0 leaves the bias at 0 (a score of 0.5), as Detectron2 does.
    cfg.MODEL.ROI_BOX_HEAD.PRIOR_PROB = 0.0


RULES = {
    "MODEL.ROI_BOX_HEAD.CLS_LOSS": registered("d2ext.modeling.losses.registry:CLS_LOSS_REGISTRY"),
    "MODEL.ROI_BOX_HEAD.FOCAL_LOSS_ALPHA": number(high=1),
    "MODEL.ROI_BOX_HEAD.FOCAL_LOSS_GAMMA": number(0),
    "MODEL.ROI_BOX_HEAD.PRIOR_PROB": number(0, below=1),
}
