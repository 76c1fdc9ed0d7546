#!/usr/bin/env python
"""What ``d2ext predict`` found, in supervision and in FiftyOne.

d2ext predict photos/ --weights output/model_final.pth --output found
python docs/examples/predictions/to_other_tools.py found/predictions.json
"""

import json
import sys
from pathlib import Path


def read_detections(path):
    """Image file -> boxes XYXY, class names and scores."""
    data = json.loads(Path(path).read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    found = {image["id"]: (image["file_name"], [], [], []) for image in data["images"]}
    for item in data["annotations"]:
        x, y, w, h = item["bbox"]
        _, boxes, classes, scores = found[item["image_id"]]
        boxes.append([x, y, x + w, y + h])
        classes.append(names[item["category_id"]])
        scores.append(item["score"])
    return {file: rest for file, *rest in found.values()}


def to_supervision(path):
    """Image file -> ``supervision.Detections``, for its annotators, trackers and counters."""
    import numpy as np
    import supervision

    return {
        file: supervision.Detections(
            xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
            confidence=np.array(scores, dtype=np.float32),
            data={"class_name": np.array(classes, dtype=str)},
        )
        for file, (boxes, classes, scores) in read_detections(path).items()
    }


def to_fiftyone(path, name="d2ext predictions"):
    """A FiftyOne data set whose samples have the detections in the field "predictions"."""
    import fiftyone

    data = json.loads(Path(path).read_text())
    sizes = {i["file_name"]: (i["width"], i["height"]) for i in data["images"]}
    dataset = fiftyone.Dataset(name)
    for file, (boxes, classes, scores) in read_detections(path).items():
        width, height = sizes[file]
        detections = [
            fiftyone.Detection(
                label=label,
                confidence=score,
                bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
            )
            for (x1, y1, x2, y2), label, score in zip(boxes, classes, scores)
        ]
        sample = fiftyone.Sample(filepath=file)
        sample["predictions"] = fiftyone.Detections(detections=detections)
        dataset.add_sample(sample)
    return dataset


if __name__ == "__main__":
    for file, (boxes, classes, scores) in read_detections(sys.argv[1]).items():
        best = f", the best a {classes[0]} ({scores[0]:.2f})" if boxes else ""
        print(f"{file}: {len(boxes)} objects{best}")
