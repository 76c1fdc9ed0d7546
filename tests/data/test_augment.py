"""Augmentation: geometry is exact, nothing is drawn but from the sample's seed, and it ends."""

import numpy as np
import own_data_kit as kit
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from pycocotools import mask as coder

from d2ext import get_cfg
from d2ext._files import RunError
from d2ext.data.augment import mixing
from d2ext.data.augment.albumentations import Albumentations
from d2ext.data.augment.colour import RandomHSV
from d2ext.data.augment.mapper import AugmentingMapper, Mixing, augmentation_of
from d2ext.data.augment.pictures import Picture, WarpTransform, moved
from d2ext.data.augment.sizes import ResizeLongestEdge, by_longest_side
from d2ext.data.own import register_own_data
from d2ext.engine.build_data import build_train_loader

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}


def thing(box, label=0, mask="polygon", keypoints=False):
    x1, y1, x2, y2 = box
    item = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
    if mask == "polygon":
        item["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    elif mask == "rle":
        bits = np.zeros((100, 160), dtype=np.uint8)
        bits[int(y1) : int(y2), int(x1) : int(x2)] = 1
        item["segmentation"] = coder.encode(np.asfortranarray(bits))
    if keypoints:
        item["keypoints"] = [x1, y1, 2, x2, y2, 1]
    return item


def picture(colour, box=(40, 20, 120, 60), **more):
    image = np.full((100, 160, 3), 40, dtype=np.uint8)
    x1, y1, x2, y2 = map(int, box)
    image[y1:y2, x1:x2] = COLOURS[colour]
    return Picture(image, [thing(box, list(COLOURS).index(colour), **more)])


def box_of(image, colour):
    """The extent of a colour in an image, half a pixel at the rim aside."""
    distance = np.abs(image.astype(int) - COLOURS[colour]).sum(2)
    rows, columns = np.nonzero(distance < 200)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", range(5))
def test_mosaic_boxes_are_where_the_objects_are(seed):
    np.random.seed(seed)
    done = mixing.mosaic([picture(colour) for colour in COLOURS], 128)
    assert done.image.shape == (256, 256, 3)
    assert len(done.annotations) >= 2
    for item in done.annotations:
        colour = list(COLOURS)[item["category_id"]]
        np.testing.assert_allclose(item["bbox"], box_of(done.image, colour), atol=1.5)
        polygon = np.asarray(item["segmentation"][0]).reshape(-1, 2)
        hull = np.concatenate([polygon.min(0), polygon.max(0)]).clip(0, 256)
        np.testing.assert_allclose(hull, item["bbox"], atol=1e-6)


def test_affine_turns_boxes_polygons_masks_and_points_alike():
    np.random.seed(3)
    given = picture("red", mask="rle", keypoints=True)
    given.annotations += [thing((40, 20, 120, 60))]
    done = mixing.random_affine(given, 160)
    by_mask, by_polygon = done.annotations
    assert by_mask["bbox"] == by_polygon["bbox"]
    bits = coder.decode(by_mask["segmentation"])
    polygon = np.asarray(by_polygon["segmentation"][0]).reshape(-1, 2)
    drawn = coder.decode(coder.merge(coder.frPyObjects([polygon.ravel().tolist()], 160, 160)))
    overlap = (bits & drawn).sum() / (bits | drawn).sum()
    assert overlap > 0.93
    points = np.asarray(by_mask["keypoints"]).reshape(-1, 3)
    inside = points[:, 2] > 0
    np.testing.assert_allclose(points[inside, :2], polygon[[0, 2]][inside], atol=1e-6)


def test_too_little_of_an_object_is_left_out():
    warp = WarpTransform(np.array([[1.0, 0, -95], [0, 1, 0]]), 100, 160)
    item = [thing((0, 20, 100, 60)), thing((90, 20, 130, 60))]
    kept = moved(item, warp, 100, 160, min_share=0.2)
    assert [k["bbox"] for k in kept] == [[0.0, 20.0, 35.0, 60.0]]
    assert not moved([thing((0, 0, 150, 5))], warp, 100, 160, max_aspect=5)


def test_a_crop_keeps_what_is_to_be_seen():
    np.random.seed(1)
    for _ in range(20):
        done = mixing.random_crop(picture("red"), 0.5)
        for item in done.annotations:
            np.testing.assert_allclose(item["bbox"], box_of(done.image, "red"))
        height, width = done.image.shape[:2]
        assert 50 <= height <= 100 and 80 <= width <= 160


def test_mixup_is_half_of_both(monkeypatch):
    np.random.seed(0)
    first = Picture(np.full((64, 64, 3), 200, dtype=np.uint8), [thing((1, 1, 9, 9))])
    done = mixing.mixup(first, picture("green"), 64)
    assert len(done.annotations) == 2
    x1, y1, x2, y2 = map(int, np.asarray(done.annotations[1]["bbox"]).round())
    middle = done.image[(y1 + y2) // 2, (x1 + x2) // 2]
    assert middle.tolist() == [100, 227, 100]
    empty = Picture(np.zeros((64, 64, 3), dtype=np.uint8), [])
    assert mixing.mixup(first, empty, 64) is first


def test_copy_paste_covers_what_is_behind(monkeypatch):
    monkeypatch.setattr(np.random, "rand", lambda *shape: 0.0)
    behind = picture("red", (40, 20, 120, 60))
    behind.annotations.append(thing((100, 30, 110, 40), 3))
    front = picture("green", (80, 10, 150, 90))
    done = mixing.copy_paste(behind, front)
    # The small one is covered; of the red one the left half is to be seen.
    assert [item["category_id"] for item in done.annotations] == [0, 1]
    assert done.annotations[0]["bbox"] == [40.0, 20.0, 80.0, 60.0]
    assert coder.area(done.annotations[0]["segmentation"]) == 40 * 40
    assert box_of(done.image, "green") == [80, 10, 150, 90]
    boxes = mixing.copy_paste(picture("red", mask=None), picture("green", mask=None))
    assert box_of(boxes.image, "green") == [40, 20, 120, 60] and len(boxes.annotations) == 1


def test_colours_change_by_their_factors():
    np.random.seed(0)
    grey = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert (RandomHSV((0, 0, 0)).get_transform(grey).apply_image(grey) == grey).all()
    values = {int(RandomHSV().get_transform(grey).apply_image(grey)[0, 0, 0]) for _ in range(200)}
    assert 58 <= min(values) <= 66 and 134 <= max(values) <= 141
    # Red in BGR stays red, only darker or lighter.
    red = np.zeros((2, 2, 3), dtype=np.uint8)
    red[..., 2] = 200
    done = RandomHSV((0, 0, 0.4), "BGR").get_transform(red).apply_image(red)
    assert done[0, 0, 0] == done[0, 0, 1] == 0 and done[0, 0, 2] != 200


# ------------------------------------------------------------------ Albumentations
def test_albumentations_moves_everything_exactly():
    np.random.seed(0)
    given = picture("red", mask="rle")
    given.annotations += [thing((40, 20, 120, 60), 1)]
    done = Albumentations([{"name": "HorizontalFlip", "p": 1.0}])(given)
    for item in done.annotations:
        np.testing.assert_allclose(item["bbox"], [40, 20, 120, 60], atol=1e-4)
    assert (done.image == given.image[:, ::-1]).all()
    bits = coder.decode(done.annotations[0]["segmentation"])
    assert (bits == coder.decode(given.annotations[0]["segmentation"])[:, ::-1]).all()
    done = Albumentations([{"name": "Crop", "x_min": 20, "x_max": 100, "y_max": 100}])(
        picture("red", keypoints=True)
    )
    item = done.annotations[0]
    np.testing.assert_allclose(item["bbox"], [20, 20, 80, 60], atol=1e-4)
    np.testing.assert_allclose(item["segmentation"][0], [20, 20, 100, 20, 100, 60, 20, 60])
    assert item["keypoints"] == [20.0, 20.0, 2.0, 0.0, 0.0, 0.0]  # the second left the image


def test_albumentations_draws_from_the_samples_seed():
    rows = [{"name": "OneOf", "p": 1.0, "transforms": [{"name": "GaussNoise"}, {"name": "Blur"}]}]
    transforms, images = Albumentations(rows), []
    for seed in (5, 6, 5):
        np.random.seed(seed)
        images.append(transforms(picture("blue")).image)
    assert (images[0] == images[2]).all() and (images[0] != images[1]).any()


@pytest.mark.parametrize(
    "row, words",
    [
        ({"name": "NoSuch"}, "has no 'NoSuch'"),
        ({"name": "Compose2"}, "has no 'Compose2'"),
        ({"name": "os"}, "has no 'os'"),
        ({"p": 1}, "has no 'name'"),
        ({"name": "Crop", "x_min": "left"}, "Crop refuses"),
    ],
)
def test_a_transform_that_is_none(row, words):
    with pytest.raises(RunError, match=words):
        Albumentations([row])


def test_mirrors_are_refused_with_key_points():
    with pytest.raises(RunError, match="INPUT.RANDOM_FLIP renames them"):
        Albumentations([{"name": "HorizontalFlip"}], keypoints=True)


# ------------------------------------------------------------------ the loader
@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    kit.write_yolo_polygons(tmp_path / "pets")
    name = f"pets_{tmp_path.name}"
    (tmp_path / "pets").rename(tmp_path / name)
    data = register_own_data(str(tmp_path / name))
    cfg = get_cfg()
    cfg.merge_from_list(
        ["DATASETS.TRAIN", (data.names["train"],), "SOLVER.IMS_PER_BATCH", 2,
         "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96,
         "SOLVER.MAX_ITER", 20, "SEED", 3, "INPUT.AUGMENTATION", "strong", "INPUT.MOSAIC", 1.0,
         "MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask", "INPUT.COPY_PASTE", 0.0]
    )  # fmt: skip
    return cfg


def batches(loader, count):
    it = iter(loader)
    return [next(it) for _ in range(count)]


def same(one, two):
    assert torch.equal(one["image"], two["image"])
    assert torch.equal(one["instances"].gt_boxes.tensor, two["instances"].gt_boxes.tensor)
    if len(one["instances"]):
        assert torch.equal(one["instances"].gt_masks.tensor, two["instances"].gt_masks.tensor)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_gives_the_same_pictures(cfg, workers):
    whole = batches(build_train_loader(cfg), 20)
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(cfg)
    loader.load_state_dict({**loader.state_dict(), "batches": 7})
    for batch, expected in zip(batches(loader, 13), whole[7:]):
        for one, two in zip(batch, expected):
            same(one, two)


def test_the_last_steps_see_single_images(cfg):
    cfg.INPUT.MIXING_UNTIL = 0.5
    found = batches(build_train_loader(cfg), 20)
    # A mosaic shows several images, and each has two objects at most.
    several = [len(sample["instances"]) > 2 for batch in found for sample in batch]
    assert any(several[:20]) and not any(several[20:])
    cfg.INPUT.update({"AUGMENTATION": "light", "MOSAIC": 0.0, "COPY_PASTE": 0.0})
    plain = batches(build_train_loader(cfg), 2)
    assert {tuple(s["image"].shape[1:]) for batch in plain for s in batch} == {(64, 96)}


def test_micro_steps_are_of_one_step(cfg):
    seen = []

    class Spy(AugmentingMapper):
        def __call__(self, dataset_dict, dataset=(), step=0):
            seen.append(step)
            return super().__call__(dataset_dict, dataset, step)

    cfg.SOLVER.ACCUMULATE = 2
    spy = Spy(is_train=True, augmentations=[T.Resize((8, 8))], image_format="BGR", mixing=Mixing())
    batches(build_train_loader(cfg, spy), 6)
    assert seen == [0, 0, 1, 1, 2, 2]


def test_what_cannot_be_combined(cfg):
    cfg.INPUT.COPY_PASTE = 0.5
    cfg.INPUT.MASK_FORMAT = "polygon"
    with pytest.raises(ValueError, match="set INPUT.MASK_FORMAT to bitmask"):
        build_train_loader(cfg)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(ValueError, match="INPUT.FORMAT L cannot be combined"):
        build_train_loader(cfg)


def test_the_longest_side_is_one_of_the_sizes_drawn_for_each_image():
    seen = set()
    for seed in range(40):
        np.random.seed(seed)
        shape = (60, 90, 3) if seed % 2 else (90, 60, 3)
        transform = ResizeLongestEdge([32, 64, 128]).get_transform(np.zeros(shape, np.uint8))
        sides = (transform.new_h, transform.new_w)
        seen.add(max(sides))
        assert min(sides) == round(max(sides) * 2 / 3)
    assert seen == {32, 64, 128}
    flip, resize = T.RandomFlip(), T.ResizeShortestEdge(64)
    first, second = by_longest_side([resize, flip], [32])
    assert isinstance(first, ResizeLongestEdge) and second is flip


def test_yolox_recipes_use_them():
    for name in ("yolox_s_300e", "yolox_ip_s_300e_efl"):
        cfg = get_cfg()
        cfg.merge_from_file(f"configs/YOLOX/{name}.yaml")
        found = augmentation_of(cfg, cfg.SOLVER.MAX_ITER)
        assert found["mixing"].mosaic == found["mixing"].mixup == 1.0
        # The last 15 of 300 epochs are of single images and have one rate.
        assert found["mixing"].last_step == cfg.SOLVER.MAX_ITER - cfg.SOLVER.FLAT_ITERS
        assert found["longest_sides"] == list(range(480, 801, 32)) and found["crop"] == 1.0
        assert found["first"][0].strength == (0.015, 0.7, 0.4)
