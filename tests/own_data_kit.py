"""A small set of pictures, written in every form that people have."""

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

#: Names in the order of their labels.
CLASSES = ["bird", "cat", "dog"]
SIZE = (120, 80)
#: What every form has to give: image stem -> (class, x1, y1, x2, y2) in pixels from 0.
OBJECTS = {
    f"pic_{k:02}": [
        (CLASSES[(k + j) % 3], 10.0 + 4 * k, 8.0 + 3 * j, 42.0 + 4 * k, 30.0 + 3 * j)
        for j in range(1 + k % 2)
    ]
    for k in range(10)
}
SPLITS = {"train": list(OBJECTS)[:6], "val": list(OBJECTS)[6:8], "test": list(OBJECTS)[8:]}


def split_of(stem):
    return next(split for split, stems in SPLITS.items() if stem in stems)


def draw(folder, stem, suffix=".png"):
    """The picture of a stem: noise of its own, and a bright rectangle for each object."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = int(stem[-2:])
    pixels = np.random.RandomState(number).randint(0, 90, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    pixels[:, : 12 * number + 4, number % 3] += 60
    for name, *box in OBJECTS[stem]:
        x1, y1, x2, y2 = map(int, box)
        pixels[y1:y2, x1:x2, CLASSES.index(name)] = 255
    path = folder / f"{stem}{suffix}"
    Image.fromarray(pixels).save(path)
    return path


def xml(stem, filename):
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = filename
    size = ET.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*SIZE, 3)):
        ET.SubElement(size, key).text = str(value)
    for name, x1, y1, x2, y2 in OBJECTS[stem]:
        thing = ET.SubElement(root, "object")
        ET.SubElement(thing, "name").text = name
        box = ET.SubElement(thing, "bndbox")
        corners = (x1 + 1, y1 + 1, x2, y2)  # VOC counts from 1, and both corners are inside
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners):
            ET.SubElement(box, key).text = str(int(value))
    return ET.tostring(root, encoding="unicode")


def write_voc_tree(root):
    for stem in OBJECTS:
        draw(root / "JPEGImages", stem)
        write(root / "Annotations" / f"{stem}.xml", xml(stem, f"{stem}.png"))
    for split, stems in SPLITS.items():
        write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(stems))


def write_flat_voc(root):
    """Two folders of any name; every third <filename> lacks its suffix, one names another file."""
    for k, stem in enumerate(OBJECTS):
        draw(root / "steel pictures", stem)
        told = stem if k % 3 == 0 else f"{stem}.png"
        write(root / "labels xml" / f"{stem}.xml", xml(stem, "pic_00.png" if k == 4 else told))


def shares(x1, y1, x2, y2):
    w, h = SIZE
    return (x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h


def yolo_lines(stem, polygons=False):
    lines = []
    for name, x1, y1, x2, y2 in OBJECTS[stem]:
        values = shares(x1, y1, x2, y2)
        if polygons:
            corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
            values = [v for x, y in corners for v in (x / SIZE[0], y / SIZE[1])]
        lines.append(" ".join([str(CLASSES.index(name)), *(f"{v:.8f}" for v in values)]))
    return "\n".join(lines) + "\n"


def write_yolo(root, polygons=False, names=CLASSES):
    """As ultralytics has it: images/train beside labels/train, and a data.yaml."""
    for stem in OBJECTS:
        split = split_of(stem)
        draw(root / "images" / split, stem)
        write(root / "labels" / split / f"{stem}.txt", yolo_lines(stem, polygons))
    entries = {split: f"images/{split}" for split in SPLITS}
    write(
        root / "data.yaml",
        yaml.safe_dump({"path": ".", **entries, "names": dict(enumerate(names))}),
    )


def write_yolo_polygons(root):
    write_yolo(root, polygons=True)


def write_roboflow_yolo(root):
    """train/images and train/labels, and paths in data.yaml that lead nowhere."""
    folders = {"train": "train", "val": "valid", "test": "test"}
    for stem in OBJECTS:
        folder = root / folders[split_of(stem)]
        draw(folder / "images", stem)
        write(folder / "labels" / f"{stem}.txt", yolo_lines(stem))
    entries = {split: f"../{folder}/images" for split, folder in folders.items()}
    write(root / "data.yaml", yaml.safe_dump({**entries, "nc": 3, "names": CLASSES}))


def write_plain_yolo(root):
    """Labels beside their images, and the names in classes.txt."""
    for stem in OBJECTS:
        draw(root, stem)
        write(root / f"{stem}.txt", yolo_lines(stem))
    write(root / "classes.txt", "\n".join(CLASSES))


def coco(stems, first_id=1, heading=False):
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    if heading:
        categories = [{"id": 0, "name": "animals", "supercategory": "none"}] + [
            {**row, "supercategory": "animals"} for row in categories
        ]
    images, annotations = [], []
    for number, stem in enumerate(stems, first_id):
        images.append(
            {"id": number, "file_name": f"{stem}.png", "width": SIZE[0], "height": SIZE[1]}
        )
        for name, x1, y1, x2, y2 in OBJECTS[stem]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": CLASSES.index(name) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root):
    for split, stems in SPLITS.items():
        for stem in stems:
            draw(root / "images" / split, stem)
        write(root / "annotations" / f"instances_{split}2017.json", json.dumps(coco(stems)))


def write_coco_one(root):
    """One file, and images in a folder beside it."""
    for stem in OBJECTS:
        draw(root / "pictures", stem)
    write(root / "labels.json", json.dumps(coco(OBJECTS)))


def write_roboflow_coco(root):
    for split, stems in SPLITS.items():
        folder = root / ("valid" if split == "val" else split)
        for stem in stems:
            draw(folder, stem)
        write(folder / "_annotations.coco.json", json.dumps(coco(stems, 0, heading=True)))


def write_lvis(root):
    for split in ("train", "val"):
        data = coco(SPLITS[split])
        for stem, row in zip(SPLITS[split], data["images"]):
            draw(root / f"{split}2017", stem)
            row["coco_url"] = f"http://images/{split}2017/{row.pop('file_name')}"
            row.update(neg_category_ids=[1], not_exhaustive_category_ids=[2])
        for row in data["categories"]:
            row["frequency"] = "f"
        for row in data["annotations"]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        write(root / f"lvis_v1_{split}.json", json.dumps(data))


def write_labelme(root, polygons=False):
    for stem in OBJECTS:
        draw(root, stem)
        shapes = []
        for name, x1, y1, x2, y2 in OBJECTS[stem]:
            points = [[x2, y2], [x1, y1]]  # corners in any order
            if polygons:
                points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
            kind = "polygon" if polygons else "rectangle"
            shapes.append({"label": name, "points": points, "shape_type": kind})
        content = {"shapes": shapes, "imagePath": f"{stem}.png", "imageData": None}
        content.update(imageWidth=SIZE[0], imageHeight=SIZE[1])
        write(root / f"{stem}.json", json.dumps(content))


def write_labelme_polygons(root):
    write_labelme(root, polygons=True)


def write_csv(root, header=("filename", "xmin", "ymin", "xmax", "ymax", "class", "split")):
    for stem in OBJECTS:
        draw(root / "images", stem)
    with open(root / "boxes.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        for stem, things in OBJECTS.items():
            for name, *box in things:
                table.writerow([f"images/{stem}.png", *box, name, split_of(stem)][: len(header)])


def write_pixel_boxes(root):
    """As /labels of numbers, with lists of the splits."""
    for stem in OBJECTS:
        draw(root / "images", stem)
        lines = [
            f"{x1:g} {y1:g} {x2:g} {y2:g} {CLASSES.index(name) + 1}"
            for name, x1, y1, x2, y2 in OBJECTS[stem]
        ]
        write(root / "labels" / f"{stem}.txt", "\n".join(lines) + "\n")
    write(root / "classes.txt", "\n".join(CLASSES))
    write(root / "trainval.txt", "\n".join(SPLITS["train"] + SPLITS["val"]))
    write(root / "test.txt", "\n".join(SPLITS["test"]))


def write_deeppcb(root):
    """The layout of DeepPCB's public repository, template images included."""
    lines = {"trainval": [], "test": []}
    for stem in OBJECTS:
        group = root / "PCBData" / f"group{stem[-1]}"
        image = draw(group / stem[-2:], stem)
        image.rename(image.with_name(f"{stem}_test.png"))
        draw(group / stem[-2:], stem).rename(image.with_name(f"{stem}_temp.png"))
        boxes = [
            f"{x1:g} {y1:g} {x2:g} {y2:g} {CLASSES.index(name) + 1}"
            for name, x1, y1, x2, y2 in OBJECTS[stem]
        ]
        write(group / f"{stem[-2:]}_not" / f"{stem}.txt", "\n".join(boxes) + "\n")
        place = f"group{stem[-1]}/{stem[-2:]}"
        key = "test" if split_of(stem) == "test" else "trainval"
        lines[key].append(f"{place}/{stem}.png {place}_not/{stem}.txt")
    for key, rows in lines.items():
        write(root / "PCBData" / f"{key}.txt", "\n".join(rows))


def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
