"""Which images a report shows, and how they get into the page.

Shapes: D detections, G objects.
"""

import base64
import io
import logging
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from d2ext._files import open_image
from d2ext._text import printable
from d2ext.analysis.prediction_sheet import KIND_COLORS
from d2ext.analysis.results_report import SIZES
from d2ext.evaluation.matching import Verdict

from .evaluation import Evaluation

__all__ = ["KINDS", "choose_images", "make_gallery"]

logger = logging.getLogger(__name__)

#: What a box of the gallery can be; the page has the same order.
KINDS = (*KIND_COLORS, "missed")
# Boxes of an image and run that are drawn; more would not be visible.
_MOST_BOXES = 40
_SIDES = (1600, 1280, 1024, 800, 640, 512, 400, 320, 240)
_QUALITIES = (85, 70, 55)


def make_gallery(
    evaluations: Sequence[Optional[Evaluation]], count: int = 60, budget: int = 2_000_000
) -> Dict[str, Any]:
    """Images with their objects and each run's detections.

    Args:
        evaluations: one a run, on the same data set; None for a run that has none.
        count: images at most.
        budget: bytes of all pictures together; images are encoded in their own resolution if that
            fits, else smaller.

    Returns:
        ``classes`` (names), ``images`` and ``shown`` of ``total`` images
    """
    own = [e for e in evaluations if e is not None]
    data = own[0].data
    rank = {key: k for k, key in enumerate(data.truth.category_ids)}
    reasons = choose_images(own, count)
    files = data.files()
    sizes = {i["id"]: (i.get("width"), i.get("height")) for i in data.data["images"]}
    pictures = _encode([files[key] for key in reasons], budget)
    most = max(8, min(_MOST_BOXES, 2 * _MOST_BOXES // len(own)))  # of twenty runs fewer of each
    images = []
    for (key, why), picture in zip(reasons.items(), pictures):
        if picture is None:
            continue
        width, height = picture["full"]
        if all(isinstance(v, (int, float)) for v in sizes[key]):
            width, height = sizes[key]
        images.append(
            {
                "file": printable(files[key].name),
                "src": picture["src"],
                "w": width,
                "h": height,
                "shown": picture["shown"],
                "why": why,
                "gt": _objects(own[0].verdict, key, rank),
                "runs": [
                    None if e is None else _boxes(e.verdict, key, rank, most) for e in evaluations
                ],
            }
        )
    return {
        "set": data.name,
        "classes": [printable(n, 60) for n in data.truth.category_names],
        "images": images,
        "total": len(data.truth.image_ids),
    }


def choose_images(evaluations: Sequence[Evaluation], count: int) -> Dict[Any, List[str]]:
    """Image ids, each with the reasons for its choice: "worst", "best", "random" or a kind.

    Of the worst, each next one is the image that adds most to what was not seen before: ten walls
    of boxes of one class would hide every other mistake. The mistakes of the first run count.

    Args:
        evaluations: on one data set.
        count: images at most.
    """
    first = evaluations[0]
    reasons: Dict[Any, List[str]] = {}
    mistakes = _mistakes(first.verdict)
    share = max(1, count // 4)
    _take(reasons, "worst", _diverse(mistakes, share), count)
    every = count - share  # the rest, for kinds, best and random ones
    kinds = [k for k in KINDS if k != "right"]
    for kind in kinds:
        ranked = _of_kind(first.verdict, kind)
        _take(reasons, kind, ranked[: max(1, every // (len(kinds) + 4))], count)
    _take(reasons, "best", _best(first, mistakes, max(1, every // 6)), count)
    ids = [key for key in first.data.truth.image_ids if key not in reasons]
    order = np.random.default_rng(0).permutation(len(ids))
    _take(reasons, "random", [ids[k] for k in order[: max(0, count - len(reasons))]], count)
    return reasons


def _take(reasons: Dict[Any, List[str]], why: str, keys: Sequence[Any], count: int) -> None:
    for key in keys:
        if key in reasons or len(reasons) < count:
            reasons.setdefault(key, []).append(why)


def _mistakes(v: Verdict) -> Dict[Any, Dict[Tuple, float]]:
    """Image -> (class, kind) -> how much of it there is; wrong detections count by their score."""
    found: Dict[Any, Dict[Tuple, float]] = {}
    rows = zip(v.image.tolist(), v.category.tolist(), v.kind.tolist(), v.score.tolist())
    for image, category, kind, score in rows:
        cell = found.setdefault(image, {})
        if kind not in ("right", "ignored"):
            cell[category, kind] = cell.get((category, kind), 0) + score
    for image, category, hit in zip(
        v.gt_image.tolist(), v.gt_category.tolist(), v.gt_found.tolist()
    ):
        cell = found.setdefault(image, {})
        if not hit:
            cell[category, "missed"] = cell.get((category, "missed"), 0) + 1
    return found


def _diverse(mistakes: Dict[Any, Dict[Tuple, float]], count: int) -> List[Any]:
    """Greedily the image that adds most to the logarithms of what is seen, by class and kind."""
    seen: Dict[Tuple, float] = {}
    left = {key: cells for key, cells in mistakes.items() if cells}
    chosen: List[Any] = []

    def gain(cells: Dict[Tuple, float]) -> float:
        return sum(math.log1p(v / (1 + seen.get(c, 0))) for c, v in cells.items())

    while left and len(chosen) < count:
        best = max(left, key=lambda key: (gain(left[key]), str(key)))
        for cell, value in left.pop(best).items():
            seen[cell] = seen.get(cell, 0) + value
        chosen.append(best)
    return chosen


def _of_kind(v: Verdict, kind: str) -> List[Any]:
    """Images by their gravest mistake of a kind: a confident detection, a large missed object.

    The classes take turns.
    """
    if kind == "missed":
        index = np.flatnonzero(~v.gt_found)
        index = index[np.argsort(-v.gt_area[index], kind="stable")]
        rows = zip(v.gt_category[index].tolist(), v.gt_image[index].tolist())
    else:
        index = np.flatnonzero(v.kind == kind)
        index = index[np.argsort(-v.score[index], kind="stable")]
        rows = zip(v.category[index].tolist(), v.image[index].tolist())
    by_class: Dict[int, List[Any]] = {}
    for category, image in rows:
        by_class.setdefault(category, []).append(image)
    turns = [
        (turn, category, image)
        for category, images in by_class.items()
        for turn, image in enumerate(dict.fromkeys(images))
    ]
    return list(dict.fromkeys(image for _, _, image in sorted(turns, key=lambda t: t[:2])))


def _best(evaluation: Evaluation, mistakes: Dict[Any, Dict[Tuple, float]], count: int) -> List[Any]:
    """Images with many objects and few mistakes."""
    v = evaluation.verdict
    images, number = np.unique(v.gt_image[v.gt_found], return_counts=True)
    score = {
        key: n / (1 + 2 * sum(mistakes.get(key, {}).values()))
        for key, n in zip(images.tolist(), number.tolist())
    }
    return sorted(score, key=lambda key: (-score[key], str(key)))[:count]


def _size(area: float) -> int:
    return next(k for k, (low, high) in enumerate(SIZES.values()) if low <= area < high)


def _objects(v: Verdict, image: Any, rank: Dict[int, int]) -> List[List[float]]:
    """[x, y, width, height, class, size] of the objects of an image."""
    index = np.flatnonzero(v.gt_image == image)
    return [
        [*np.round(v.gt_box[k], 1).tolist(), rank[int(v.gt_category[k])], _size(v.gt_area[k])]
        for k in index
    ]


def _boxes(v: Verdict, image: Any, rank: Dict[int, int], most: int) -> Dict[str, Any]:
    """A run's detections of an image: the best of them, and from which score down each object is
    found (0: not at all)."""
    index = np.flatnonzero((v.image == image) & (v.kind != "ignored"))
    index = index[np.argsort(-v.score[index], kind="stable")]
    kept = index[:most]
    rows = [
        [
            *np.round(v.box[k], 1).tolist(),
            rank[int(v.category[k])],
            round(float(v.score[k]), 3),
            KINDS.index(str(v.kind[k])),
            round(float(v.iou[k]), 2),
            _size(float(v.box[k, 2] * v.box[k, 3])),
        ]
        for k in kept
    ]
    score_of = {int(v.target[k]): float(v.score[k]) for k in index if v.kind[k] == "right"}
    objects = np.flatnonzero(v.gt_image == image).tolist()
    found = [round(score_of.get(g, 0.0), 3) for g in objects]
    return {"boxes": rows, "found": found, "more": len(index) - len(kept)}


def _encode(files: Sequence[Path], budget: int) -> List[Optional[Dict[str, Any]]]:
    """JPEGs of images, all in one quality: the best one that the budget allows.

    A sample of them says what each quality costs.
    """
    if not files:
        return []
    sample = files[:: max(1, len(files) // 6)]
    each = budget * 3 / 4 / len(files)  # base64 takes four bytes for three
    chosen = (_SIDES[-1], _QUALITIES[-1])
    for side, quality in ((s, q) for s in _SIDES for q in _QUALITIES):
        tried = [p for p in (_jpeg(f, side, quality) for f in sample) if p is not None]
        if not tried:
            break
        if sum(len(p["bytes"]) for p in tried) / len(tried) <= each:
            chosen = (side, quality)
            break
    found: List[Optional[Dict[str, Any]]] = []
    for file in files:
        picture = _jpeg(file, *chosen)
        if picture is not None:
            text = base64.b64encode(picture.pop("bytes")).decode()
            picture["src"] = "data:image/jpeg;base64," + text
        found.append(picture)
    absent = [file for file, picture in zip(files, found) if picture is None]
    if absent:
        logger.warning(
            f"{len(absent)} of {len(files)} images of the gallery cannot be read and are left "
            f"out, such as {printable(absent[0])}."
        )
    return found


def _jpeg(file: Path, side: int, quality: int) -> Optional[Dict[str, Any]]:
    """An image as JPEG; None if it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with open_image(file) as image:
            picture = ImageOps.exif_transpose(image).convert("RGB")
        full = picture.size
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=quality, optimize=True)
    # What Pillow raises for broken files, and for those that would unpack to gigabytes.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return {"bytes": buffer.getvalue(), "full": full, "shown": picture.size}


def small_picture(file: Path, side: int = 1400) -> Optional[str]:
    """A picture file as an inline JPEG; None, and a warning, if it cannot be read."""
    picture = _jpeg(file, side, 80)
    if picture is None:
        logger.warning(f"{printable(file)} cannot be read as a picture and is left out.")
        return None
    return "data:image/jpeg;base64," + base64.b64encode(picture["bytes"]).decode()
