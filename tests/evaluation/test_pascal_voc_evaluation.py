"""VOC figures equal those of detectron2's evaluator and its voc_eval."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator as UpstreamEvaluator
from evaluation_data import make_dataset, make_instances, make_predictions, run

from d2ext.evaluation import PascalVOCDetectionEvaluator

CLASSES = ("box", "disc", "star")


@pytest.fixture
def make_voc(tmp_path, request):
    """Write a VOC tree of generated scenes and register it; removed after the test."""
    names = []

    def make(seed, year, classes=CLASSES):
        rng = np.random.default_rng(seed)
        dataset = make_dataset(rng, num_images=25, category_ids=(0, 1, 2, 3))
        inputs, outputs = make_predictions(rng, dataset, step=0.0003)
        root = tmp_path / str(len(names))
        (root / "Annotations").mkdir(parents=True)
        (root / "ImageSets" / "Main").mkdir(parents=True)
        ids = [f"{image['id']:06d}" for image in dataset["images"]]
        (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join(ids) + "\n")
        for image, image_id in zip(dataset["images"], ids):
            objects = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
            text = "".join(as_xml(rng, obj, classes) for obj in objects)
            xml = f"<annotation>{text}</annotation>"
            (root / "Annotations" / f"{image_id}.xml").write_text(xml)
        name = f"d2ext_test_{request.node.nodeid}_{len(names)}"
        names.append(name)
        MetadataCatalog.get(name).set(
            thing_classes=list(classes),
            dirname=str(root),
            year=year,
            split="val",
            evaluator_type="pascal_voc",
        )
        for output in outputs:
            output["instances"].pred_classes.clamp_(max=len(CLASSES) - 1)
        return name, [{"image_id": image_id} for image_id in ids], outputs

    yield make
    for name in names:
        MetadataCatalog.remove(name)


def as_xml(rng, obj, classes):
    x, y, w, h = obj["bbox"]
    corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
    box = "".join(f"<{tag}>{round(value)}</{tag}>" for tag, value in corners.items())
    difficult = int(rng.random() < 0.2)
    return (
        f"<object><name>{classes[obj['category_id']]}</name><pose>Left</pose><truncated>0"
        f"</truncated><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
    )


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_equal_detectron2(make_voc, year, seed):
    name, inputs, outputs = make_voc(seed, year)
    theirs = run(UpstreamEvaluator(name), inputs, outputs)
    mine = run(PascalVOCDetectionEvaluator(name), inputs, outputs)
    for key, value in theirs["bbox"].items():
        assert mine["bbox"][key] == pytest.approx(value, abs=1e-10)
    assert 5 < mine["bbox"]["AP"] < 95
    assert {f"AP-{c}" for c in CLASSES} < set(mine["bbox"])


def test_the_metrics_of_2007_and_2012_differ(make_voc):
    name, inputs, outputs = make_voc(3, 2012)
    new = run(PascalVOCDetectionEvaluator(name), inputs, outputs)
    old = run(PascalVOCDetectionEvaluator(name, use_07_metric=True), inputs, outputs)
    assert new["bbox"]["AP"] != old["bbox"]["AP"]


def test_each_class_equals_voc_eval(make_voc, tmp_path):
    from detectron2.evaluation.pascal_voc_evaluation import voc_eval

    name, inputs, outputs = make_voc(4, 2012)
    mine = run(PascalVOCDetectionEvaluator(name), inputs, outputs)
    meta = MetadataCatalog.get(name)
    upstream = UpstreamEvaluator(name)
    upstream.reset()
    upstream.process(inputs, outputs)
    for c, class_name in enumerate(CLASSES):
        (tmp_path / f"{class_name}.txt").write_text("\n".join(upstream._predictions[c]))
        values = [
            voc_eval(
                str(tmp_path / "{}.txt"),
                f"{meta.dirname}/Annotations/{{}}.xml",
                f"{meta.dirname}/ImageSets/Main/val.txt",
                class_name,
                ovthresh=threshold / 100,
            )[2]
            for threshold in range(50, 100, 5)
        ]
        assert mine["bbox"][f"AP-{class_name}"] == pytest.approx(np.mean(values) * 100, abs=1e-10)


def test_nothing_detected(make_voc):
    name, inputs, _ = make_voc(5, 2012)
    outputs = [{"instances": make_instances([], [], [])} for _ in inputs]
    mine = run(PascalVOCDetectionEvaluator(name), inputs, outputs)
    assert mine["bbox"]["AP"] == mine["bbox"]["AP50"] == 0
    assert run(UpstreamEvaluator(name), inputs, outputs)["bbox"]["AP"] == 0


def test_class_without_objects_is_left_out_of_the_mean(make_voc):
    name, inputs, outputs = make_voc(6, 2012, classes=CLASSES + ("ghost",))
    mine = run(PascalVOCDetectionEvaluator(name), inputs, outputs)["bbox"]
    assert np.isnan(mine["AP-ghost"])
    assert mine["AP"] == pytest.approx(np.mean([mine[f"AP-{c}"] for c in CLASSES]))


def test_results_file_and_some_of_the_images(make_voc, tmp_path):
    name, inputs, outputs = make_voc(7, 2012)
    evaluator = PascalVOCDetectionEvaluator(name, output_dir=str(tmp_path / "out"))
    whole = run(evaluator, inputs, outputs)
    ids = [image["image_id"] for image in inputs]
    np.testing.assert_equal(run(evaluator, inputs, outputs, img_ids=ids), whole)
    assert run(evaluator, inputs, outputs, img_ids=ids[:8]) != whole
    written = json.loads((tmp_path / "out" / "voc_instances_results.json").read_text())
    assert len(written) == sum(len(output["instances"]) for output in outputs)
    assert written[0]["image_id"] == ids[0]


def test_mistakes_are_named(make_voc):
    name, _, _ = make_voc(8, 2012)
    output = {"instances": make_instances([[0, 0, 9, 9]], [0.5], [0])}
    with pytest.raises(ValueError, match="Image 'other' is not in"):
        run(PascalVOCDetectionEvaluator(name), [{"image_id": "other"}], [output])
    MetadataCatalog.get(f"{name}_gone").set(
        thing_classes=["a"], dirname="nowhere", year=2012, split="val"
    )
    with pytest.raises(FileNotFoundError, match="is expected at"):
        PascalVOCDetectionEvaluator(f"{name}_gone")
    MetadataCatalog.remove(f"{name}_gone")
