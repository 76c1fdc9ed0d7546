"""Output folders of trainings, made up: figures, config, and an evaluation with its pictures."""

import json

import numpy as np
import yaml
from PIL import Image

from d2ext.evaluation import Predictions
from d2ext.run_index import record

CLASSES = ["ball", "cup", "<img src=x onerror=alert(1)>"]


def write_run(folder, lr=0.1, alwa=False, **extra):
    """An output folder with six rows of figures."""
    folder.mkdir(parents=True)
    rows = []
    for k in range(6):
        row = {"iteration": 20 * k + 19, "loss_cls": 1.0 / (k + 1), "loss_box_reg": 0.5, "lr": lr,
               "total_loss": 1.0 / (k + 1) + 0.5, "time": 0.25, "data_time": 0.01}  # fmt: skip
        if alwa and k >= 2:
            row.update({"alwa/dense/w_cls": 0.5, "alwa/dense/w_box": 1.0})
        rows.append(row)
    rows[2].update({"bbox/AP": 10.0, "bbox/AP50": 20.0})
    rows[5].update({"bbox/AP": 12.5, "bbox/AP50": 25.0, "bbox/AP-<script>": 30.0, "bbox/AP-b": 5.0})
    (folder / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {"SOLVER": {"BASE_LR": lr, "IMS_PER_BATCH": 8, "ALWA": {"ENABLED": alwa}}, **extra}
    if alwa:
        from d2ext.config import get_cfg

        config["SOLVER"]["ALWA"]["GROUPS"] = list(get_cfg().SOLVER.ALWA.GROUPS)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_data(folder, images=8, seed=0, size=(96, 64), prefix="img"):
    """Images of rectangles and their annotations; returns the JSON file."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "images": [], "annotations": [],
        "categories": [{"id": 7 * c + 1, "name": name} for c, name in enumerate(CLASSES)],
    }  # fmt: skip
    for k in range(images):
        pixels = np.full((size[1], size[0], 3), 230, np.uint8)
        name = f"{prefix}_{k}.jpg"
        data["images"].append({"id": k, "file_name": name, "width": size[0], "height": size[1]})
        for _ in range(rng.integers(1, 5)):
            x, y = (int(v) for v in rng.integers(0, 40, 2))
            w, h = (int(v) for v in rng.integers(10, 24, 2))
            c = int(rng.integers(len(CLASSES)))
            pixels[y : y + h, x : x + w] = (200 * (c == 0), 200 * (c == 1), 200 * (c == 2))
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "image_id": k, "category_id": 7 * c + 1,
                 "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
        Image.fromarray(pixels).save(folder / name)
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return path


def write_evaluation(run, json_file, seed=0, name="made_val"):
    """Detections near the objects, some wrong, as an evaluator writes them."""
    rng = np.random.default_rng(seed)
    data = json.loads(json_file.read_text())
    index, boxes, scores, classes = [], [], [], []
    for a in data["annotations"]:
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = np.array(a["bbox"]) + rng.normal(0, 2.5, 4)
            index.append(a["image_id"])
            boxes.append([x, y, x + max(w, 2), y + max(h, 2)])
            scores.append(rng.random())
            right = rng.random() < 0.8
            classes.append(a["category_id"] // 7 if right else rng.integers(len(CLASSES)))
    found = Predictions(
        [i["id"] for i in data["images"]], np.array(index, np.int32), np.array(boxes, np.float32),
        np.array(scores, np.float32), np.array(classes, np.int32),
    )  # fmt: skip
    folder = run / "inference" / name
    folder.mkdir(parents=True)
    with open(folder / "instances_predictions.npz", "wb") as stream:
        found.save(stream)
    about = {"name": name, "json_file": str(json_file), "image_root": str(json_file.parent)}
    about.update(style="coco", category_ids=[1, 8, 15])
    (folder / "evaluation.json").write_text(json.dumps(about))
    where = {"json_file": str(json_file), "image_root": str(json_file.parent)}
    record(run, "data", split="train", name=f"{name}_train", **where)
    record(run, "data", split="test", name=name, **where)
    return found
