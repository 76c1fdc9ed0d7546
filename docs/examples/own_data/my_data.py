"""Registers COCO-format data of your own as "my_train" and "my_val".

The files are my_data/train.json and my_data/val.json, the images are in my_data/images, or in a
folder for each split: my_data/images/train and my_data/images/val.
"""

import os

from detectron2.data.datasets import register_coco_instances

ROOT = os.environ.get("MY_DATA", "my_data")

for split in ("train", "val"):
    images = os.path.join(ROOT, "images", split)
    if not os.path.isdir(images):
        images = os.path.join(ROOT, "images")
    register_coco_instances(f"my_{split}", {}, os.path.join(ROOT, f"{split}.json"), images)
