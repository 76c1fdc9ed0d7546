"""The fast mapper against Detectron2's: pixels within one level, everything else equal."""

import copy
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from detectron2.utils.logger import _LOG_COUNTER
from PIL import Image

from d2ext.data import FastMapper, why_not_fast

RNG = np.random.default_rng


def noise(height, width, seed=0):
    """Smooth colours with noise of every size on them: the hardest case for equal rounding."""
    rng = RNG(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
    grain = rng.integers(-255, 256, smooth.shape) * (rng.random(smooth.shape) < 0.3)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def save(image, path, **arguments):
    image.save(path, **arguments)
    return {"file_name": str(path)}


def both(sample, augmentations, seed=0, is_train=True, image_format="BGR", **arguments):
    """The sample by Detectron2's mapper and by ours, and the state they leave numpy in."""
    results = []
    before = copy.deepcopy(sample)
    for kind in (DatasetMapper, FastMapper):
        mapper = kind(is_train, augmentations=augmentations, image_format=image_format, **arguments)
        np.random.seed(seed)
        results.append((mapper(sample), np.random.random()))
        assert str(sample) == str(before), "the mapper changed what it was given"
    (theirs, their_next), (ours, our_next) = results
    assert our_next == their_next, "another number of random draws"
    assert set(ours) == set(theirs)
    return theirs, ours


def check_pixels(theirs, ours):
    a, b = theirs["image"], ours["image"]
    assert b.dtype == torch.uint8 and b.is_contiguous() and b.shape == a.shape
    assert b.untyped_storage().nbytes() == b.numel()  # nothing hides behind it
    assert (a.int() - b.int()).abs().max() <= 1
    return (a != b).float().mean().item()


@pytest.mark.parametrize("seed", range(24))
def test_pixels_over_sizes(tmp_path, seed):
    """From 1 pixel to a few hundred, to a fifth of the size and to five times, odd and even."""
    rng = RNG(seed)
    height, width = rng.integers(1, 260, 2)
    scale = np.exp(rng.uniform(np.log(0.2), np.log(5), 2))
    target = np.maximum(1, np.rint(np.array([height, width]) * scale)).astype(int)
    sample = save(noise(height, width, seed), tmp_path / "image.png")
    augmentations = [T.Resize(tuple(int(x) for x in target)), T.RandomFlip()]
    check_pixels(*both(sample, augmentations, seed))


def test_most_pixels_are_equal(tmp_path):
    """Only rounding differs: another filter would differ nearly everywhere."""
    sample = save(noise(240, 320), tmp_path / "image.jpg")
    for short in (100, 199, 400):
        share = check_pixels(*both(sample, [T.ResizeShortestEdge(short)]))
        assert share < 0.02, short


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize(
    "mode, suffix",
    [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png"),
     ("LA", "png"), ("I;16", "png")],
)  # fmt: skip
def test_every_kind_of_image(tmp_path, mode, suffix, image_format):
    image = noise(37, 52)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    sample = save(image, tmp_path / f"image.{suffix}")
    # Without a resize the bytes are the same.
    theirs, ours = both(sample, [T.RandomFlip(1.0)], image_format=image_format)
    assert torch.equal(theirs["image"], ours["image"])
    check_pixels(*both(sample, [T.ResizeShortestEdge(60)], image_format=image_format))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    sample = save(noise(30, 44), tmp_path / "image.jpg", exif=exif)
    theirs, ours = both(sample, [])
    assert torch.equal(theirs["image"], ours["image"])
    assert (ours["height"], ours["width"]) == ((30, 44) if orientation < 5 else (44, 30))
    check_pixels(*both(sample, [T.ResizeShortestEdge(60)]))


def objects(height, width, masks, seed=0):
    """Annotations of every sort that a data set has: crowds, empty boxes, both box modes."""
    rng = RNG(seed)
    annotations = []
    for k in range(9):
        x0, y0 = rng.uniform(0, [width - 12, height - 12])
        w, h = rng.uniform(4, 12, 2)
        corners = [x0, y0, x0 + w, y0, x0 + w / 2, y0 + h]
        annotation = {
            "bbox": [x0, y0, w, h] if k % 2 else [x0, y0, x0 + w, y0 + h],
            "bbox_mode": BoxMode.XYWH_ABS if k % 2 else BoxMode.XYXY_ABS,
            "category_id": k,
            "iscrowd": int(k == 3),
            "keypoints": [x0, y0, 2, x0 + w, y0 + h, 1],
            "note": "kept by no mapper",
        }
        if masks == "polygon":
            annotation["segmentation"] = [corners]
        elif masks == "rle":
            annotation["segmentation"] = mask_util.frPyObjects([corners], height, width)[0]
        annotations.append(annotation)
    annotations[5]["bbox"] = [4.0, 4.0, 0.0, 0.0]
    return annotations


def check_instances(theirs, ours):
    a, b = theirs["instances"], ours["instances"]
    assert a.image_size == b.image_size and set(a.get_fields()) == set(b.get_fields())
    for name, field in a.get_fields().items():
        other = b.get(name)
        assert type(other) is type(field)
        if hasattr(field, "polygons"):
            for p, q in zip(field.polygons, other.polygons):
                assert all(np.array_equal(x, y) for x, y in zip(p, q)) and len(p) == len(q)
        else:
            assert torch.equal(getattr(field, "tensor", field), getattr(other, "tensor", other))
    return len(b)


CROP = T.RandomCrop("relative_range", (0.5, 0.5))
AUGMENTATIONS = {
    "resize": [T.ResizeShortestEdge((40, 90), 120, "range")],
    "horizontal": [T.ResizeShortestEdge((50, 70), 120, "choice"), T.RandomFlip()],
    "vertical": [
        T.ResizeShortestEdge((50, 70), 120, "choice"),
        T.RandomFlip(horizontal=False, vertical=True),
    ],
    "flips first": [T.RandomFlip(1.0), T.RandomFlip(horizontal=False, vertical=True), CROP,
                    T.ResizeShortestEdge(71), T.RandomFlip()],
    "crop": [CROP, T.ResizeShortestEdge((50, 70), 120, "choice"), T.RandomFlip()],
    "crop at the end": [T.ResizeScale(0.5, 2.0, 80, 100), T.RandomCrop("absolute", (30, 35))],
}  # fmt: skip


# Detectron2 crops polygons with a package it does not require, so they come without a crop here.
CASES = [
    (name, masks)
    for name, augmentations in AUGMENTATIONS.items()
    for masks in ("none", "rle", "polygon")
    if masks != "polygon" or not any(isinstance(a, T.RandomCrop) for a in augmentations)
]


@pytest.mark.parametrize("name, masks", CASES)
def test_annotations_and_random_draws(tmp_path, name, masks):
    sample = save(noise(61, 80), tmp_path / "image.png")
    sample.update(image_id=7, height=61, width=80, annotations=objects(61, 80, masks))
    arguments = {}
    if masks != "none":
        arguments["use_instance_mask"] = True
        arguments["instance_mask_format"] = "polygon" if masks == "polygon" else "bitmask"
    for seed in range(4):
        theirs, ours = both(sample, AUGMENTATIONS[name], seed, **arguments)
        check_pixels(theirs, ours)
        assert check_instances(theirs, ours) > 0
        assert ours["instances"].has("gt_masks") == (masks != "none")


BOXES = {
    "floats": lambda box, k: [float(x) for x in box],
    "thirds": lambda box, k: [x / 3 for x in box],
    "whole numbers": lambda box, k: [int(x) for x in box],
    "some whole": lambda box, k: [int(x) if k % 2 else x for x in box],
    "mixed in a box": lambda box, k: [int(box[0]), *box[1:]],
    "a tuple": lambda box, k: tuple(box),
    "NumPy's numbers": lambda box, k: [np.float64(x) for x in box],
    "an array": lambda box, k: np.array(box),
    "outside": lambda box, k: [box[0] - 30.0, box[1] - 9.0, box[2] + 40.0, box[3] + 60.0],
}


@pytest.mark.parametrize("kind", BOXES)
@pytest.mark.parametrize("name", ["crop", "flips first"])
def test_boxes_of_every_number_format(tmp_path, name, kind):
    """Detectron2 rounds by the format a box came in, and so do we, bit for bit."""
    sample = save(noise(61, 80), tmp_path / "image.png")
    found = 0
    for modes in ({BoxMode.XYXY_ABS}, {BoxMode.XYWH_ABS}, set(BoxMode)):
        if kind == "an array" and BoxMode.XYWH_ABS in modes:
            continue  # which Detectron2 itself does not take
        annotations = [x for x in objects(61, 80, "none") if x["bbox_mode"] in modes]
        for k, annotation in enumerate(annotations):
            annotation["bbox"] = BOXES[kind](annotation["bbox"], k)
        sample["annotations"] = annotations
        for seed in range(3):
            theirs, ours = both(sample, AUGMENTATIONS[name], seed)
            found += check_instances(theirs, ours)
    assert found > 3


@pytest.mark.parametrize("iscrowd", [None, 1])
def test_images_without_objects(tmp_path, iscrowd):
    sample = save(noise(61, 80), tmp_path / "image.png")
    sample["annotations"] = [] if iscrowd is None else objects(61, 80, "none")[3:4]
    theirs, ours = both(sample, AUGMENTATIONS["horizontal"])
    assert len(ours["instances"]) == len(theirs["instances"]) == 0
    assert set(ours["instances"].get_fields()) == set(theirs["instances"].get_fields())


def test_boxes_of_cropped_masks(tmp_path):
    sample = save(noise(61, 80), tmp_path / "image.png")
    sample["annotations"] = objects(61, 80, "rle")
    arguments = {"use_instance_mask": True, "instance_mask_format": "bitmask"}
    check_instances(*both(sample, AUGMENTATIONS["crop"], recompute_boxes=True, **arguments))


def test_keypoints_and_proposals(tmp_path):
    sample = save(noise(61, 80), tmp_path / "image.png")
    sample["annotations"] = objects(61, 80, "none")
    sample["proposal_boxes"] = np.float32([[4, 5, 40, 50], [0, 0, 0, 0], [30, 20, 78, 58]])
    sample["proposal_objectness_logits"] = np.float32([0.5, 0.4, 0.3])
    sample["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    theirs, ours = both(
        sample,
        AUGMENTATIONS["horizontal"],
        use_keypoint=True,
        keypoint_hflip_indices=[1, 0],
        precomputed_proposal_topk=2,
    )
    check_instances(theirs, ours)
    assert ours["instances"].has("gt_keypoints") and len(ours["proposals"]) == 2
    a, b = theirs["proposals"].proposal_boxes, ours["proposals"].proposal_boxes
    assert torch.equal(a.tensor, b.tensor)


def test_evaluation_leaves_annotations_out(tmp_path):
    sample = save(noise(61, 80), tmp_path / "image.png")
    sample["annotations"] = objects(61, 80, "polygon")
    theirs, ours = both(sample, [T.ResizeShortestEdge(33)], is_train=False)
    check_pixels(theirs, ours)
    assert "annotations" not in ours and "instances" not in ours
    assert (ours["height"], ours["width"]) == (61, 80)


def test_a_wrong_size_is_refused_as_by_detectron2(tmp_path):
    sample = save(noise(61, 80), tmp_path / "image.png")
    sample.update(height=60, width=80)
    with pytest.raises(SizeMismatchError, match="image.png"):
        FastMapper(True, augmentations=[], image_format="BGR")(sample)


def test_semantic_segmentation_goes_detectron2s_way(tmp_path, caplog):
    _LOG_COUNTER.clear()
    sample = save(noise(61, 80), tmp_path / "image.png")
    labels = Image.fromarray(RNG(0).integers(0, 9, (61, 80), dtype=np.uint8))
    sample["sem_seg_file_name"] = save(labels, tmp_path / "labels.png")["file_name"]
    with caplog.at_level(logging.INFO):
        theirs, ours = both(sample, AUGMENTATIONS["horizontal"])
        both(sample, AUGMENTATIONS["horizontal"])
    assert torch.equal(theirs["image"], ours["image"])
    assert torch.equal(theirs["sem_seg"], ours["sem_seg"])
    assert caplog.text.count("semantic segmentation") == 1


class LooksAtPixels(T.RandomFlip):
    """A subclass may do anything."""

    def get_transform(self, image):
        return T.HFlipTransform(image.shape[1]) if image.mean() > 99 else T.NoOpTransform()


@pytest.mark.parametrize(
    "augmentation, image_format, reason",
    [
        (T.RandomFlip(), "L", "images in the format L"),
        (T.RandomBrightness(0.5, 2), "BGR", "the augmentation RandomBrightness"),
        (LooksAtPixels(), "RGB", "the augmentation LooksAtPixels"),
        (T.ResizeShortestEdge(9, interp=Image.BICUBIC), "RGB", "other than bilinear"),
        (T.HFlipTransform(9), "RGB", "the augmentation HFlipTransform"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(augmentation, image_format, reason):
    assert reason in why_not_fast([augmentation], image_format)
    with pytest.raises(ValueError, match=f"does not cover .*{reason.split()[-1]}"):
        FastMapper(True, augmentations=[augmentation], image_format=image_format)


def test_a_pytorch_that_cannot_resize_bytes_is_not_covered(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("\"upsample\" not implemented for 'Byte'")

    assert why_not_fast([T.RandomFlip()], "BGR") is None
    monkeypatch.setattr(torch.nn.functional, "interpolate", refuse)
    assert "resizing of bytes in PyTorch" in why_not_fast([T.RandomFlip()], "BGR")
