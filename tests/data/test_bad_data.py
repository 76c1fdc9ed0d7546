"""Kinds of bad data through the loaders of a training and of an evaluation, and the check.

Each kind spoils one thing in a good data set of four images with two objects each. It is refused
with the words given, or left out with a count, or used with a note, or right after all.
"""

import copy
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bad_data_kinds import KINDS_OF_BAD_DATA, STRING, save_as
from bad_data_kit import HEIGHT, IMAGES, WIDTH, DataSet, config, logged
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from PIL import Image
from process_kit import call_python

from d2ext.analysis.doctor import data_problems
from d2ext.cli import main as d2ext_main
from d2ext.data.checks import BadDataError
from d2ext.data.voc_to_coco import voc_to_coco
from d2ext.engine import DataError, Trainer, build_train_loader
from d2ext.engine.validation_data import ValidationBatches
from d2ext.evaluation.ground_truth import GroundTruth

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "Demo" / "fcos_shapes.yaml"


@pytest.fixture(params=KINDS_OF_BAD_DATA)
def spoilt(request, tmp_path):
    form, spoil, *expected = KINDS_OF_BAD_DATA[request.param]
    data_set = DataSet(tmp_path, form)
    spoil(data_set)
    fields = ("outcome", "words", "found", "left", "options")
    with data_set.registered() as name:
        yield SimpleNamespace(
            title=request.param, name=name, data_set=data_set, **dict(zip(fields, expected))
        )


ERRORS = (BadDataError, FileNotFoundError)


def read_all(loader):
    """The first batch, which is every image once; none lost an object on the way."""
    objects = Counter()
    for item in loader.dataset:
        objects[item["file_name"], item["image_id"]] += sum(
            not thing.get("iscrowd", 0) for thing in item["annotations"]
        )
    batch = next(iter(loader))
    for sample in batch:
        key = sample["file_name"], sample["image_id"]
        assert len(sample["instances"]) == objects[key], key
    assert len({s["image_id"] for s in batch}) == len(objects)


def said_once(case, lines, done):
    """The log has one line about it, with the count."""
    if case.outcome in ("right", "sample"):
        assert lines == []
        return
    (line,) = lines
    assert re.search(case.words, line) and "1 x " in line
    assert (done in line) == (case.outcome == "skip")


def test_training(spoilt):
    cfg = config(spoilt.name, *spoilt.options)
    with logged() as lines:
        if spoilt.outcome == "refuse":
            with pytest.raises(ERRORS, match=spoilt.words) as caught:
                Trainer.build_train_loader(cfg)
            assert "\n" not in str(caught.value) and str(spoilt.data_set.root) in str(caught.value)
            return
        loader = Trainer.build_train_loader(cfg)
        Trainer.build_train_loader(cfg)  # a second time says nothing new
    said_once(spoilt, lines, "left out")
    if spoilt.outcome == "sample":
        with pytest.raises(DataError, match=spoilt.words):
            read_all(loader)
        return
    read_all(loader)
    assert sum(len(item["annotations"]) for item in loader.dataset) == spoilt.left


@pytest.mark.parametrize("title", [t for t, k in KINDS_OF_BAD_DATA.items() if k[2] == "skip"])
def test_refused_if_asked(title, tmp_path):
    form, spoil, _, words, _, _, options = KINDS_OF_BAD_DATA[title]
    data_set = DataSet(tmp_path, form)
    spoil(data_set)
    with data_set.registered() as name, pytest.raises(BadDataError, match=words):
        Trainer.build_train_loader(config(name, "DATALOADER.BAD_ANNOTATIONS", "refuse", *options))


# Evaluation takes annotation files as they are, and does not read masks with the images.
ONLY_TRAINING = ("no annotation at all", "crowds only", "most boxes bad", "NaN in a polygon",
                 "polygon to 1e9", "mask missing", "mask of nothing", "RLE string cut off",
                 "RLE string damaged")  # fmt: skip


def test_evaluation(spoilt):
    cfg = config(spoilt.name, *spoilt.options)
    if spoilt.outcome == "refuse" and not spoilt.title.endswith(ONLY_TRAINING):
        with pytest.raises(ERRORS, match=spoilt.words):
            Trainer.build_test_loader(cfg, spoilt.name)
        return
    with logged() as lines:
        loader = Trainer.build_test_loader(cfg, spoilt.name)
    if spoilt.title.endswith(ONLY_TRAINING):
        assert len(list(loader)) == IMAGES
        return
    said_once(spoilt, lines, "kept")
    if spoilt.outcome == "sample":
        with pytest.raises(DataError, match=spoilt.words):
            list(loader)
    else:
        assert len(list(loader)) == IMAGES


def test_check(spoilt):
    """'d2ext data check' finds it, too, under the name of its kind."""
    if spoilt.found is None:
        with pytest.raises(ERRORS, match=spoilt.words):
            data_problems(spoilt.name)
        return
    kinds = {problem.kind for problem in data_problems(spoilt.name)}
    assert kinds == ({spoilt.found} if spoilt.found else set())


