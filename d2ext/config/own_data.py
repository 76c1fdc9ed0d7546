"""Keys of data of one's own: labelled folders that need no registration."""

from .keys import Key, Section
from .rules import TEXT, listing, number

__all__ = ["SECTIONS"]

SECTIONS = [
    Section(
        "DATASETS",
        # What d2ext train --data sets. It fills TRAIN and TEST and the number of classes.
        Key("DATA", "", TEXT, "folder, data.yaml or COCO JSON of your own; '': TRAIN and TEST"),
        Key(
            "SPLIT",
            [0.8, 0.2],
            listing(number(above=0, high=1), least=2),
            "shares of training, validation and test images, where DATA has no splits",
        ),
    ),
]
