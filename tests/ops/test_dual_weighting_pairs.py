"""The search for pairs: equal to comparing everything, in bounded memory and operations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from d2ext.ops import host, point_pairs
from d2ext.ops.dual_weighting import dual_weighting_losses
from d2ext.ops.point_pairs import points_in_boxes
from d2ext.testing import count_ops

# Operations after which the host must wait for a device.
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::item",
         "aten::masked_select", "aten::unique", "aten::_unique2", "aten::equal")  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts waits, and notes the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.waits, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in WAITS or (
            name in ("aten::index", "aten::index_put_", "aten::index_put")
            and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            self.waits += 1
        if name == "aten::repeat_interleave" and not (kwargs or {}).get("output_size"):
            # Without the size of the result a device tensor is read; one on the host is not.
            self.waits += args[0].numel() > MAX_IMAGES
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


MAX_IMAGES = 8


def grid(sizes, strides):
    points, point_strides = [], []
    for (h, w), stride in zip(sizes, strides):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        points.append((torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5) * stride)
        point_strides.append(torch.full((h * w,), float(stride)))
    return torch.cat(points), torch.cat(point_strides)


def random_boxes(count, width, height, seed=0, low=1.0, high=None):
    generator = torch.Generator().manual_seed(seed)
    high = high or max(width, height)
    size = low * (high / low) ** torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) - size / 4
    return torch.cat((corner, corner + size), dim=1)


def brute_force(points, boxes):
    x, y = points.t()
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    sides = torch.stack((x - x1, y - y1, x2 - x, y2 - y))
    return (sides.amin(0) > 0).nonzero()


def assert_same(points, strides, boxes):
    point, box = points_in_boxes(points, strides, boxes)
    assert torch.equal(torch.stack((box, point), 1), brute_force(points, boxes))


PYRAMIDS = {
    "five levels": grid([(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)], [8, 16, 32, 64, 128]),
    "one cell a level": grid([(1, 1)] * 5, [8, 16, 32, 64, 128]),
    "one row": grid([(1, 12), (1, 6), (1, 3)], [8, 16, 32]),
    "one column": grid([(12, 1), (6, 1), (3, 1)], [8, 16, 32]),
    "equal strides": grid([(5, 7), (3, 2)], [8, 8]),
    "fine to coarse and back": grid([(2, 2), (9, 9), (4, 4)], [32, 8, 16]),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_grids(name, monkeypatch):
    def fail(*args):
        raise AssertionError("the points are grids, but were not recognised")

    monkeypatch.setattr(point_pairs, "_compare_all", fail)
    points, strides = PYRAMIDS[name]
    for seed in range(3):
        boxes = random_boxes(60, 140.0, 110.0, seed)
        assert_same(points, strides, boxes)
        # Edges exactly on points, where > and >= differ, and boxes without an area.
        assert_same(points, strides, (boxes / 4).round() * 4)
        assert_same(points, strides, boxes[:, [0, 1, 0, 1]])
        assert_same(points, strides, boxes[:, [2, 3, 0, 1]])
    assert_same(points, strides, boxes[:0])
    assert_same(points, strides, boxes + 1e4)


def test_edges_one_bit_beside_a_point():
    points, strides = PYRAMIDS["five levels"]
    edge = torch.tensor([4.0, 12.0, 36.0, 52.0])
    inward = torch.nextafter(edge, torch.tensor([-1e9, -1e9, 1e9, 1e9]))
    outward = torch.nextafter(edge, torch.tensor([1e9, 1e9, -1e9, -1e9]))
    for box in (edge, inward, outward):
        assert_same(points, strides, box[None])
    sizes = [len(points_in_boxes(points, strides, box[None]).point) for box in (edge, inward)]
    assert sizes[1] > sizes[0]


@pytest.mark.parametrize("kind", ["shuffled", "jittered", "many levels", "hole"])
def test_points_that_are_no_grids(kind, monkeypatch):
    points, strides = PYRAMIDS["five levels"]
    generator = torch.Generator().manual_seed(0)
    if kind == "shuffled":
        order = torch.randperm(len(points), generator=generator)
        points, strides = points[order], strides[order]
    elif kind == "jittered":
        points = points + torch.rand(points.shape, generator=generator)
    elif kind == "many levels":
        points, strides = grid([(3, 3)] * 12, [8 + i for i in range(12)])
    else:
        keep = torch.arange(len(points)) != 30
        points, strides = points[keep], strides[keep]
    monkeypatch.setattr(point_pairs, "CHUNK_ELEMENTS", 7 * len(points))  # several chunks
    assert_same(points, strides, random_boxes(50, 140.0, 110.0))
    assert_same(points, strides, torch.zeros(0, 4))


def make_batch(num_images, num_objects, num_classes=3, low=4.0, high=60.0):
    points, strides = grid([(25, 34), (13, 17), (7, 9), (4, 5), (2, 3)], [8, 16, 32, 64, 128])
    generator = torch.Generator().manual_seed(0)
    cls_logits = torch.randn(num_images, len(points), num_classes, generator=generator) - 3
    obj_logits = torch.randn(num_images, len(points), generator=generator)
    half = strides[:, None] * 3
    boxes = torch.cat((points - half, points + half), 1).expand(num_images, -1, -1).clone()
    leaves = [t.requires_grad_() for t in (cls_logits, obj_logits, boxes)]
    gt = [random_boxes(num_objects, 270.0, 200.0, i, low, high) for i in range(num_images)]
    classes = [torch.arange(num_objects) % num_classes for _ in range(num_images)]
    return (points, strides, *leaves, gt, classes)


def count(args, backward=True, counter=None):
    counter = Counter() if counter is None else counter
    with counter:
        out = dual_weighting_losses(*args)
        if backward:
            (out["loss_cls_pos"] + out["loss_loc"] + out["loss_cls_neg"]).backward()
    return counter


def test_number_of_operations_is_constant():
    counts = {
        count(make_batch(images, objects), counter=count_ops()).total
        for images, objects in ((1, 2), (1, 40), (2, 7), (8, 40))
    }
    assert len(counts) == 1, counts


def test_waits_for_the_device_once(monkeypatch):
    # Count what a GPU would be waited for.
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    for images, objects in ((1, 0), (1, 5), (4, 30)):
        assert count(make_batch(images, objects)).waits == 1


def test_memory_grows_with_pairs_not_with_points_times_objects():
    args = make_batch(2, 1000, high=16.0)
    num_points, num_gt = len(args[0]), 2000
    pairs = len(points_in_boxes(args[0], args[1], torch.cat(args[5])).point)
    largest = count(args).largest
    assert pairs < num_points * num_gt / 100
    bound = max(4 * pairs, point_pairs.MAX_BLOCKS * max(num_points, num_gt), args[2].numel())
    assert largest <= bound, (largest, bound, num_points * num_gt)
