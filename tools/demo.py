#!/usr/bin/env python
"""Train a detector on the built-in Shapes data, evaluate it and draw its predictions.

Usage: python tools/demo.py [--config-file F] [--output DIR] [KEY VALUE ...]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUM_PICTURES = 12
SCORE_THRESH = 0.4


def train(config_file, output, overrides):
    """Train and evaluate with train_net.py, as a user would."""
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config_file)]
    # Threads wait for each other many times a step: with one on a busy core all crawl.
    env = {"OMP_NUM_THREADS": str(free_cores()), **os.environ}
    subprocess.run([*command, "OUTPUT_DIR", str(output), *overrides], check=True, env=env)


def free_cores(seconds=1.0):
    """How many cores nothing else uses at the moment, at least 1; all where that is not told."""

    def idle():  # seconds of all cores together
        _, *times = Path("/proc/stat").read_text().splitlines()[0].split()
        return (int(times[3]) + int(times[4])) / os.sysconf("SC_CLK_TCK")

    cores = os.cpu_count() or 1
    try:
        before, start = idle(), time.monotonic()
        time.sleep(seconds)
        free = (idle() - before) / (time.monotonic() - start)
    except OSError:  # not Linux
        return cores
    return max(1, min(cores, round(free)))


def draw(output, overrides):
    """Draw predictions of the trained model on validation images; return what was counted."""
    from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
    from detectron2.modeling import build_model
    from detectron2.structures import BoxMode

    from d2ext import get_cfg
    from d2ext.analysis.predictions import draw_sheet, predict_examples
    from d2ext.engine import Checkpointer

    cfg = get_cfg()
    cfg.merge_from_file(str(output / "config.yaml"))
    cfg.merge_from_list([*overrides, "OUTPUT_DIR", str(output)])
    name = cfg.DATASETS.TEST[0]
    model = build_model(cfg)
    Checkpointer(model).load(str(output / "model_final.pth"))
    loader = build_detection_test_loader(cfg, name, num_workers=0)
    examples = predict_examples(model, loader, NUM_PICTURES, SCORE_THRESH)
    truth = {}
    for item in DatasetCatalog.get(name):
        objects = [a for a in item["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        truth[item["file_name"]] = {
            "boxes": _array(boxes, (-1, 4), "float32"),
            "classes": _array([a["category_id"] for a in objects], (-1,), "int64"),
        }
    path = output / "pictures" / "predictions.png"
    totals = draw_sheet(examples, truth, MetadataCatalog.get(name).thing_classes, path)
    return path, totals


def _array(values, shape, dtype):
    import numpy as np

    return np.asarray(values, dtype=dtype).reshape(shape)


def last_ap(output):
    """AP and AP50 of the last evaluation in metrics.json, if there was one."""
    found = {}
    for line in (output / "metrics.json").read_text().splitlines():
        record = json.loads(line)
        found.update({k: v for k, v in record.items() if k in ("bbox/AP", "bbox/AP50")})
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", type=Path, default=ROOT / "configs" / "Demo" / "dw_shapes.yaml"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()

    start = time.time()
    train(args.config_file, args.output, args.overrides)
    path, totals = draw(args.output, args.overrides)
    figures = ", ".join(f"{k.split('/')[1]} {v:.1f}" for k, v in last_ap(args.output).items())
    print(
        f"Demo done in {(time.time() - start) / 60:.1f} minutes: {figures} on the validation set."
    )
    found = f"{totals['found']} of {totals['objects']} objects found"
    right = f"{totals['right']} of {totals['detections']} detections above {SCORE_THRESH} right"
    print(f"{path}: {found}, {right}.")


if __name__ == "__main__":
    main()
