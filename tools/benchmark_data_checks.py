#!/usr/bin/env python
"""Seconds that the checks of annotations take on a made-up data set of COCO's size.

    python tools/benchmark_data_checks.py [--images 118287] [--boxes 860001]

Seconds are those of this process' own work on the CPU, so other programs disturb them little.
"""

import argparse
import time

import numpy as np
from detectron2.structures import BoxMode

from d2ext.data.checks.dicts import check_annotations, check_images
from d2ext.data.checks.json_file import check_json


def make_json(num_images, num_boxes):
    """The content of a COCO file with a polygon for each box, and runs for one in a hundred."""
    rng = np.random.default_rng(0)
    corners, sides = rng.random((num_boxes, 2)) * 300, rng.random((num_boxes, 2)) * 200 + 1
    boxes = np.concatenate([corners, sides], 1).round(2).tolist()
    owners = np.sort(rng.integers(0, num_images, num_boxes)).tolist()
    images = [
        {"id": k, "file_name": f"{k}.jpg", "width": 640, "height": 640} for k in range(num_images)
    ]
    things = [
        {"id": k, "image_id": owners[k], "category_id": k % 80, "bbox": boxes[k], "iscrowd": 0}
        for k in range(num_boxes)
    ]
    runs = {"size": [640, 640], "counts": [100, 200, 640 * 640 - 300]}
    for k, thing in enumerate(things):
        thing["segmentation"] = [[1.0] * 30] if k % 100 else runs
    categories = [{"id": k, "name": str(k)} for k in range(80)]
    return {"images": images, "annotations": things, "categories": categories}


def make_dicts(data):
    """The dataset dicts of that file."""
    size = {"width": 640, "height": 640}
    dicts = [
        {"file_name": i["file_name"], "image_id": i["id"], **size, "annotations": []}
        for i in data["images"]
    ]
    for thing in data["annotations"]:
        row = {"bbox": thing["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
        dicts[thing["image_id"]]["annotations"].append({**row, "category_id": thing["category_id"]})
    return dicts


def timed(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=118287)
    parser.add_argument("--boxes", type=int, default=860001)
    args = parser.parse_args()
    data = make_json(args.images, args.boxes)
    print(f"annotation file: {timed(check_json, data, 'the file'):.2f} s")
    dicts = make_dicts(data)
    seconds = timed(check_images, dicts) + timed(check_annotations, dicts, 80)
    print(f"dataset dicts:   {seconds:.2f} s")


if __name__ == "__main__":
    main()
