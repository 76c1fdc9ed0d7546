"""Tiny data sets of each form, good ones, for tests to spoil one thing in."""

import contextlib
import json
import logging
import uuid
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.data.datasets.pascal_voc import load_voc_instances
from PIL import Image

from d2ext import get_cfg

WIDTH, HEIGHT, IMAGES = 40, 30, 4
CLASSES = ["cat", "dog"]
LOG = "d2ext.data.checks.kinds"

_XML = """<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>3</ymin>
<xmax>20</xmax><ymax>18</ymax></bndbox></object>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>6</ymin>
<xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def pixels(channels=3):
    """A smooth image that no two channels of are equal."""
    ramp = np.arange(HEIGHT * WIDTH * channels) % 251
    return ramp.reshape(HEIGHT, WIDTH, channels).astype(np.uint8)


class DataSet:
    """One good data set on disk; :meth:`registered` names it for Detectron2.

    Attributes:
        root: its folder.
        data: the content of the JSON file, to be changed; written by :meth:`write`.
        file: the JSON file, or VOC's list of images.
    """

    def __init__(self, root, form):
        self.root, self.form = Path(root), form
        folder = self.root / ("JPEGImages" if form == "voc" else "train")
        folder.mkdir(parents=True)
        for k in range(IMAGES):
            Image.fromarray(pixels()).save(folder / f"{k}.jpg", quality=95)
        self.first = folder / "0.jpg"
        self.data = None if form == "voc" else self._content()
        self.file = self.root / "annotations.json"
        if form == "voc":
            self._write_voc()

    def _content(self):
        images, things = [], []
        for k in range(IMAGES):
            image = {"id": k + 1, "file_name": f"{k}.jpg", "width": WIDTH, "height": HEIGHT}
            if self.form == "lvis":
                image = {**image, "coco_url": f"http://x/train/{image.pop('file_name')}"}
                image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
            images.append(image)
            for c, (x, y, w, h) in enumerate(((2, 2, 18, 16), (10, 5, 30, 25))):
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                things.append(
                    {"id": len(things) + 1, "image_id": k + 1, "category_id": c + 1,
                     "bbox": [x, y, w, h], "area": w * h, "segmentation": [corners]}
                )  # fmt: skip
        categories = [{"id": c + 1, "name": n, "frequency": "f"} for c, n in enumerate(CLASSES)]
        if self.form == "coco":
            things = [{**t, "iscrowd": 0} for t in things]
            categories = [{"id": c["id"], "name": c["name"]} for c in categories]
        return {"images": images, "annotations": things, "categories": categories}

    def _write_voc(self):
        for folder in ("Annotations", "ImageSets/Main"):
            (self.root / folder).mkdir(parents=True)
        for k in range(IMAGES):
            self.xml(k).write_text(_XML.format(w=WIDTH, h=HEIGHT))
        self.file = self.root / "ImageSets" / "Main" / "train.txt"
        self.file.write_text("\n".join(map(str, range(IMAGES))) + "\n")

    def xml(self, number=0):
        return self.root / "Annotations" / f"{number}.xml"

    def change_xml(self, old, new):
        text = self.xml().read_text()
        assert old in text
        self.xml().write_text(text.replace(old, new, 1))

    def write(self):
        """Write the JSON file, unless a test has written something else there."""
        if self.data is not None and not self.file.exists():
            self.file.write_text(json.dumps(self.data))

    @contextlib.contextmanager
    def registered(self):
        self.write()
        name = f"bad_{self.form}_{uuid.uuid4().hex[:8]}"
        meta = MetadataCatalog.get(name)
        if self.form == "voc":
            load = lambda: load_voc_instances(str(self.root), "train", CLASSES)  # noqa: E731
            meta.set(thing_classes=CLASSES, dirname=str(self.root), split="train", year=2012)
            meta.set(evaluator_type="pascal_voc")
        else:
            images = str(self.root / "train") if self.form == "coco" else f"{self.root}/"
            meta.set(json_file=str(self.file), image_root=images, evaluator_type=self.form)
            if self.form == "lvis":
                meta.set(thing_classes=CLASSES)
                load = partial(load_lvis_json, str(self.file), images)
            else:
                load = partial(load_coco_json, str(self.file), images, name)
        DatasetCatalog.register(name, load)
        try:
            yield name
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def config(name, *words):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "SOLVER.IMS_PER_BATCH", IMAGES,
         "DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False,
         "INPUT.MIN_SIZE_TRAIN", (HEIGHT,), "INPUT.MIN_SIZE_TEST", HEIGHT,
         "INPUT.RANDOM_FLIP", "none", "INPUT.MASK_FORMAT", "bitmask", "SEED", 1, *words]
    )  # fmt: skip
    return cfg


@contextlib.contextmanager
def logged():
    """What the checks log, whatever other tests did to the loggers."""
    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger(LOG).addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger(LOG).removeHandler(handler)
