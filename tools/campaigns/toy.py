"""A toy detector and a tiny data set, for runs that take seconds.

It is a module for ``train_net.py --import``, as a user would write one. The detector has everything
that a resume can lose: batch norm, dropout, a buffer of statistics, a Python float that changes in
each step. It knows little about detection.

Shapes: N images, C classes, h x w cells of stride 16.
"""

import contextlib
import json
import os
import shutil
from typing import Any, Dict, Iterator, List

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, BoxMode, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from . import sabotage, watch  # noqa: F401  (they register their hooks)

__all__ = ["ToyDetector", "draw_tiny", "toy_options"]

STRIDE = 16


@META_ARCH_REGISTRY.register()
class ToyDetector(nn.Module):
    def __init__(self, cfg: Any, num_classes: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 7, stride=4, padding=3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(8, 16, 5, stride=4, padding=2),
            nn.ReLU(),
        )
        self.cls = nn.Conv2d(16, num_classes, 1)
        self.box = nn.Conv2d(16, 4, 1)
        self.register_buffer("seen", torch.zeros(num_classes))
        self.normalizer = 10.0
        self.to(cfg.MODEL.DEVICE if cfg is not None else "cpu")

    def forward(self, batch):
        device = self.seen.device
        images = [(x["image"].to(device).float() - 128) / 64 for x in batch]
        images = ImageList.from_tensors(images, STRIDE)
        features = self.body(images.tensor)
        logits, boxes = self.cls(features), self.box(features)
        if self.training:
            return self.losses(logits, boxes, [x["instances"].to(device) for x in batch])
        return self.detections(logits, boxes, batch)

    def losses(self, logits, boxes, targets):
        num_images, _, height, width = logits.shape
        wanted = torch.zeros_like(logits, dtype=torch.float32)
        distance = boxes.sum() * 0.0
        count = 0
        for n, target in enumerate(targets):
            centers = target.gt_boxes.get_centers() / STRIDE
            columns = centers[:, 0].long().clamp(0, width - 1)
            rows = centers[:, 1].long().clamp(0, height - 1)
            wanted[n, target.gt_classes, rows, columns] = 1.0
            size = (target.gt_boxes.tensor[:, 2:] - target.gt_boxes.tensor[:, :2]) / 32
            found = boxes[n][:, rows, columns].t().float()
            distance = distance + F.l1_loss(found[:, :2], size, reduction="sum")
            count += len(target)
        with torch.no_grad():
            self.seen += wanted.sum((0, 2, 3))
        self.normalizer = 0.9 * self.normalizer + 0.1 * max(count, 1)
        loss_cls = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="sum")
        return {
            "loss_cls": loss_cls / self.normalizer,
            "loss_box_reg": distance / self.normalizer,
        }

    def detections(self, logits, boxes, batch):
        results = []
        for n, sample in enumerate(batch):
            scores, index = logits[n].float().sigmoid().flatten().topk(10)
            height, width = logits.shape[2:]
            labels = index // (height * width)
            cell = index % (height * width)
            x, y = (cell % width + 0.5) * STRIDE, (cell // width + 0.5) * STRIDE
            size = boxes[n].flatten(1)[:2, cell].float().clamp(0.1, 4) * 16
            corners = torch.stack([x - size[0], y - size[1], x + size[0], y + size[1]], 1)
            scale_y = sample["height"] / sample["image"].shape[1]
            found = Instances((sample["height"], sample["width"]))
            found.pred_boxes = Boxes(corners * scale_y)
            found.scores, found.pred_classes = scores, labels
            results.append({"instances": found})
        return results


def toy_options(output_dir: Any) -> List[Any]:
    """The toy detector on the tiny data set, as KEY VALUE words."""
    return [
        "MODEL.META_ARCHITECTURE", "ToyDetector",
        "MODEL.DEVICE", "cpu",
        "DATASETS.TRAIN", ("tiny_train",),
        "DATASETS.TEST", ("tiny_val",),
        "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MIN_SIZE_TRAIN", (64, 80),
        "INPUT.MIN_SIZE_TEST", 64,
        "INPUT.CROP.ENABLED", True,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 6,
        "SOLVER.WARMUP_ITERS", 2,
        "SOLVER.STEPS", (4,),
        "SOLVER.BASE_LR", 0.01,
        "SOLVER.CHECKPOINT_PERIOD", 0,
        "TEST.EVAL_PERIOD", 0,
        "ENGINE.LOG_PERIOD", 2,
        "ENGINE.TENSORBOARD", False,
        "SEED", 3,
        "OUTPUT_DIR", str(output_dir),
    ]  # fmt: skip


def register_json(root: str) -> None:
    """Register the data sets described in ``root``/*.json, in Detectron2's standard format."""
    for name in ("tiny_train", "tiny_val"):
        path = os.path.join(root, f"{name}.json")
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, lambda path=path: _load(path))
        MetadataCatalog.get(name).set(thing_classes=["a", "b", "c"])


@contextlib.contextmanager
def draw_tiny(root: Any) -> Iterator[Any]:
    """Draw Shapes images into ``root`` and register them as tiny_train and tiny_val."""
    from d2ext.data import tiny_dataset

    with tiny_dataset("coco", num_images=7, image_size=96, num_classes=3) as name:
        dicts = DatasetCatalog.get(name)
        for element in dicts:
            path = os.path.join(root, os.path.basename(element["file_name"]))
            shutil.copy(element["file_name"], path)
            element["file_name"] = path
            for annotation in element["annotations"]:
                annotation["bbox_mode"] = int(annotation["bbox_mode"])
    for name, part in (("tiny_train", dicts), ("tiny_val", dicts[:3])):
        with open(os.path.join(root, f"{name}.json"), "w") as stream:
            json.dump(part, stream)
    register_json(str(root))
    yield root


def _load(path: str) -> List[Dict[str, Any]]:
    with open(path) as stream:
        dicts = json.load(stream)
    for element in dicts:
        for annotation in element["annotations"]:
            annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
    return dicts


if "TINY_ROOT" in os.environ:
    register_json(os.environ["TINY_ROOT"])
