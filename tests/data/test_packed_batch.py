"""A batch in one block of memory holds what the samples held."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import (
    BitMasks,
    Boxes,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
)
from torch.utils._python_dispatch import TorchDispatchMode

from d2ext.data import PackedBatch


def sample(seed, count, height=11, width=7):
    torch.manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.rand(count, 4))
    instances.gt_classes = torch.randint(0, 9, (count,))
    instances.gt_masks = BitMasks(torch.rand(count, height, width) > 0.5)
    instances.gt_keypoints = Keypoints(torch.rand(count, 2, 3))
    instances.rotated = RotatedBoxes(torch.rand(count, 5))
    instances.polygons = PolygonMasks([[np.random.rand(8)] for _ in range(count)])
    return {
        "file_name": f"{seed}.jpg",
        "height": height,
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
        "strided": torch.rand(4, 6).t(),
        "nested": [("a", torch.tensor(1.5, dtype=torch.float64)), {"b": torch.zeros(0, 2)}],
        "instances": instances,
    }


def tensors_of(samples):
    """Every tensor of samples, by its place."""
    found = {}
    for k, item in enumerate(samples):
        for key in ("image", "strided"):
            found[k, key] = item[key]
        found[k, "nested 0"], found[k, "nested 1"] = item["nested"][0][1], item["nested"][1]["b"]
        for name, field in item["instances"].get_fields().items():
            if name != "polygons":
                found[k, name] = field if name == "gt_classes" else field.tensor
    return found


def check_equal(batch, samples):
    ours, theirs = tensors_of(batch), tensors_of(samples)
    assert set(ours) == set(theirs)
    for place, tensor in theirs.items():
        assert ours[place].dtype == tensor.dtype and torch.equal(ours[place], tensor), place
    for mine, other in zip(batch, samples):
        assert mine["file_name"] == other["file_name"] and mine["nested"][0][0] == "a"
        assert mine["instances"].image_size == other["instances"].image_size
        for name, field in other["instances"].get_fields().items():
            assert type(mine["instances"].get(name)) is type(field)
        polygons = other["instances"].polygons.polygons
        assert str(mine["instances"].polygons.polygons) == str(polygons)


@pytest.fixture
def samples():
    return [sample(0, 3), sample(1, 0), sample(2, 5, height=8, width=13)]


def test_it_is_a_list_of_the_same_samples_in_one_block(samples):
    batch = PackedBatch.pack(samples)
    assert isinstance(batch, list) and len(batch) == 3
    check_equal(batch, samples)
    storage = batch.block.untyped_storage().data_ptr()
    for place, tensor in tensors_of(batch).items():
        if tensor.numel():
            assert tensor.untyped_storage().data_ptr() == storage, place
            assert tensor.is_contiguous() and tensor.data_ptr() % tensor.element_size() == 0


def test_the_samples_stay_as_they_were(samples):
    before = copy.deepcopy(samples)
    batch = PackedBatch.pack(samples)
    batch.block.zero_()
    check_equal(samples, before)


def test_it_crosses_to_another_process_as_one_tensor(samples):
    batch = PackedBatch.pack(samples)
    _, (block, layout) = batch.__reduce__()
    assert block is batch.block and b"torch._utils" not in pickle.dumps(layout)
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is PackedBatch
    check_equal(again, samples)


def test_a_copy_is_a_plain_list_with_what_was_changed(samples):
    batch = PackedBatch.pack(samples)
    batch[0]["more"] = 1
    again = copy.deepcopy(batch)
    assert type(again) is list and again[0]["more"] == 1
    check_equal(again, samples)


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to another device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        inputs = [a for a in args if isinstance(a, torch.Tensor)]
        if isinstance(out, torch.Tensor) and out.device.type != "cpu":
            self.count += any(a.device.type == "cpu" for a in inputs)
        return out


@pytest.mark.parametrize("images", [1, 2, 6])
def test_one_copy_to_the_device_whatever_the_number_of_images(images):
    samples = [sample(k, 2 + k) for k in range(images)]
    for item in samples:
        item["instances"].remove("polygons")
    with Copies() as plain:
        for item in samples:
            item["image"].to("meta")
            item["instances"].to("meta")
    with Copies() as packed:
        batch = PackedBatch.pack(samples).to("meta")
        for item in batch:
            item["image"].to("meta")
            item["instances"].to("meta")
    assert plain.count == 6 * images and packed.count == 1
    assert all(t.device.type == "meta" for t in tensors_of_moved(batch))


def tensors_of_moved(batch):
    for item in batch:
        yield from (item["image"], item["instances"].gt_boxes.tensor, item["instances"].gt_classes)


@pytest.mark.parametrize("kind", [DenseDetector, GeneralizedRCNN])
@pytest.mark.parametrize("images", [1, 3])
def test_a_model_pads_and_normalises_it_as_ever(kind, images):
    """Bit for bit what upstream's own code makes of samples that came one by one."""
    detector = SimpleNamespace(
        pixel_mean=torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        pixel_std=torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1),
        backbone=SimpleNamespace(size_divisibility=32, padding_constraints={}),
        _move_to_current_device=lambda x: x,
    )
    samples = [sample(k, 1, height=20 + 17 * k, width=45 - 9 * k) for k in range(images)]
    expected = kind.preprocess_image(detector, samples)
    actual = kind.preprocess_image(detector, PackedBatch.pack(samples))
    assert torch.equal(actual.tensor, expected.tensor)
    assert actual.image_sizes == expected.image_sizes and actual.tensor.is_contiguous()


def test_samples_without_tensors():
    batch = PackedBatch.pack([{"id": 1}, "text", 3])
    assert batch == [{"id": 1}, "text", 3] and batch.pin_memory() is batch
    assert pickle.loads(pickle.dumps(batch)) == batch
