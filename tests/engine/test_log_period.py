"""What the methods log stands in the same line as the losses, whatever the period."""

import json

import pytest

from d2ext import model_zoo
from d2ext.data import tiny_dataset
from d2ext.engine import Trainer

METHODS = {
    "dw_shapes": ((), ("dw/num_gt", "dw/neg_norm")),
    "retinanet_shapes": (
        ("MODEL.HARMONIC.ENABLED", True, "MODEL.SAMPLING_FREE.ENABLED", True,
         "MODEL.SAMPLING_FREE.PRIOR", 0.01),
        ("harmonic/dense/beta_r", "harmonic/dense/score_iou_gap", "guided/dense/ratio"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    with tiny_dataset("coco", num_images=4, num_classes=3) as name:
        yield name


def lines_of_a_run(data, out, name, *words):
    """The lines of metrics.json that tell the loss, of a few tiny steps."""
    cfg = model_zoo.get_config(f"Demo/{name}")
    cfg.merge_from_list(
        [
            "DATASETS.TRAIN", (data,), "DATASETS.TEST", (), "OUTPUT_DIR", str(out),
            "MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CONVS", 1,
            "MODEL.DW.NUM_CLASSES", 3, "MODEL.DW.NUM_CONVS", 1,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
            "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 6,
            "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (), "ENGINE.TENSORBOARD", False, *words,
        ]
    )  # fmt: skip
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = map(json.loads, (out / "metrics.json").read_text().splitlines())
    return [line for line in lines if "total_loss" in line]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("period", [3, 0])
def test_one_line_has_all_numbers(data, tmp_path, name, period):
    words, scalars = METHODS[name]
    if period:
        lines = lines_of_a_run(data, tmp_path, name, *words, "ENGINE.LOG_PERIOD", period)
        assert [line["iteration"] for line in lines] == [2, 5]
    else:  # --fast-dev-run, which logs every step
        lines = lines_of_a_run(data, tmp_path, name, *words, "ENGINE.FAST_DEV_RUN", True)
        assert lines
    assert all(set(scalars) <= set(line) for line in lines)
