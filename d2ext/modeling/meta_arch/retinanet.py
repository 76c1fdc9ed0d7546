"""RetinaNet whose assigner, losses and normaliser are slots."""

from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from d2ext.config import arguments, validate

from .build import OwnChoices, dense_slots
from .dense import ExtDenseMixin

__all__ = ["ExtRetinaNet"]


@META_ARCH_REGISTRY.register()
class ExtRetinaNet(ExtDenseMixin, RetinaNet):
    """Detectron2's RetinaNet with exchangeable parts.

    With the default config it computes what upstream computes and has its state-dict keys, so
    that model-zoo weights load unchanged. The losses are ``loss_cls`` and ``loss_box_reg``.
    """

    @classmethod
    def from_config(cls, cfg):
        validate(cfg, "MODEL.RETINANET")
        args = {**super().from_config(cfg), **arguments(cfg, "MODEL.RETINANET")}
        node = cfg.MODEL.RETINANET
        slots = dense_slots(
            cfg,
            "MODEL.RETINANET",
            OwnChoices(assigner="iou", box_loss=node.BBOX_REG_LOSS_TYPE),
            num_anchors=args["anchor_generator"].num_anchors[0],
            smooth_l1_beta=node.SMOOTH_L1_LOSS_BETA,
        )
        return {**args, **slots}
