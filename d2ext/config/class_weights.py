"""Keys of the weights of classes."""

from .keys import Key, Section
from .rules import listing, number

__all__ = ["SECTIONS"]

SECTIONS = [
    # For the class losses of dense and ROI heads. The gradients that EFL and its relatives collect
    # contain the weights, as they contain LOSS_WEIGHT.
    Section(
        "MODEL.CLASS_WEIGHTS",
        Key("VALUES", [], listing(number(0)), "the weight of each class; empty: see POWER", ""),
        # As cls_pw of ultralytics. Classes without objects weigh the mean of the others.
        Key("POWER", 0.0, number(0, 1),
            "weights are `count ** -POWER`, scaled to a mean of 1; 0: all weigh 1", ""),
        Key("COUNTS", [], listing(number(0)),
            "boxes of each class for POWER; empty: counted in the training data", ""),
    ),
]  # fmt: skip