def test_there_are_many_kinds():
    forms = Counter(form for form, *_ in KINDS_OF_BAD_DATA.values())
    assert sum(forms.values()) >= 100 and min(forms.values()) >= 10


@pytest.mark.parametrize("mode, suffix", [("P", "PNG"), ("L", "JPEG"), ("1", "PNG"),
                                          ("CMYK", "JPEG"), ("RGBA", "PNG")])  # fmt: skip
def test_other_colours_are_the_pixels_of_the_image(tmp_path, mode, suffix):
    data_set = DataSet(tmp_path, "coco")
    save_as(mode, suffix)(data_set.first)
    with Image.open(data_set.first) as image:
        expected = np.asarray(image.convert("RGB"))[..., ::-1]
    with data_set.registered() as name:
        batch = next(iter(Trainer.build_train_loader(config(name))))
    (sample,) = [s for s in batch if s["image_id"] == 1]
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), expected)


def test_several_kinds_are_one_error_and_the_worst_comes_first(tmp_path):
    data_set = DataSet(tmp_path, "coco")
    things = data_set.data["annotations"]
    things[0]["bbox"], things[3]["bbox"], things[5]["bbox"] = [1, 2, 3], [1, 2, 3, np.nan], [1]
    words = r"2 x malformed box \(the first: 0.jpg: annotation id 1: .*, and 1 x not finite; write"
    with data_set.registered() as name, pytest.raises(BadDataError, match=words):
        Trainer.build_train_loader(config(name))


def test_an_unknown_policy_is_refused(tmp_path):
    words = "BAD_ANNOTATIONS is 'drop'; choose skip or refuse"
    good = DataSet(tmp_path, "coco")
    with good.registered() as name, pytest.raises(ValueError, match=words):
        Trainer.build_train_loader(config(name, "DATALOADER.BAD_ANNOTATIONS", "drop"))


def test_an_error_of_a_users_loader_names_the_data_set(tmp_path):
    with DataSet(tmp_path, "coco").registered() as name:
        DatasetCatalog[name] = lambda: {}["boxes"]
        words = f"Loading the data set '{name}' failed with KeyError: 'boxes'"
        with pytest.raises(BadDataError, match=words):
            Trainer.build_train_loader(config(name))


def test_repeated_ids_of_coco_2014_minival_are_known(tmp_path):
    data_set = DataSet(tmp_path, "coco")
    data_set.data["annotations"][1]["id"] = 1
    data_set.file = tmp_path / "instances_minival2014.json"
    with data_set.registered() as name:
        assert len(Trainer.build_train_loader(config(name)).dataset) == IMAGES


def test_conversion_from_voc_names_the_file(tmp_path):
    data_set = DataSet(tmp_path, "voc")
    data_set.change_xml("<xmax>20</xmax>", "")
    with pytest.raises(BadDataError, match="0.xml: object 1: <bndbox> has '3', '3', None"):
        voc_to_coco(tmp_path, "train")


def test_dataset_dicts_of_any_origin_are_checked(tmp_path):
    """A data set that a user's own function returns has no file to check."""
    data_set = DataSet(tmp_path, "coco")
    with data_set.registered() as name:
        good = DatasetCatalog.get(name)
        for change, words in DICTS:
            dicts = copy.deepcopy(good)
            change(dicts)
            DatasetCatalog[name] = lambda dicts=dicts: dicts
            with pytest.raises(BadDataError, match=words):
                Trainer.build_train_loader(config(name, "DATALOADER.BAD_ANNOTATIONS", "refuse"))


def test_a_mapper_of_ones_own_reads_what_pillow_cannot(tmp_path):
    """The rules for images are those of Detectron2's reading; a custom mapper reads as it likes."""
    data_set = DataSet(tmp_path, "coco")
    deep, many = data_set.root / "train" / "0.png", data_set.root / "train" / "1.npy"
    Image.fromarray(np.full((HEIGHT, WIDTH), 999, np.uint16)).save(deep)
    np.save(many, np.zeros((HEIGHT, WIDTH, 6), np.float32))
    images = data_set.data["images"]
    images[0]["file_name"], images[1]["file_name"] = deep.name, many.name
    with data_set.registered() as name:
        cfg = config(name)
        loader = build_train_loader(cfg, mapper=lambda item: {"file_name": item["file_name"]})
        assert {s["file_name"] for s in next(iter(loader))} >= {str(deep), str(many)}
        own = build_train_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))
        with pytest.raises(DataError, match=r"0.png .*more than 8 bits|1.npy .*cannot identify"):
            next(iter(own))

        def resized(item):
            raise SizeMismatchError("other size")

        with pytest.raises(DataError, match="SizeMismatchError: other size"):
            next(iter(build_train_loader(cfg, mapper=resized)))


def test_masks_are_checked_for_a_mapper_of_ones_own(tmp_path):
    data_set = DataSet(tmp_path, "coco")
    KINDS_OF_BAD_DATA["coco: RLE string damaged"][1](data_set)
    with data_set.registered() as name:
        loader = build_train_loader(config(name, "MODEL.MASK_ON", True), mapper=lambda item: item)
        with pytest.raises(DataError, match="object 2: its run-length string"):
            next(iter(loader))


