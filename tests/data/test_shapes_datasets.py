"""Whole generated data sets in the three forms, read back by the usual readers."""

import collections
import contextlib
import dataclasses
import filecmp
import io
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO

from d2ext.data import tiny_dataset
from d2ext.data.builtin import BUILTIN_SHAPES, register_shapes
from d2ext.data.shapes import SceneConfig, ShapesSpec, long_tail_classes, scene, write_dataset
from d2ext.data.shapes.plans import plan_images
from d2ext.ops.frequency import frequency_group

FORMS = ("coco", "lvis", "voc")


def _files(root):
    return sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    )


def _small_spec(form, seed=0):
    classes = tuple(long_tail_classes()[:6])
    config = SceneConfig().for_image_size(64)
    return ShapesSpec("small", form, classes, (("train", 5), ("val", 3)), config, seed=seed)


@pytest.mark.parametrize("form", FORMS)
def test_same_seed_same_bytes_for_any_number_of_processes(form, tmp_path):
    for name, workers, seed in (("one", 1, 0), ("three", 3, 0), ("other", 1, 7)):
        (tmp_path / name).mkdir()
        spec = _small_spec(form, seed)
        write_dataset(spec, str(tmp_path / name), num_workers=workers, progress=False)
    files = _files(tmp_path / "one")
    assert len(files) >= 8 and files == _files(tmp_path / "three")
    same = filecmp.cmpfiles(tmp_path / "one", tmp_path / "three", files, shallow=False)
    assert sorted(same[0]) == files
    pictures = [name for name in files if name.endswith(".jpg")]
    same = filecmp.cmpfiles(tmp_path / "one", tmp_path / "other", pictures, shallow=False)
    assert same[0] == []


def test_stamp_tells_specifications_apart():
    spec = _small_spec("coco")
    assert spec.stamp() == _small_spec("coco").stamp()
    assert spec.stamp() != _small_spec("coco", seed=1).stamp()
    harder = dataclasses.replace(spec, scene=dataclasses.replace(spec.scene, blur=1.0))
    assert spec.stamp() != harder.stamp()


@pytest.mark.parametrize("form", FORMS)
def test_tiny_dataset_loads_through_detectron2_and_leaves_nothing(form, tmp_path):
    with tiny_dataset(form, num_images=4, num_classes=3, root=str(tmp_path)) as name:
        dicts = DatasetCatalog.get(name)
        assert len(dicts) == 4
        assert len(MetadataCatalog.get(name).thing_classes) == 3
        for record in dicts:
            with Image.open(record["file_name"]) as image:
                assert image.size == (record["width"], record["height"]) == (96, 96)
            assert record["annotations"]
            for item in record["annotations"]:
                box = BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS)
                assert 0 <= box[0] < box[2] <= 96 and 0 <= box[1] < box[3] <= 96
                assert 0 <= item["category_id"] < 3
    assert name not in DatasetCatalog.list() and name not in MetadataCatalog.list()
    assert os.listdir(tmp_path) == []


def test_tiny_dataset_cleans_up_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), tiny_dataset(root=str(tmp_path)) as name:
        1 / 0  # noqa: B018
    assert name not in DatasetCatalog.list() and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments", [{"form": "yolo"}, {"num_images": 1}, {"num_classes": 0}, {"num_classes": 61}]
)
def test_tiny_dataset_refuses_in_one_sentence(arguments):
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"), tiny_dataset(**arguments):
        pass


def test_coco_json_masks_agree_with_boxes_and_areas():
    with tiny_dataset("coco", num_images=6, image_size=128, num_classes=20) as name:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(MetadataCatalog.get(name).json_file)
        assert len(coco.anns) >= 12
        for annotation in coco.anns.values():
            assert annotation["iscrowd"] == 0
            box = mask_util.toBbox(coco.annToRLE(annotation))
            # The sharp tip of an outline may cover no whole pixel.
            np.testing.assert_allclose(box, annotation["bbox"], atol=3)
            mask = coco.annToMask(annotation)
            assert mask.sum() == pytest.approx(annotation["area"], rel=0.1, abs=12)


def test_lvis_json_loads_with_lvis_and_says_what_is_absent():
    from lvis import LVIS

    with tiny_dataset("lvis", num_images=8, num_classes=4) as name:
        metadata = MetadataCatalog.get(name)
        lvis = LVIS(metadata.json_file)
        assert [c["frequency"] for c in lvis.load_cats(None)] == ["r", "c", "f", "r"]
        assert len(metadata.class_image_count) == 4
        present = collections.defaultdict(set)
        for annotation in lvis.anns.values():
            present[annotation["image_id"]].add(annotation["category_id"])
            assert lvis.ann_to_mask(annotation).any()
        for image in lvis.imgs.values():
            assert not present[image["id"]] & set(image["neg_category_ids"])
            assert set(image["not_exhaustive_category_ids"]) <= present[image["id"]]
        assert any(image["neg_category_ids"] for image in lvis.imgs.values())
        for category in lvis.cats.values():
            ids = {a["image_id"] for a in lvis.anns.values() if a["category_id"] == category["id"]}
            assert category["image_count"] == len(ids)


def test_voc_tree_has_what_the_evaluator_reads():
    from detectron2.evaluation.pascal_voc_evaluation import parse_rec

    with tiny_dataset("voc", num_images=12, image_size=128, num_classes=5) as name:
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "pascal_voc" and metadata.year in (2007, 2012)
        flags = collections.Counter()
        for record in DatasetCatalog.get(name):
            path = os.path.join(metadata.dirname, "Annotations", record["image_id"] + ".xml")
            objects = parse_rec(path)
            assert len(objects) == len(record["annotations"])
            for item in objects:
                assert min(item["bbox"]) >= 1 and max(item["bbox"]) <= 128
                assert item["name"] in metadata.thing_classes
                flags.update(key for key in ("difficult", "truncated") if item[key])
        assert flags["difficult"] and flags["truncated"]


