"""Where losses and normalisers are found by the names that YAML files use."""

from d2ext import losses

from ..registry import Registry

__all__ = ["BOX_LOSS_REGISTRY", "CLS_LOSS_REGISTRY", "NORMALIZER_REGISTRY"]

CLS_LOSS_REGISTRY = Registry("class loss")
"""Class losses: see :class:`d2ext.losses.ClsLoss`."""

BOX_LOSS_REGISTRY = Registry("box loss")
"""Box losses: see :class:`d2ext.losses.BoxLoss`."""

NORMALIZER_REGISTRY = Registry("loss normaliser")
"""What sums of losses are divided by: see :class:`d2ext.losses.Normalizer`."""

for _registry, _classes in (
    (
        CLS_LOSS_REGISTRY,
        {
            "bce": losses.BCELoss,
            "ecm": losses.EffectiveClassMarginLoss,
            "efl": losses.EqualizedFocalLoss,
            "eqfl": losses.EqualizedQualityFocalLoss,
            "eqlv2": losses.EQLv2Loss,
            "focal": losses.FocalLoss,
            "ghmc": losses.GHMCLoss,
            "mal": losses.MatchabilityAwareLoss,
            "qfl": losses.QualityFocalLoss,
            "seesaw": losses.SeesawLoss,
            "softmax": losses.SoftmaxLoss,
            "varifocal": losses.VarifocalLoss,
        },
    ),
    (
        BOX_LOSS_REGISTRY,
        {
            "ciou": losses.CIoULoss,
            "diou": losses.DIoULoss,
            "ghm_r": losses.GHMRLoss,
            "giou": losses.GIoULoss,
            "harmonic_iou": losses.HarmonicIoULoss,
            "inner_iou": losses.InnerIoULoss,
            "iou": losses.IoULoss,
            "iou_squared": losses.SquaredIoULoss,
            "log_iou": losses.LogIoULoss,
            "log_iou_legacy": losses.LegacyLogIoULoss,
            "mpdiou": losses.MPDIoULoss,
            "nwd": losses.NWDLoss,
            "smooth_l1": losses.SmoothL1Loss,
            "wiou": losses.WiseIoULoss,
        },
    ),
    (
        NORMALIZER_REGISTRY,
        {"ema": losses.EMANormalizer, "positives": losses.PositiveNormalizer},
    ),
):
    for _name, _class in _classes.items():
        _registry.register(_name)(_class)
