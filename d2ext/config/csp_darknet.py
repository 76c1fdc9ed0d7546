"""Keys of the backbone of YOLOX."""

from .keys import Key, Section
from .rules import BOOLEAN, NORM, PROBABILITY, number

__all__ = ["SECTIONS"]

SECTIONS = [
    # Read by the backbones "build_csp_darknet_backbone" and "build_csp_darknet_pafpn_backbone".
    # MODEL.BACKBONE.FREEZE_AT 1 freezes the stem, 2 the first stage too, and so on.
    Section(
        "MODEL.CSPDARKNET",
        Key("DEPTH", 0.33, number(above=0), "multiplier of the bottlenecks; S 0.33, M 0.67",
            part="net"),
        Key("WIDTH", 0.5, number(above=0), "multiplier of the channels; S 0.5, M 0.75",
            part="net"),
        # True in United-Perception's YOLOX (EFL and EQFL), False in YOLOX.
        Key("NECK_SHORTCUT", False, BOOLEAN, "bottlenecks of the pyramid add their input", ""),
        Key("NORM", "BN", NORM, "normalisation of backbone and pyramid", part="norm"),
        # Of the decoupled head's batch normalisations, too.
        Key("BN_EPS", 1e-3, number(above=0), "epsilon of batch normalisations", part="norm"),
        Key("BN_MOMENTUM", 0.03, PROBABILITY, "weight of a new batch in running statistics",
            part="norm"),
    ),
]  # fmt: skip
