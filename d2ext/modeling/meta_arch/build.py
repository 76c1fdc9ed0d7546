"""Parts of the dense detectors from configs."""

import functools
from typing import Any, Dict, List, NamedTuple, Sequence

from torch import nn

from d2ext.combinations import check, present
from d2ext.config import arguments, validate

from ..assigners import build_assigner, needs_predictions
from ..losses.build import build_criterion
from ..losses.guided import sampling_free_on
from ..losses.harmonic import is_rotated
from ..losses.normalizers import NORMALIZER_REGISTRY
from ..sampling_free import SamplingFreeOptions

__all__ = [
    "OwnChoices",
    "build_dense_normalizer",
    "dense_arguments",
    "dense_slots",
    "select_features",
]


class OwnChoices(NamedTuple):
    """What a detector chooses where ``MODEL.DENSE`` leaves it to the detector.

    Attributes:
        assigner, box_loss, normalizer: names in the registries.
        sync: whether the normaliser is a mean over ranks.
        initial: where a running normaliser starts.
        guides: losses that guide the class loss if there is no sampling.
    """

    assigner: str
    box_loss: str = "giou"
    normalizer: str = "ema"
    sync: bool = False
    initial: float = 100.0
    guides: Sequence[str] = ("box",)


def select_features(backbone: Any, names: List[str], key: str) -> List[Any]:
    """Shapes of the named feature maps; a name the backbone lacks is refused with those it has."""
    shapes = backbone.output_shape()
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(
            f"{key} asks for {missing[0]}, but the backbone has {', '.join(shapes)}; choose among "
            "those or another MODEL.BACKBONE.NAME."
        )
    return [shapes[name] for name in names]


def dense_slots(
    cfg: Any, section: str, own: OwnChoices, *, num_anchors: int = 1, smooth_l1_beta: float = 0.0
) -> Dict[str, Any]:
    """Criterion, assigner, normaliser and Sampling-Free options, by the constructors' names.

    Args:
        cfg: the config.
        section: the detector's, e.g. "MODEL.FCOS".
        own: what holds where the keys are silent.
        num_anchors: anchors a location.
        smooth_l1_beta: parameter of that box loss.
    """
    node = functools.reduce(getattr, section.split("."), cfg)
    cls_loss = cfg.MODEL.DENSE.CLS_LOSS
    if cls_loss == "focal" and sampling_free_on(cfg, "dense"):
        cls_loss = "bce"  # focal loss is a soft form of sampling
    criterion = build_criterion(
        cfg,
        place="dense",
        cls_loss=cls_loss,
        box_loss=cfg.MODEL.DENSE.BOX_LOSS or own.box_loss,
        num_classes=node.NUM_CLASSES,
        alpha=node.FOCAL_LOSS_ALPHA,
        gamma=node.FOCAL_LOSS_GAMMA,
        smooth_l1_beta=smooth_l1_beta,
        guides=own.guides,
    )
    assigner = build_assigner(cfg, auto=own.assigner, num_anchors=num_anchors)
    options = SamplingFreeOptions.from_cfg(cfg, "dense")
    if needs_predictions(assigner):
        check(
            "needs predictions",
            *present(
                counted_prior=options is not None and not options.prior,
                rotated_boxes=is_rotated(cfg, "dense"),
                anchors_share_places=num_anchors > 1,
                third_branch=len(own.guides) > 1,
                coupled=criterion.coupling is not None,
            ),
            name=cfg.MODEL.DENSE.ASSIGNER,
            anchors=num_anchors,
        )
        own = own._replace(normalizer="positives", sync=True)
    return {
        "criterion": criterion,
        "assigner": assigner,
        "normalizer": build_dense_normalizer(cfg, own),
        "sampling_free": options,
    }


def build_dense_normalizer(cfg: Any, own: OwnChoices) -> nn.Module:
    """The normaliser of a dense detector."""
    node = cfg.MODEL.DENSE
    validate(cfg, "MODEL.DENSE.NORMALIZER_SYNC")
    choices = {"auto": own.sync, "on": True, "off": False}
    name = node.NORMALIZER or own.normalizer
    if sampling_free_on(cfg, "dense") and cfg.MODEL.SAMPLING_FREE.REG_NORM == "fg":
        # A running mean would change the size of the box loss, and through the guide of all losses,
        # over the first steps.
        name = "positives"
    cls = NORMALIZER_REGISTRY.get(name)
    return cls(sync=choices[node.NORMALIZER_SYNC], initial=own.initial)


def dense_arguments(cfg: Any, section: str) -> Dict[str, Any]:
    """Arguments that FCOS, ATSS and DW take from the config alike, and those of their sections.

    Args:
        cfg: the config.
        section: the detector's, e.g. "MODEL.FCOS".
    """
    return {
        **arguments(cfg, section),
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }
