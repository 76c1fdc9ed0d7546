"""Pascal VOC's XML files as one COCO JSON file."""

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from .checks.kinds import settle
from .checks.voc_files import check_split, check_xml, read_split, read_xml, split_file
from .sources.tree import Tree
from .sources.voc import image_of_xml

__all__ = ["voc_to_coco"]


def voc_to_coco(
    folder: Path,
    split: Optional[str] = None,
    classes: Optional[Sequence[str]] = None,
    difficult: str = "keep",
) -> Dict[str, Any]:
    """Read a VOC folder.

    Pixels count from 1 in VOC and from 0 in COCO; the boxes are those that Detectron2 reads from
    VOC. An image is the one of its XML file's name, whatever <filename> says.

    Args:
        folder: holds ``Annotations``, ``JPEGImages`` and, for splits, ``ImageSets/Main``.
        split: name of a file in ``ImageSets/Main``; all annotations if not given.
        classes: their names in the order of the ids; those that occur, sorted, if not given.
        difficult: what to do with objects marked so: "keep" them as others, make them "crowd"
            regions (evaluation ignores what hits them), or "drop" them.

    Returns:
        ``images``, ``annotations`` and ``categories``; ids count from 1
    """
    if difficult not in ("keep", "crowd", "drop"):
        raise ValueError(f"Difficult objects can be kept, crowd or dropped, not '{difficult}'.")
    folder = Path(folder)
    names = _names(folder, split)
    pictures = Tree(str(folder / "JPEGImages"))
    images: List[Dict[str, Any]] = []
    found: List[Any] = []
    for number, name in enumerate(names, 1):
        path = os.path.join(folder, "Annotations", f"{name}.xml")
        # Boxes are converted as they are; 'd2ext data check' judges those of the new file.
        unreadable = ("broken XML", "malformed box")
        settle([p for p in check_xml(path) if p.kind in unreadable], str(folder))
        root = read_xml(path)
        size: Any = root.find("size")
        image: Optional[str] = f"{name}{Path(root.findtext('filename') or '').suffix or '.jpg'}"
        if pictures.images:  # they may be elsewhere, where annotations alone are converted
            image = image_of_xml(pictures, f"{name}.xml", root)
        if image is None:
            raise FileNotFoundError(f"{path} has no image in {pictures.root}; add it.")
        images.append(
            {
                "id": number,
                "file_name": image,
                "width": int(size.findtext("width")),
                "height": int(size.findtext("height")),
            }
        )
        found += [(number, thing) for thing in root.iter("object")]
    if classes is None:
        classes = sorted({thing.findtext("name") for _, thing in found})
    ids = {name: k for k, name in enumerate(classes, 1)}
    annotations: List[Dict[str, Any]] = []
    for number, thing in found:
        hard = thing.findtext("difficult") == "1"
        if hard and difficult == "drop":
            continue
        if thing.findtext("name") not in ids:
            raise ValueError(
                f"{images[number - 1]['file_name']} has an object of the class "
                f"'{thing.findtext('name')}', which is not among the classes given."
            )
        annotations.append(_annotation(len(annotations) + 1, number, ids, thing))
        annotations[-1]["iscrowd"] = int(hard and difficult == "crowd")
    categories = [{"id": k, "name": name} for name, k in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(key: int, image: int, ids: Dict[str, int], thing: Any) -> Dict[str, Any]:
    box = thing.find("bndbox")
    x1, y1, x2, y2 = (float(box.findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax"))
    x1, y1 = x1 - 1, y1 - 1
    return {
        "id": key,
        "image_id": image,
        "category_id": ids[thing.findtext("name")],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
    }


def _names(folder: Path, split: Optional[str]) -> List[str]:
    if split is None:
        names = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
        if not names:
            raise FileNotFoundError(f"{folder / 'Annotations'} has no XML file.")
        return names
    path = split_file(str(folder), split)
    # The lists of single classes have a second column, which says whether the class is there.
    names = [line.split()[0] for line in read_split(path)]
    settle([p for p in check_split(names, path) if p.kind == "duplicate image id"], path)
    return names