def test_long_tail_has_all_groups_of_lvis_and_a_balanced_validation_set():
    spec = BUILTIN_SHAPES["d2ext_shapes_lt"]
    train, val = spec.image_counts("train"), spec.image_counts("val")
    groups = collections.Counter(frequency_group(count)[0] for count in train)
    assert len(train) == 60 and min(groups[g] for g in "rcf") >= 10
    assert min(train) >= 2
    rare = [v for t, v in zip(train, val) if frequency_group(t) == "rare"]
    assert min(rare) >= 10
    # The alphabet has nothing to do with frequency.
    names = [cls.name for cls in spec.classes]
    assert names == sorted(names) and train != sorted(train, reverse=True)


@pytest.mark.parametrize("split,position", [("train", 0), ("val", 1)])
def test_plan_gives_every_class_its_number_of_images(split, position):
    spec = BUILTIN_SHAPES["d2ext_shapes_lt"]
    counts, num_images = spec.image_counts(split), dict(spec.splits)[split]
    rng = np.random.default_rng([spec.seed, position, 0])
    plans = plan_images(rng, counts, num_images, spec.scene.num_objects)
    seen = collections.Counter(category for plan in plans for category in set(plan))
    assert [seen[c] for c in range(60)] == counts
    sizes = [len(plan) for plan in plans]
    assert min(sizes) >= 2 and max(sizes) <= 15


def test_long_tailed_files_match_the_registered_counts(tmp_path):
    """Losses and samplers read the counts before anything is drawn; they must come true."""
    classes = tuple(long_tail_classes()[:12])
    config = SceneConfig(num_objects=(2, 8)).for_image_size(64)
    splits = (("train", 30), ("val", 20))
    ranks = tuple(reversed(range(12)))
    spec = ShapesSpec("lt", "lvis", classes, splits, config, ranks=ranks)
    names = [f"d2ext_test_{tmp_path.name}_{split}" for split, _ in splits]
    try:
        for name, (split, _) in zip(names, splits):
            register_shapes(spec, split, name, str(tmp_path / "lt"))
        expected = [c["image_count"] for c in MetadataCatalog.get(names[0]).class_image_count]
        seen = collections.Counter()
        for record in DatasetCatalog.get(names[0]):
            seen.update({item["category_id"] for item in record["annotations"]})
        assert [seen[c] for c in range(12)] == expected == spec.image_counts("train")
        from lvis import LVIS

        groups = [
            c["frequency"] for c in LVIS(MetadataCatalog.get(names[1]).json_file).load_cats(None)
        ]
        assert groups == [frequency_group(count)[0] for count in expected]
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_builtin_data_sets_are_registered_without_being_drawn():
    for folder, (form, classes) in {
        "d2ext_shapes": ("coco", 20),
        "d2ext_shapes_lt": ("lvis", 60),
        "d2ext_shapes_voc": ("pascal_voc", 20),
    }.items():
        for split in ("train", "val"):
            metadata = MetadataCatalog.get(f"{folder}_{split}")
            assert f"{folder}_{split}" in DatasetCatalog.list()
            assert metadata.evaluator_type == form and len(metadata.thing_classes) == classes
    counts = MetadataCatalog.get("d2ext_shapes_lt_val").class_image_count
    assert counts == MetadataCatalog.get("d2ext_shapes_lt_train").class_image_count


@pytest.mark.parametrize("folder", ["d2ext_shapes", "d2ext_shapes_voc"])
def test_a_few_images_of_the_real_thing(folder, tmp_path):
    spec = dataclasses.replace(BUILTIN_SHAPES[folder], splits=(("train", 6), ("val", 3)))
    write_dataset(spec, str(tmp_path), num_workers=2, progress=False)
    assert len([name for name in _files(tmp_path) if name.endswith(".jpg")]) == 9


@pytest.mark.slow
def test_counts_of_the_whole_long_tail(tmp_path, monkeypatch):
    """All its images at their size, but blank and without outlines: no count depends on them."""
    blank = np.zeros((1, 1, 1), np.float32)
    monkeypatch.setattr(
        scene, "draw_background", lambda rng, h, w, **_: np.broadcast_to(blank, (h, w, 3))
    )
    corners = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float64)
    monkeypatch.setattr(scene, "trace_mask", lambda mask, **_: [corners])
    monkeypatch.setattr(scene, "_paint", lambda *args: None)
    monkeypatch.setattr(scene, "_photograph", lambda rng, image, config: image.astype(np.uint8))
    monkeypatch.setattr(Image.Image, "save", lambda image, path, **_: open(path, "w").close())
    spec = BUILTIN_SHAPES["d2ext_shapes_lt"]
    write_dataset(spec, str(tmp_path), num_workers=1, progress=False)
    pictures = [name for name in _files(tmp_path) if name.endswith(".jpg")]
    assert len(pictures) == sum(count for _, count in spec.splits)
    from lvis import LVIS

    for split, _ in spec.splits:
        lvis = LVIS(str(tmp_path / "annotations" / f"lvis_v1_{split}.json"))
        categories = lvis.load_cats(None)
        assert [c["image_count"] for c in categories] == spec.image_counts(split)
        rare = [c for c in categories if c["frequency"] == "r"]
        assert len(rare) >= 10
        if split == "val":
            assert min(c["instance_count"] for c in rare) >= 10
