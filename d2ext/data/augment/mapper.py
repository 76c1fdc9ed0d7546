"""The mapper behind INPUT.AUGMENTATION and its relatives.

Order: read, mosaic and affine, mixup, copy-paste, crop, Albumentations, colours, then what
Detectron2 does (crop, resize, flip).
"""

from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from d2ext.data.fast_mapper import read_image
from d2ext.data.tiles import cut

from .albumentations import Albumentations
from .colour import RandomHSV
from .mixing import copy_paste, mixup, mosaic, random_affine, random_crop
from .pictures import Picture
from .sizes import by_longest_side

__all__ = ["PRESETS", "AugmentingMapper", "Mixing", "augmentation_of"]


class Preset(NamedTuple):
    """What a word of INPUT.AUGMENTATION means.

    Attributes:
        hsv: strength of the changes of hue, saturation and value.
        crop: least share of each side that a random crop, drawn for half of the images, leaves.
        mosaic, mixup: probabilities.
    """

    hsv: Tuple[float, float, float]
    crop: float
    mosaic: float
    mixup: float


PRESETS = {
    "light": Preset((0.005, 0.25, 0.15), 1.0, 0.0, 0.0),
    "medium": Preset((0.015, 0.7, 0.4), 0.7, 0.0, 0.0),
    "strong": Preset((0.015, 0.7, 0.4), 0.5, 0.5, 0.15),
}
"""The named strengths of augmentation."""


class Mixing(NamedTuple):
    """Pictures made of several, and until when.

    Attributes:
        mosaic, mixup, copy_paste: probabilities.
        side: S of mosaic and mixup.
        last_step: from it on a picture is one image.
    """

    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    side: int = 640
    last_step: float = float("inf")

    @property
    def is_used(self) -> bool:
        return max(self.mosaic, self.mixup, self.copy_paste) > 0


def augmentation_of(cfg: Any, max_iter: int) -> Optional[Dict[str, Any]]:
    """Arguments of :class:`AugmentingMapper` from a config; None if it asks for none of this.

    Args:
        cfg: the config.
        max_iter: steps of the training.
    """
    node = cfg.INPUT
    preset = PRESETS.get(node.AUGMENTATION)
    shares = {
        key: node[key.upper()] or (getattr(preset, key, 0.0) if preset else 0.0)
        for key in ("mosaic", "mixup", "copy_paste")
    }
    mixing = Mixing(
        **shares,
        side=node.MIXING_SIZE or max(node.MIN_SIZE_TRAIN),
        last_step=node.MIXING_UNTIL * max_iter,
    )
    hsv = tuple(node.HSV) or (preset.hsv if preset is not None else ())
    if not (preset or mixing.is_used or node.ALBUMENTATIONS or hsv or node.LONGEST_SIDE_TRAIN):
        return None
    if cfg.MODEL.LOAD_PROPOSALS or node.FORMAT not in ("RGB", "BGR"):
        what = "MODEL.LOAD_PROPOSALS" if cfg.MODEL.LOAD_PROPOSALS else f"INPUT.FORMAT {node.FORMAT}"
        raise ValueError(
            f"{what} cannot be combined with INPUT.AUGMENTATION, MOSAIC, MIXUP, COPY_PASTE and "
            "ALBUMENTATIONS; leave them out."
        )
    colours = [RandomHSV(hsv, node.FORMAT)] if hsv else []
    library = None
    if node.ALBUMENTATIONS:
        library = Albumentations(node.ALBUMENTATIONS, keypoints=cfg.MODEL.KEYPOINT_ON)
    return {
        "mixing": mixing,
        "crop": preset.crop if preset is not None else 1.0,
        "first": colours,
        "albumentations": library,
        "longest_sides": list(node.LONGEST_SIDE_TRAIN),
    }


