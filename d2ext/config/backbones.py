"""Keys of the backbones that timm makes."""

from .keys import Key, Section
from .rules import SHARE, TEXT, integer, listing, number, one_of

__all__ = ["SECTIONS"]

SECTIONS = [
    # Read by the backbone "build_timm_fpn_backbone"; the pyramid has its usual keys,
    # MODEL.FPN.{OUT_CHANNELS, NORM, FUSE_TYPE}. MODEL.BACKBONE.FREEZE_AT 1 freezes all before the
    # first stage that timm names, 2 that stage too, and so on.
    Section(
        "MODEL.TIMM",
        Key(
            "NAME",
            "resnet18",
            TEXT,
            "a model of timm; timm.list_models() has their names",
            part="net",
        ),
        # d2ext://efficientnet_lite0 is found in an installed package; timm://NAME.TAG is what timm
        # would download; else a file of timm or torchvision. A checkpoint of the whole detector in
        # MODEL.WEIGHTS takes its place.
        Key(
            "WEIGHTS",
            "",
            TEXT,
            "pretrained weights of the backbone, where MODEL.WEIGHTS is empty",
            "",
        ),
        # Multiples of two of each other. Region-based detectors need 4 as well.
        Key(
            "OUT_STRIDES",
            [8, 16, 32],
            listing(integer(2, 64), least=1, distinct=True),
            "strides of the feature maps that the pyramid is built on",
            part="net",
        ),
        # "auto": what the detector reads. "p5" and "c5": P6 and P7 from the last level of the
        # pyramid, or from the last feature map below it; "pool": P6 pooled from P5; "none".
        Key(
            "TOP_BLOCK",
            "auto",
            one_of("auto", "p5", "c5", "pool", "none"),
            "what the levels above the pyramid are made of",
            "",
        ),
        # "FrozenBN": statistics and affine parameters as they are; "EvalBN": statistics alone.
        Key(
            "NORM",
            "BN",
            one_of("BN", "EvalBN", "FrozenBN", "SyncBN"),
            "how the backbone's batch normalisation is trained",
            part="net",
        ),
        Key("DROP_PATH", 0.0, SHARE, "rate of stochastic depth", part="net"),
        # "auto": images are turned into what the weights were trained on, whatever INPUT.FORMAT,
        # MODEL.PIXEL_MEAN and MODEL.PIXEL_STD are. "config": they are taken as they come.
        Key(
            "INPUT",
            "auto",
            one_of("auto", "config"),
            "colour order and statistics of the input: those of the weights, or of the config",
            "",
        ),
    ),
    Section(
        "SOLVER",
        # 0.65 to 0.9 for transformers that start from pretrained weights.
        Key(
            "BACKBONE_LAYER_DECAY",
            1.0,
            number(above=0, high=1),
            "each layer of the backbone has the learning rate of the next one times this",
            "",
        ),
    ),
]
