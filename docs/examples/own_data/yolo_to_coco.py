"""Converts YOLO text labels to one COCO JSON file.

    python docs/examples/own_data/yolo_to_coco.py my_data/images my_data/labels my_data/train.json \
        --classes cat dog

A label file has the name of its image and a line "class x y width height" for each object, the
centre and the size as shares of the image. An image without a label file has no objects.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def convert(images: Path, labels: Path, classes: list) -> dict:
    data = {"images": [], "annotations": []}
    data["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    for path in sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES):
        width, height = Image.open(path).size
        image = {"id": len(data["images"]) + 1, "file_name": path.name}
        data["images"].append({**image, "width": width, "height": height})
        file = labels / f"{path.stem}.txt"
        lines = file.read_text().split("\n") if file.exists() else []
        for line in filter(str.strip, lines):
            kind, x, y, w, h = line.split()[:5]
            w, h = float(w) * width, float(h) * height
            box = [float(x) * width - w / 2, float(y) * height - h / 2, w, h]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(kind) + 1,
                    "bbox": box,
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--classes", nargs="+", required=True)
    args = parser.parse_args()
    found = convert(args.images, args.labels, args.classes)
    args.output.write_text(json.dumps(found))
    print(f"{len(found['annotations'])} objects in {len(found['images'])} images: {args.output}")
