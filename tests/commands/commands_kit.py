"""A tiny project for the tests of sub-commands: a config file, its data set, one call."""

import contextlib
import json
from pathlib import Path

import yaml

from d2ext.cli import main
from d2ext.data import tiny_dataset

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "MODEL": {
        "RESNETS": {"STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8},
        "FPN": {"OUT_CHANNELS": 32},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [96], "MIN_SIZE_TEST": 96},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "WARMUP_ITERS": 1},
}


def merged(*parts):
    """Nested dictionaries as one, the last wins."""
    result = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict) and isinstance(result.get(key), dict):
                value = merged(result[key], value)
            result[key] = value
    return result


def write_config(folder, name, base="fcos_shapes", **more):
    """A YAML file upon a demo config, made tiny, for the registered data set ``name``."""
    heads = {k: {"NUM_CLASSES": 3} for k in ("FCOS", "RETINANET", "ATSS", "DW", "ROI_HEADS")}
    if base.startswith("dw"):
        heads["DW"]["NUM_CONVS"] = 1
    else:
        heads.pop("DW")
    # In a base file of its own, so that keys for other detectors are not the user's.
    tiny = merged(
        TINY, {"MODEL": heads, "DATASETS": {"TRAIN": [name], "TEST": [name]}},
        {"_BASE_": str(ROOT / "configs" / "Demo" / f"{base}.yaml")},
    )  # fmt: skip
    (folder / f"{base}_base.yaml").write_text(yaml.safe_dump(tiny))
    path = folder / f"{base}.yaml"
    path.write_text(yaml.safe_dump({"_BASE_": f"{base}_base.yaml", **more}))
    return path


@contextlib.contextmanager
def tiny_project(folder, base="fcos_shapes", form="coco", **more):
    """Yields the name of a data set and a config file for it."""
    with tiny_dataset(form, num_images=4) as name:
        yield name, write_config(folder, name, base, **more)


def call(*words):
    """Run a sub-command; its exit status."""
    return main([str(word) for word in words])


def read_json(path):
    return json.loads(Path(path).read_text())