def test_data_sets_with_other_classes_are_not_mixed(tmp_path):
    first, second, third = (DataSet(tmp_path / str(k), "coco") for k in range(3))
    second.data["categories"][0]["name"] = "horse"
    with first.registered() as one, second.registered() as other, third.registered() as same:
        cfg = config(one)
        words = rf"'{one}' and '{other}' have different classes \(\['cat', 'dog'\] and \['horse', "
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (one, same, other)
        with pytest.raises(BadDataError, match=words):
            Trainer.build_train_loader(cfg)
        with pytest.raises(BadDataError, match=words):
            next(iter(ValidationBatches(cfg)()))
        cfg.DATASETS.TRAIN = (one, same)
        assert len(Trainer.build_train_loader(cfg).dataset) == 2 * IMAGES
        # Without annotations there are no labels to mix.
        dicts = [{**item, "annotations": None} for item in DatasetCatalog.get(other)]
        for item in dicts:
            del item["annotations"]
        DatasetCatalog[other] = lambda: dicts
        cfg.DATASETS.TRAIN = (one, other)
        assert len(Trainer.build_train_loader(cfg).dataset) == 2 * IMAGES


def test_xml_is_checked_before_detectron2_parses_it(tmp_path):
    """Its parser expands entities; ours refuses them."""
    data_set, read = DataSet(tmp_path, "voc"), []
    data_set.change_xml("<annotation>", "<!DOCTYPE a [<!ENTITY x 'cat'>]><annotation>")
    with data_set.registered() as name:
        load = DatasetCatalog[name]
        DatasetCatalog[name] = lambda: read.append(name) or load()
        cfg = config(name)
        for build in (Trainer.build_train_loader, lambda cfg: Trainer.build_test_loader(cfg, name)):
            with pytest.raises(BadDataError, match="0.xml.* a document type"):
                build(cfg)
    assert read == []


def _second(key, value):
    return lambda dicts: dicts[0]["annotations"][1].update({key: value})


DICTS = [
    (lambda dicts: dicts.clear(), "has no image"),
    (lambda dicts: dicts[1].pop("file_name"), "dict 1 .* has no 'file_name'"),
    (lambda dicts: dicts[1].pop("annotations"), "1.jpg: it has no 'annotations' and other"),
    (lambda dicts: dicts[1].update(width=-1), "1.jpg: its width is -1"),
    (lambda dicts: dicts[1].update(image_id=1), "1.jpg: image id 1 is that of .*0.jpg"),
    (lambda dicts: dicts[0]["annotations"][1].pop("bbox"), "0.jpg: object 2: it has no 'bbox'"),
    (_second("category_id", 2), "0.jpg: object 2: label 2 of 2 classes"),
    (_second("category_id", "cat"), "object 2: its label is 'cat'"),
    (_second("bbox_mode", BoxMode.XYXY_REL), "object 2: its bbox_mode is .*cannot use"),
    (_second("bbox", [1, 2, 3]), r"object 2: box \[1, 2, 3\]"),
    (_second("bbox", [1, 2, 0, 3]), "object 2: box 1, 2, 1, 5 in 40 x 30"),
    (_second("segmentation", STRING | {"size": [1, 2]}), r"mask \[1, 2\], image \[30, 40\]"),
]


def test_ground_truth_of_lvis_needs_its_fields(tmp_path):
    """Also where the file is read without a loader: without them figures would be too high."""
    data_set = DataSet(tmp_path, "lvis")
    for image in data_set.data["images"]:
        del image["neg_category_ids"]
    data_set.write()
    with pytest.raises(BadDataError, match="lacks the list 'neg_category_ids'"):
        GroundTruth.from_json(str(data_set.file), "lvis")


@pytest.mark.parametrize("spoil, outcome", [("bbox", "NaN"), ("file_name", "gone.jpg")])
def test_the_commands_end_with_the_sentence(tmp_path, capfd, spoil, outcome):
    """train_net.py in a process of its own, and 'd2ext data check'."""
    data_set = DataSet(tmp_path, "coco")
    if spoil == "bbox":
        data_set.data["annotations"][1]["bbox"] = [float("nan")] * 4
        words = (
            "1 x not finite (0.jpg: annotation id 2: box nan, nan, nan, nan in 40 x 30); correct"
        )
    else:
        data_set.data["images"][0]["file_name"] = "gone.jpg"
        words = "gone.jpg: no such file"
    data_set.write()
    assert d2ext_main(["data", "check", str(data_set.file), "--output", str(tmp_path / "out"),
                       "--image-root", str(tmp_path / "train")]) == 1  # fmt: skip
    assert words.split(" (")[0] in capfd.readouterr().out
    with data_set.registered() as name:
        done = call_python(
            ROOT / "train_net.py", "--config-file", CONFIG, "MODEL.DEVICE", "cpu",
            "DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", tmp_path / "run",
            "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stdout.strip().splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
