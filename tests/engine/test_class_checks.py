"""Model, data and checkpoint have to mean the same classes, or nothing is computed."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2ext import get_cfg
from d2ext.config.classes import class_count_key
from d2ext.data import tiny_dataset
from d2ext.data.class_names import classes_of, require_same_classes
from d2ext.engine import Trainer, argument_parser
from d2ext.engine.build_data import _repeat_factors
from d2ext.engine.run import main, run
from d2ext.model_zoo import get_config_file

SMALL = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
         "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.MAX_ITER", 1,
         "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0,
         "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "ENGINE.TENSORBOARD", False,
         "MODEL.ROI_MASK_HEAD.CONV_DIM", 32]  # fmt: skip
DETECTORS = ["retinanet", "fcos", "atss", "dw", "faster_rcnn", "cascade_rcnn", "mask_rcnn",
             "harmonic_retinanet"]  # fmt: skip


@pytest.fixture(scope="module")
def three():
    with tiny_dataset("coco", num_images=2, image_size=64, num_classes=3) as name:
        yield name


def load(detector, data, *words):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(f"Demo/{detector}_shapes"))
    cfg.merge_from_list([*SMALL, "DATASETS.TRAIN", (data,), "DATASETS.TEST", (), *words])
    return cfg


@pytest.mark.parametrize("detector", DETECTORS)
def test_more_classes_in_the_data_are_refused(detector, three, tmp_path):
    cfg = load(detector, three, "OUTPUT_DIR", str(tmp_path))
    key = class_count_key(cfg)
    cfg.merge_from_list([key, 2])
    with pytest.raises(ValueError, match=rf"3 classes and the model 2; set {key} to 3|{key}"):
        Trainer(cfg)
    if detector == "retinanet":  # Detectron2's own class is no exception
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        with pytest.raises(ValueError, match=key):
            Trainer(cfg)


def test_fewer_are_warned_of(three, tmp_path, caplog):
    Trainer(load("fcos", three, "OUTPUT_DIR", str(tmp_path)))
    assert f"'{three}' has 3 classes and the model 20" in caplog.text
    assert "set MODEL.FCOS.NUM_CLASSES to 3" in caplog.text


def test_labels_count_where_the_data_name_no_classes(three, tmp_path):
    name = "d2ext_nameless_of_a_test"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(three))
    try:
        words = ("OUTPUT_DIR", str(tmp_path), "MODEL.FCOS.NUM_CLASSES", 1)
        with pytest.raises(ValueError, match="class [12], .* 1 classes, 0 to 0; set MODEL"):
            Trainer(load("fcos", name, *words))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_another_order_of_classes_to_test_on_is_refused(three, tmp_path):
    data = json.loads(Path(MetadataCatalog.get(three).json_file).read_text())
    names = [c["name"] for c in data["categories"]]
    for row, name in zip(data["categories"], reversed(names)):
        row["name"] = name
    file = tmp_path / "turned.json"
    file.write_text(json.dumps(data))
    other = "d2ext_turned_of_a_test"
    register_coco_instances(other, {}, str(file), MetadataCatalog.get(three).image_root)
    try:
        assert classes_of(other) == names[::-1]
        words = ("MODEL.FCOS.NUM_CLASSES", 3, "OUTPUT_DIR", str(tmp_path))
        cfg = load("fcos", three, *words, "DATASETS.TEST", (other,))
        with pytest.raises(ValueError, match="the same classes in another order"):
            Trainer(cfg)
    finally:
        DatasetCatalog.remove(other)
        MetadataCatalog.remove(other)
    require_same_classes("a", None, "b", names)
    with pytest.raises(ValueError, match="^a and b have different classes"):
        require_same_classes("a", names, "b", names[:2])


def evaluate(cfg, tmp_path, *words):
    file = tmp_path / "config.yaml"
    file.write_text(cfg.dump())
    return main(argument_parser().parse_args(["--config-file", str(file), "--eval-only", *words]))


def test_evaluation_needs_weights_for_the_whole_model(three, tmp_path, capsys):
    out = str(tmp_path / "run")
    cfg = load(
        "fcos", three, "DATASETS.TEST", (three,), "MODEL.FCOS.NUM_CLASSES", 3, "OUTPUT_DIR", out
    )
    for words in ([], ["--resume"]):
        with pytest.raises(ValueError, match="There are no weights to evaluate"):
            evaluate(cfg, tmp_path, *words)
    state = Trainer.build_model(cfg).state_dict()
    names = list(classes_of(three))
    path = str(tmp_path / "weights.pth")

    def saved(state, names):
        torch.save({"model": state, "class_names": names}, path)
        return ["MODEL.WEIGHTS", path]

    def refused(words):
        """What the command ends with, and no traceback."""
        words = ["--config-file", str(tmp_path / "config.yaml"), "--eval-only", *words]
        assert run(argument_parser().parse_args(words)) == 1
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return said.err + said.out

    assert evaluate(cfg, tmp_path, *saved(state, names)) == 0
    part = {k: v for k, v in state.items() if "cls_score" not in k}
    with pytest.raises(ValueError, match="no weights for head.cls_score"):
        evaluate(cfg, tmp_path, *saved(part, names))
    assert "no weights for head.cls_score" in refused(["MODEL.WEIGHTS", path])
    with pytest.raises(ValueError, match="weights.pth and .* the same classes in another order"):
        evaluate(cfg, tmp_path, *saved(state, names[::-1]))
    assert "the same classes in another order" in refused(["MODEL.WEIGHTS", path])
    cfg.MODEL.FCOS.NUM_CLASSES = 5
    with pytest.raises(ValueError, match=r"head.cls_score.weight has the shape \(3, .*and \(5, "):
        evaluate(cfg, tmp_path, *saved(state, names))
    assert "head.cls_score.weight has the shape (3, " in refused(["MODEL.WEIGHTS", path])


def test_a_newer_file_of_another_model_is_not_resumed_from(three, tmp_path):
    cfg = load("fcos", three, "MODEL.FCOS.NUM_CLASSES", 3, "OUTPUT_DIR", str(tmp_path))
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "model_9999999.pth")
    with pytest.raises(ValueError, match="model_9999999.pth has no weights for "):
        Trainer(cfg).resume_or_load(resume=True)


def test_repeat_factors_without_the_root(three):
    dicts = [{"annotations": [{"category_id": c} for c in row]} for row in ([0], [0], [0, 1], [2])]
    cfg = load("fcos", three, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    rooted = _repeat_factors(cfg, dicts, [4])
    cfg.DATALOADER.REPEAT_SQRT = False  # a key of newer Detectron2
    plain = _repeat_factors(cfg, dicts, [4])
    assert plain.tolist() == pytest.approx([1.2, 1.2, 3.6, 3.6])
    torch.testing.assert_close(rooted.square(), plain)
