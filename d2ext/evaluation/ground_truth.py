"""What a dataset's annotation file says, in the form the evaluation back ends need.

Images and categories are numbered by the rank of their ids. That keeps the order in which the
reference implementations sum (they sort the ids), works for ids that are strings, and makes arrays.

Shapes: N images, C categories, G objects.
"""

import dataclasses
import logging
from collections import Counter
from typing import Any, Dict, List, Optional, Sequence, Set

import numpy as np

from d2ext._text import printable
from d2ext.data.checks.boxes import is_area
from d2ext.data.checks.json_file import check_json
from d2ext.data.checks.json_text import read_json
from d2ext.data.checks.kinds import BadDataError, settle
from d2ext.data.checks.masks import polygon_fault, reach

__all__ = ["GroundTruth", "area_of", "unique_names"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class GroundTruth:
    """Annotations of a dataset; nothing here is changed by an evaluation.

    Attributes:
        image_ids: N ids, sorted.
        image_sizes: N pairs (height, width), or None where the file does not say.
        category_ids: C ids, sorted.
        category_names: C names, all different.
        category_frequencies: C of "r", "c", "f", or None outside LVIS.
        image: (G,) rank of each object's image.
        category: (G,) rank of each object's category.
        area: (G,) float64.
        boxes: G lists XYWH, the file's own numbers.
        crowd: (G,) bool.
        ignore: (G,) bool, LVIS only.
        segmentations: G polygons or run lengths, None where missing.
        negative: for each image the ranks of the categories known to be absent (LVIS).
        not_exhaustive: for each image the ranks of categories annotated in part only (LVIS).
    """

    image_ids: list
    image_sizes: list
    category_ids: List[int]
    category_names: List[str]
    category_frequencies: List[Optional[str]]
    image: np.ndarray
    category: np.ndarray
    area: np.ndarray
    boxes: List[list]
    crowd: np.ndarray
    ignore: np.ndarray
    segmentations: list
    negative: List[Set[int]]
    not_exhaustive: List[Set[int]]

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def image_rank(self) -> Dict:
        """Image id -> rank."""
        return {image_id: rank for rank, image_id in enumerate(self.image_ids)}

    @property
    def num_without_segmentation(self) -> int:
        """How many objects have no mask."""
        return sum(not segmentation for segmentation in self.segmentations)

    @classmethod
    def from_json(cls, file: str, form: str = "coco") -> Optional["GroundTruth"]:
        """Read an annotation file; None if it holds no annotations (a test set).

        Args:
            file: its path.
            form: "coco" or "lvis".

        Raises:
            BadDataError: if figures measured with it would mean nothing.
        """
        data = read_json(file)
        findings = check_json(data, file, form, deep=True, loading=False)
        # Objects are renumbered, so that repeated ids do no harm here.
        problems = [p for p in findings.problems if p.kind != "duplicate id"]
        settle(problems, file, done="kept, as the reference implementation does")
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, dataset: dict) -> Optional["GroundTruth"]:
        """Build from the content of an annotation file; see :meth:`from_json`."""
        if "annotations" not in dataset:
            return None
        images = sorted(dataset["images"], key=lambda image: image["id"])
        categories = sorted(dataset["categories"], key=lambda category: category["id"])
        image_rank = {image["id"]: rank for rank, image in enumerate(images)}
        category_rank = {category["id"]: rank for rank, category in enumerate(categories)}
        # The reference implementations skip objects of unknown images and categories, too.
        objects = [
            obj
            for obj in dataset["annotations"]
            if obj["image_id"] in image_rank and obj["category_id"] in category_rank
        ]
        _warn_of_ids(dataset["annotations"])

        def ranks(ids):
            return {category_rank[i] for i in ids or () if i in category_rank}

        return cls(
            image_ids=[image["id"] for image in images],
            image_sizes=[(image.get("height"), image.get("width")) for image in images],
            category_ids=[category["id"] for category in categories],
            category_names=unique_names(
                [str(c.get("name", c["id"])) for c in categories], [c["id"] for c in categories]
            ),
            category_frequencies=[category.get("frequency") for category in categories],
            image=np.asarray([image_rank[obj["image_id"]] for obj in objects], dtype=np.int64),
            category=np.asarray(
                [category_rank[obj["category_id"]] for obj in objects], dtype=np.int64
            ),
            area=_areas(objects),
            boxes=[obj["bbox"] for obj in objects],
            crowd=np.asarray([bool(obj.get("iscrowd", 0)) for obj in objects], dtype=bool),
            ignore=np.asarray([bool(obj.get("ignore", 0)) for obj in objects], dtype=bool),
            segmentations=[obj.get("segmentation") for obj in objects],
            negative=[ranks(image.get("neg_category_ids")) for image in images],
            not_exhaustive=[ranks(image.get("not_exhaustive_category_ids")) for image in images],
        )

    def select(self, objects: np.ndarray) -> "GroundTruth":
        """The objects at ``objects``, positions or a mask; images and categories stay."""
        index = np.arange(len(self))[objects]
        positions = index.tolist()
        return dataclasses.replace(
            self,
            image=self.image[index],
            category=self.category[index],
            area=self.area[index],
            boxes=[self.boxes[i] for i in positions],
            crowd=self.crowd[index],
            ignore=self.ignore[index],
            segmentations=[self.segmentations[i] for i in positions],
        )

    def require_masks_in_reach(self, source: str) -> None:
        """Refuse polygons far outside of their image: drawing one takes memory by its length.

        Args:
            source: what the annotations are of, for the message.

        Raises:
            BadDataError: for the first object that has one
        """
        for k, pieces in enumerate(self.segmentations):
            if not isinstance(pieces, list):
                continue
            fault = polygon_fault(pieces, reach(*self.image_sizes[self.image[k]]))
            if fault:
                raise BadDataError(
                    f"{source}: an object of image {self.image_ids[self.image[k]]!r}, box "
                    f"{self.boxes[k]}: {fault}; correct or remove it."
                )

    def restricted_to(self, image_ids) -> "GroundTruth":
        """The annotations of some of the images; all categories stay."""
        wanted = set(image_ids)
        kept = [rank for rank, image_id in enumerate(self.image_ids) if image_id in wanted]
        new_rank = np.full(len(self.image_ids), -1, dtype=np.int64)
        new_rank[kept] = np.arange(len(kept))
        part = self.select(new_rank[self.image] >= 0)
        return dataclasses.replace(
            part,
            image_ids=[self.image_ids[rank] for rank in kept],
            image_sizes=[self.image_sizes[rank] for rank in kept],
            image=new_rank[part.image],
            negative=[self.negative[rank] for rank in kept],
            not_exhaustive=[self.not_exhaustive[rank] for rank in kept],
        )


