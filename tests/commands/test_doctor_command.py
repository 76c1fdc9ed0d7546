"""The doctor finds what is planted, and nothing where nothing is."""

import json
import math
import os

import pytest
import torch
from commands_kit import call, read_json, tiny_project
from detectron2.data import MetadataCatalog

from d2ext.analysis.annotation_check import check_coco, check_dicts, summarize_problems
from d2ext.analysis.key_reads import changed_keys, recording
from d2ext.config import get_cfg


def examine(folder, config, *words):
    code = call("doctor", config, "--output", folder / "out", *words)
    return code, read_json(folder / "out" / "doctor.json")


def of(report, topic, level):
    return [f for f in report["findings"] if (f["topic"], f["level"]) == (topic, level)]


def test_sound_config_passes_and_is_timed(tmp_path):
    with tiny_project(tmp_path) as (name, config):
        code, report = examine(tmp_path, config, "--steps", 2)
    assert code == 0 and report["counts"]["error"] == 0 and report["counts"]["warning"] == 0
    assert "s a step on cpu" in of(report, "steps", "ok")[0]["what"]
    assert report["versions"]["torch"]


def test_steps_and_costs_are_those_of_the_training(tmp_path, monkeypatch):
    """Micro-steps of a part of the batch, autocast, and a schedule in epochs."""
    from d2ext.modeling.meta_arch.fcos import ExtFCOS

    seen, forward = [], ExtFCOS.forward

    def watched(self, batch):
        seen.append((len(batch), torch.is_autocast_enabled("cpu")))
        return forward(self, batch)

    monkeypatch.setattr(ExtFCOS, "forward", watched)
    solver = {"IMS_PER_BATCH": 2, "ACCUMULATE": 2, "EPOCHS": 3.0,
              "AMP": {"ENABLED": True, "DTYPE": "bf16"}}  # fmt: skip
    with tiny_project(tmp_path, SOLVER=solver) as (name, config):
        code, report = examine(tmp_path, config, "--steps", 1)
    assert code == 0 and seen == [(1, True), (1, True)]
    # 3 epochs of 4 images in steps of 2.
    assert " 6 steps of 2 images in 2 micro-steps;" in of(report, "steps", "ok")[0]["what"]


def test_wrong_class_count(tmp_path):
    with tiny_project(tmp_path) as (name, config):
        # The training learns the classes of a COCO file when it loads the images.
        classes = MetadataCatalog.get(name).thing_classes
        del MetadataCatalog.get(name).thing_classes
        for count, level, wanted in ((2, "error", 1), (7, "warning", 0)):
            words = ("--steps", 0, "--opts", "MODEL.FCOS.NUM_CLASSES", count)
            code, report = examine(tmp_path, config, *words)
            assert code == wanted
            (finding,) = of(report, "classes", level)
            assert f"{count} classes" in finding["what"] and "has 3" in finding["what"]
            assert finding["fix"] == "Set MODEL.FCOS.NUM_CLASSES to 3."
        MetadataCatalog.get(name).thing_classes = classes


def test_key_of_another_detector_names_the_one_that_was_meant(tmp_path):
    more = {"MODEL": {"ROI_HEADS": {"SCORE_THRESH_TEST": 0.3}}}
    with tiny_project(tmp_path, "retinanet_shapes", **more) as (name, config):
        code, report = examine(tmp_path, config, "--steps", 0)
    (finding,) = of(report, "keys", "warning")
    assert finding["what"].startswith("MODEL.ROI_HEADS.SCORE_THRESH_TEST ")
    assert finding["fix"].startswith("MODEL.RETINANET.SCORE_THRESH_TEST ")
    assert code == 0  # a warning


def test_misplaced_key_is_an_error_that_names_the_right_one(tmp_path):
    with tiny_project(tmp_path, BASE_LR=0.1) as (name, config):
        code, report = examine(tmp_path, config)
    assert code == 1
    assert "SOLVER.BASE_LR" in of(report, "config", "error")[0]["what"]


def plant(name):
    """Put one annotation of each bad kind into a data set; returns the file it is in."""
    meta = MetadataCatalog.get(name)
    with open(meta.json_file) as f:
        data = json.load(f)
    image = data["images"][0]
    good = dict(data["annotations"][0], image_id=image["id"])
    width = image["width"]
    bad = [
        dict(good, id=9001, bbox=[5, 5, 0, 10]),
        dict(good, id=9002, bbox=[width + 5, 5, 10, 10]),
        dict(good, id=9003, bbox=[5, 5, math.nan, 10]),
        dict(good, id=9004, category_id=99),
        dict(good, id=9005, bbox=[5, 5, width, 10]),
        dict(good, id=9006, image_id=777),
    ]
    data["annotations"] += bad
    data["images"].append(dict(image, id=555, file_name="gone.png"))
    with open(meta.json_file, "w") as f:
        json.dump(data, f)
    return image["file_name"], data, meta.image_root


