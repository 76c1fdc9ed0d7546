"""Keys of the data: labelled folders that need no registration, and augmentation."""

from .keys import Key, Section
from .rules import COUNT, SHARE, TEXT, Relation, Rule, integer, listing, number, one_of

__all__ = ["RELATIONS", "SECTIONS"]

_TRANSFORM = Rule(
    "a mapping with the name of a transform and its arguments",
    lambda v: isinstance(v, dict) and isinstance(v.get("name"), str),
)

SECTIONS = [
    Section(
        "DATASETS",
        # What d2ext train --data sets. It fills TRAIN and TEST and the number of classes.
        Key("DATA", "", TEXT, "folder, data.yaml or COCO JSON of your own; '': TRAIN and TEST"),
        Key(
            "TILES",
            [],
            listing(number(0)),
            "side of tiles in pixels, and their overlap, such as [640, 0.2]; []: whole images",
        ),
        Key(
            "SPLIT",
            [0.8, 0.2],
            listing(number(above=0, high=1), least=2),
            "shares of training, validation and test images, where DATA has no splits",
        ),
    ),
    Section(
        "INPUT",
        Key(
            "AUGMENTATION",
            "",
            one_of("", "light", "medium", "strong"),
            "a named strength of augmentation, beside flips and sizes; '': none",
        ),
        Key(
            "HSV",
            [],
            listing(number(0), length=3) | listing(number(0), length=0),
            "strength of hue, saturation and value; []: what AUGMENTATION says",
        ),
        Key(
            "LONGEST_SIDE_TRAIN",
            [],
            listing(COUNT),
            "lengths of the longest side, one drawn for each image; []: MIN_SIZE_TRAIN",
        ),
        Key(
            "MIN_BOX_SIZE",
            0.0,
            number(0),
            "objects of which a side is not longer, in pixels of the file, are not learnt from",
        ),
        # 0: what AUGMENTATION says.
        Key("MOSAIC", 0.0, SHARE, "probability of a mosaic of four images and a random affine map"),
        Key("MIXUP", 0.0, SHARE, "probability that a mosaic is mixed with a fifth image"),
        Key("COPY_PASTE", 0.0, SHARE, "probability that another image's objects are pasted in"),
        Key("MIXING_SIZE", 0, integer(0), "side of a mosaic; 0: the largest MIN_SIZE_TRAIN"),
        Key("MIXING_UNTIL", 0.9, SHARE, "share of the steps after which nothing is mixed any more"),
        Key("ALBUMENTATIONS", [], listing(_TRANSFORM), "transforms of Albumentations, in order"),
    ),
]

RELATIONS = [
    Relation(
        ("DATASETS.TILES",),
        "tiles need a side of 32 pixels or more and an overlap below 1",
        lambda cfg: (
            len(cfg.DATASETS.TILES) == 2
            and cfg.DATASETS.TILES[0] >= 32
            and cfg.DATASETS.TILES[1] < 1
        ),
        when=lambda cfg: len(cfg.DATASETS.TILES) > 0,
    ),
    Relation(
        ("DATASETS.TILES", "MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"),
        "tiles are for boxes alone, so the others have to be False",
        lambda cfg: not (cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS),
        when=lambda cfg: len(cfg.DATASETS.TILES) > 0,
    ),
    Relation(
        ("DATASETS.TILES", "DATALOADER.MAPPER"),
        "Detectron2's mapper cuts no tiles, so choose auto or fast",
        lambda cfg: cfg.DATALOADER.MAPPER != "detectron2",
        when=lambda cfg: len(cfg.DATASETS.TILES) > 0,
    ),
]