def unique_names(names: Sequence[str], ids: Sequence[int]) -> List[str]:
    """Names of classes, with the id behind those that several classes share.

    Figures go by name: of two classes of one name, one would silently lose its figure.
    """
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} (id {key})" for name, key in zip(names, ids)]


def area_of(annotation: dict) -> Optional[float]:
    """An object's area as annotated; None where it is missing or no number that can be one."""
    area: Any = annotation.get("area")
    return float(area) if is_area(area) else None


def _areas(objects) -> np.ndarray:
    """Areas as annotated; the box's where that says nothing, as in many home-made files."""
    areas = [area_of(obj) for obj in objects]
    missing = [obj for obj, area in zip(objects, areas) if area is None]
    wrong = [obj["area"] for obj in missing if "area" in obj]
    if missing:
        example = f", or none that is a number: {printable(repr(wrong[0]), 60)}" if wrong else ""
        logger.warning(
            f"{len(missing)} of {len(objects)} annotations have no 'area'{example}; the area of "
            "the box is used."
        )
    boxes = (obj["bbox"] for obj in objects)
    return np.asarray(
        [box[2] * box[3] if area is None else area for box, area in zip(boxes, areas)],
        dtype=np.float64,
    )


def _warn_of_ids(objects) -> None:
    """Say when the reference implementation would misread the annotation ids.

    It marks a matched detection by its object's id, so 0 reads as unmatched, and it looks objects
    up by id. Objects are renumbered here, which gives the right figure in both cases.
    """
    ids = [obj.get("id") for obj in objects]
    if len(set(ids)) != len(ids) or 0 in ids:
        logger.warning(
            "Annotation ids are not unique or contain 0, which pycocotools miscounts; objects are "
            "renumbered for this evaluation."
        )