def test_planted_bad_annotations(tmp_path):
    with tiny_project(tmp_path) as (name, config):
        file, data, root = plant(name)
        code, report = examine(tmp_path, config)
        summary = summarize_problems(check_coco(data, root))
    assert code == 1
    text = " ".join(f["what"] for f in of(report, "data", "error"))
    for kind in ("zero area", "outside", "not finite", "unknown class", "missing file",
                 "no such image"):  # fmt: skip
        assert f"1 x {kind}" in text, kind
        assert summary[kind]["count"] == 1
    assert file in text and "gone.png" in text
    assert "partly outside" in of(report, "data", "warning")[0]["what"]


def test_clean_data_has_no_problem(tmp_path):
    with tiny_project(tmp_path) as (name, _):
        meta = MetadataCatalog.get(name)
        from detectron2.data import DatasetCatalog

        dicts = DatasetCatalog.get(name)
        with open(meta.json_file) as f:
            assert check_coco(json.load(f), meta.image_root) == []
        assert check_dicts(dicts, 3) == []
        kinds = {p.kind for p in check_dicts(dicts, 1)}
        assert kinds == {"unknown class"}
        os.remove(dicts[0]["file_name"])
        assert [p.kind for p in check_dicts(dicts, 3)] == ["missing file"]


def test_weights_are_counted(tmp_path):
    from d2ext.analysis.doctor import build_recorded, check_weights
    from d2ext.commands.common import load_config

    with tiny_project(tmp_path) as (name, config):
        cfg = load_config(str(config), [])
        model = build_recorded(cfg)["model"]
        tensors = model.state_dict()
        state = {k: v for k, v in tensors.items() if "num_batches" not in k}
        kept = dict(list(state.items())[: len(state) * 3 // 4])
        first = next(k for k, v in kept.items() if v.dim() == 4)
        kept[first] = torch.zeros(1, 2, 3, 3)
        torch.save({"model": kept}, tmp_path / "part.pth")
        cfg.MODEL.WEIGHTS = str(tmp_path / "part.pth")
        (finding,) = check_weights(cfg, model)
        assert finding.what.startswith(f"{len(kept) - 1} of {len(state)} tensors")
        assert "1 have another shape" in finding.what
        cfg.MODEL.WEIGHTS = str(tmp_path / "none.pth")
        assert check_weights(cfg, model)[0].level == "error"
        cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT = "", 2
        assert "FREEZE_AT is 2" in check_weights(cfg, model)[0].what


def test_packaged_weights_are_counted():
    from d2ext import model_zoo
    from d2ext.analysis.doctor import build_recorded, check_weights

    cfg = model_zoo.get_config("Small/fcos_lite0")
    cfg.MODEL.DEVICE = "cpu"
    model = build_recorded(cfg)["model"]
    (finding,) = check_weights(cfg, model)
    assert finding.level == "ok" and "come from d2ext://efficientnet_lite0" in finding.what
    cfg.MODEL.WEIGHTS = "d2ext://unknown"
    (finding,) = check_weights(cfg, model)
    assert finding.level == "error" and "There are no weights d2ext://unknown" in finding.what


@pytest.mark.parametrize(
    "overrides, topic, text",
    [
        (["SOLVER.REFERENCE_BATCH", "16", "SOLVER.IMS_PER_BATCH", "4"], "lr", "to 0.0005"),
        (["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "1.0"], "lr", "about 0.00125"),
        (["SOLVER.WARMUP_ITERS", "9"], "schedule", "WARMUP_ITERS"),
    ],
)
def test_schedule(tmp_path, overrides, topic, text):
    from d2ext.analysis.doctor import check_schedule
    from d2ext.commands.common import load_config

    with tiny_project(tmp_path) as (name, config):
        cfg = load_config(str(config), overrides)
    (finding,) = check_schedule(cfg)
    assert (finding.level, finding.topic) == ("warning", topic) and text in finding.fix


def test_what_to_know_of_a_combination(tmp_path):
    from d2ext.analysis.doctor import build_recorded
    from d2ext.commands.common import load_config

    words = ["MODEL.HARMONIC.ENABLED", "True", "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"]
    words += ["MODEL.SAMPLING_FREE.ENABLED", "True", "SOLVER.ALWA.ENABLED", "True"]
    cfg = load_config("Demo/retinanet_shapes", words)
    findings = [f for f in build_recorded(cfg)["findings"] if f.topic == "methods"]
    assert ["counts the overlap twice" in f.what for f in findings] == [True, False]
    assert "ALWA finds nothing to do" in findings[1].what


def test_recording_sees_reads_of_clones_but_no_others():
    cfg = recording(get_cfg())
    seen = cfg.__dict__["seen"]
    assert cfg.clone().MODEL.RPN.NMS_THRESH == 0.7 and cfg.SOLVER.get("GAMMA") == 0.1
    assert seen == {"MODEL.RPN.NMS_THRESH", "SOLVER.GAMMA"}


def test_changed_keys():
    cfg = get_cfg()
    assert changed_keys(cfg) == []
    cfg.SOLVER.BASE_LR = 0.5
    assert changed_keys(cfg) == ["SOLVER.BASE_LR"]