class AugmentingMapper(DatasetMapper):
    """Detectron2's mapper with pictures made of several, colours and Albumentations before it.

    Args:
        mixing: mosaic, mixup and copy-paste; none of them if not given.
        crop: least share of each side that a crop, drawn for half of the pictures, leaves.
        first: augmentations before Detectron2's.
        albumentations: transforms of that library.
        longest_sides: lengths of the longest side, one drawn for each image, in place of the
            resize by the shortest side; none: that one.
        arguments: of Detectron2's ``DatasetMapper``.

    Attributes:
        read: a file's name to (H, W, 4) bytes.
    """

    #: The loader gives the data set and the number of the step to such a mapper.
    takes_context = True

    def __init__(
        self,
        *,
        mixing: Optional[Mixing] = None,
        crop: float = 1.0,
        first: Sequence[T.Augmentation] = (),
        albumentations: Optional[Callable[[Picture], Picture]] = None,
        longest_sides: Sequence[int] = (),
        **arguments: Any,
    ):
        own = [*first, *arguments.pop("augmentations")]
        if longest_sides:
            own = by_longest_side(own, longest_sides)
        super().__init__(augmentations=own, **arguments)
        self.mixing = Mixing() if mixing is None else mixing
        self.crop, self.albumentations = crop, albumentations
        self.read = read_image
        masks_as_polygons = self.use_instance_mask and self.instance_mask_format == "polygon"
        if self.mixing.copy_paste > 0 and masks_as_polygons:
            raise ValueError(
                "INPUT.COPY_PASTE cuts masks, which polygons cannot be; set INPUT.MASK_FORMAT to "
                "bitmask."
            )

    def __call__(
        self, dataset_dict: Dict[str, Any], dataset: Sequence = (), step: int = 0
    ) -> Dict[str, Any]:
        """A dataset dict to what models take.

        Args:
            dataset_dict: of the image.
            dataset: those of the whole set, of which partners are drawn; none without them.
            step: of the training.
        """
        picture = self._load(dataset_dict)
        if self.mixing.is_used and len(dataset) and step < self.mixing.last_step:
            picture = self._mix(picture, dataset)
        if self.crop < 1 and np.random.rand() < 0.5:
            picture = random_crop(picture, self.crop)
        if self.albumentations is not None:
            picture = self.albumentations(picture)
        sample = {k: v for k, v in dataset_dict.items() if k != "annotations"}
        if picture.image.shape[:2] != (dataset_dict.get("height"), dataset_dict.get("width")):
            sample["height"], sample["width"] = picture.image.shape[:2]
        given = T.AugInput(picture.image)
        transforms = self.augmentations(given)
        image = np.ascontiguousarray(given.image.transpose(2, 0, 1))
        sample["image"] = torch.as_tensor(image)
        sample["annotations"] = picture.annotations
        self._transform_annotations(sample, transforms, given.image.shape[:2])
        return sample

    def _mix(self, picture: Picture, dataset: Sequence) -> Picture:
        mixing = self.mixing

        def another() -> Picture:
            return self._load(dataset[int(np.random.randint(len(dataset)))])

        if np.random.rand() < mixing.mosaic:
            four = mosaic([picture, another(), another(), another()], mixing.side)
            picture = random_affine(four, mixing.side)
            # Mixup is of composed pictures alone, which have its size.
            if np.random.rand() < mixing.mixup:
                picture = mixup(picture, another(), mixing.side)
        if np.random.rand() < mixing.copy_paste:
            picture = copy_paste(picture, another())
        return picture

    def _load(self, dataset_dict: Dict[str, Any]) -> Picture:
        """The image and the objects that are learnt from."""
        pixels = cut(self.read(dataset_dict["file_name"]), dataset_dict).numpy()[..., :3]
        detection_utils.check_image_size(dict(dataset_dict), pixels)
        if self.image_format == "BGR":
            pixels = pixels[..., ::-1]
        unused = set() if self.use_keypoint else {"keypoints"}
        # Masks say what copy-paste pastes, whether or not they are learnt.
        unused |= set() if self.use_instance_mask or self.mixing.copy_paste else {"segmentation"}
        objects = []
        for item in dataset_dict.get("annotations", ()):
            if item.get("iscrowd", 0):
                continue
            box = BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS)
            kept = {k: v for k, v in item.items() if k not in unused}
            objects.append({**kept, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS})
        return Picture(np.ascontiguousarray(pixels), objects)
